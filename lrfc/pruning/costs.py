"""What an op costs when some of its channels are gone: functions of the shares that are left of what it reads and makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from lrfc.costs.pruned_ops import narrowed
from lrfc.costs.workload import Workload
from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor
from lrfc.pruning.kept_fractions import Share, Shares, Use
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.pricing import Executed, Prices

#: The cost of an op when the shares r of what it reads and m of what it makes are left.
Cost = Callable[[float, float], float]

#: The quantities of a candidate that depend on channels.
QUANTITIES = ("macs", "params", "latency")
#: Most widths of one side of an op that are looked at one by one, and the shares that are looked at
#: where there are more.
MANY, FEW = 200, (0.2, 0.4, 0.6, 0.8, 1.0)


def costs(
    graph: Graph, space: LayerSpace, candidate: Candidate, use: Use, prices: Prices | None
) -> dict[str, Cost]:
    """The cost of a candidate in each of ``QUANTITIES``.

    MACs and parameters are exact: those of a whole layer go with both sides (its bias with what it
    makes), those of a factorized one's first stage with what it reads and of its last with what it
    makes. Time is that of the ops at other widths; it follows the MACs where there are no
    ``prices``.
    """
    macs, params = (count(graph, space, candidate, use) for count in (_macs, _params))
    if prices is not None:
        return {"macs": macs, "params": params, "latency": _timed(prices, space, candidate, use)}
    scale = candidate.latency / max(candidate.macs, 1)
    return {"macs": macs, "params": params, "latency": lambda read, made: scale * macs(read, made)}


def narrower(graph: Graph, shares: Shares, executed: Executed) -> Iterator[Workload]:
    """Whatever is executed of a graph, at all widths that it may get."""
    for op in graph:
        use = shares.use(op)
        for parts in executed.ops((op.name,)):
            for read, made in product(_levels(use.read), _levels(use.made)):
                yield from narrowed(parts, read, made, carried=use.carried)


def apart(candidate: Candidate, use: Use) -> bool:
    """Whether what is read and what is made concern different ops, those of a factorized layer's first stage and its last."""
    return candidate.method is not None and not use.carried


def _macs(graph: Graph, space: LayerSpace, candidate: Candidate, use: Use) -> Cost:
    whole = float(candidate.macs)
    if not apart(candidate, use):
        return lambda read, made: whole * read * made
    start, end = _ends(
        _stages(graph, space, candidate),
        lambda stage, read, made: float(ops.macs(stage, read, made)),
    )
    return lambda read, made: whole + whole * (start * (read - 1) + end * (made - 1))


def _params(graph: Graph, space: LayerSpace, candidate: Candidate, use: Use) -> Cost:
    whole = float(candidate.params)
    if use.carried:
        return lambda read, made: whole * read
    if candidate.method is None:
        bias = float(
            sum(weight.size for name, weight in space.op.weights.items() if name == "bias")
        )
        return lambda read, made: (whole - bias) * read * made + bias * made
    start, end = _ends(
        _stages(graph, space, candidate), lambda stage, read, made: float(stage.params)
    )
    return lambda read, made: whole + whole * (start * (read - 1) + end * (made - 1))


#: A stage with what it reads and what it makes.
_Stage = tuple[Op, tuple[Tensor, ...], tuple[Tensor, ...]]


def _stages(graph: Graph, space: LayerSpace, candidate: Candidate) -> list[_Stage]:
    assert candidate.method is not None
    tensors: tuple[Tensor, ...] = (graph.input_tensors(space.op.name)[0],)
    found = []
    for stage in METHODS[candidate.method].outline(space.op, tensors[0], candidate.ranks):
        given = ops.infer(stage, tensors)
        found.append((stage, tensors, given))
        tensors = given
    return found


def _ends(
    stages: Sequence[_Stage], count: Callable[[Op, tuple[Tensor, ...], tuple[Tensor, ...]], float]
) -> tuple[float, float]:
    """The shares of all stages' counts that the first one with weights has, and the last; of a single one all goes with what is read."""
    counts = [count(*stage) for stage in stages]
    first = next((place for place, (stage, _, _) in enumerate(stages) if stage.weights), 0)
    total = max(sum(counts), 1.0)
    return (1.0, 0.0) if first == len(stages) - 1 else (counts[first] / total, counts[-1] / total)


def _timed(prices: Prices, space: LayerSpace, candidate: Candidate, use: Use) -> Cost:
    """The time of all calls at every width that they may get.

    Where more groups of filters meet than can be told one by one, it is bilinear, fitted at a few
    widths in relative least squares.
    """
    whole, reads, mades, split = (
        candidate.latency,
        _levels(use.read),
        _levels(use.made),
        apart(candidate, use),
    )
    shares = tuple(
        dict.fromkeys(
            (*product(reads, (1.0,)), *product((1.0,), mades)) if split else product(reads, mades)
        )
    )
    calls = prices.executed.calls(space, candidate)
    times = np.sum(
        [prices.narrowed(parts, shares, carried=use.carried) for parts in calls if parts], axis=0
    )
    if not whole or not np.all(times > 0):
        return lambda read, made: whole
    times *= whole / times[shares.index((1.0, 1.0))]
    if FEW in (reads, mades):
        columns = [np.ones(len(shares)), *np.array(shares).T, np.prod(shares, axis=1)]
        found = np.linalg.lstsq(np.stack(columns, 1) / times[:, None], np.ones_like(times))[0]
        fixed, by_read, by_made, by_both = (whole * found / found.sum()).tolist()
        return lambda read, made: fixed + by_read * read + by_made * made + by_both * read * made
    known = {
        (_place(read), _place(made)): time
        for (read, made), time in zip(shares, times.tolist(), strict=True)
    }
    one = _place(1.0)
    if split:
        return lambda read, made: known[_place(read), one] + known[one, _place(made)] - whole
    return lambda read, made: known[_place(read), _place(made)]


def _levels(share: Share) -> tuple[float, ...]:
    """What a share may come to; ``FEW`` values where these are too many."""
    sums = {_place(share.fixed): share.fixed}
    for values in share.by.values():
        sums = {
            _place(each + value): each + value
            for each in sums.values()
            for value in values.tolist()
        }
        if len(sums) > MANY:
            return FEW
    return tuple({**sums, _place(1.0): 1.0}.values())


def _place(share: float) -> float:
    """The same number for sums of the same shares in any order."""
    return round(
        share + 3e-11, 9
    )  # what is added keeps fractions of powers of two from lying between two roundings
