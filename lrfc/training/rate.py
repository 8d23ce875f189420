"""The learning rate: its schedule over a training, and a short search for its highest value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lrfc.ir.graph import Graph

#: The rates that are tried, as shares of the kernels' typical size: the relative change of a weight
#: in one step of Adam.
SHARES = (0.03, 0.01, 0.003, 0.001, 0.0003)
#: How much more than the least loss of all trials a higher rate may end with. A trial is a small
#: part of the training, and favours rates that are too low for it. (ResNet-20 at 28 % of the MACs,
#: rates of 1e-4, 3e-4 and 1e-3: 0.33, 0.36 and 0.55 after a trial; the divergence from the original
#: on augmented samples after two epochs 0.128, 0.121 and 0.181.)
SLACK = 0.15


def annealed(done: float, warm: float = 0.05) -> float:
    """The share of the highest rate when the share ``done`` (0..1) of the training is over.

    A linear warm-up over the share ``warm``, then a cosine to 0 (Loshchilov and Hutter 2017, arXiv
    1608.03983, equation 5, without restarts).
    """
    if done < warm:
        return 0.1 + 0.9 * done / warm
    return 0.5 * (1 + math.cos(math.pi * min((done - warm) / (1 - warm), 1.0)))


def candidates(graph: Graph) -> tuple[float, ...]:
    """The rates to try, highest first.

    They are ``SHARES`` of the geometric mean of the kernels' root mean squares.
    """
    sizes = [
        float(np.sqrt(np.mean(np.square(w))))
        for op in graph.layers()
        for name, w in op.weights.items()
        if name.endswith("kernel")
    ]
    sizes = [size for size in sizes if size > 0 and math.isfinite(size)]
    typical = math.exp(sum(map(math.log, sizes)) / len(sizes)) if sizes else 0.05
    return tuple(share * typical for share in SHARES)


def best(
    rates: Sequence[float], trial: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """The highest rate that does not lose more than ``SLACK``, and the losses that were tried.

    ``trial`` returns the loss after a training of a few steps at that rate, always from the same
    start and with the whole schedule in short. The search starts in the middle, climbs to better
    neighbours, upwards first, and from the best one to higher rates that are nearly as good. A loss
    that is not finite counts as the worst.
    """
    losses: dict[float, float] = {}

    def loss(index: int) -> float:
        rate = rates[index]
        if rate not in losses:
            result = trial(rate)
            losses[rate] = result if math.isfinite(result) else math.inf
        return losses[rate]

    at = len(rates) // 2
    for step in (-1, 1):
        start = at
        while 0 <= at + step < len(rates) and loss(at + step) < loss(at):
            at += step
        if at != start:
            break
    least = loss(at)
    while at > 0 and loss(at - 1) <= (1 + SLACK) * least < math.inf:
        at -= 1
    return rates[at], losses
