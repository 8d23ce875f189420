"""What an op costs when some of its channels are gone: a function of the shares that are left of what it reads and makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.graph import Graph, Tensor
from lrfc.pruning.shares import Share, Use
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.pricing import Prices
from lrfc.search.signature import Signature

#: The quantities of a candidate that depend on channels.
QUANTITIES = ("macs", "params", "latency")
#: Shares of each side at which times are looked at.
LOOKED_AT = 5


@dataclass(frozen=True)
class Cost:
    """``fixed`` + ``read``·r + ``made``·m + ``both``·r·m, for the shares r of what is read and m of what is made that are left."""

    fixed: float = 0.0
    read: float = 0.0
    made: float = 0.0
    both: float = 0.0

    def at(self, read: float, made: float) -> float:
        """The cost at these shares."""
        return self.fixed + self.read * read + self.made * made + self.both * read * made


def costs(graph: Graph, space: LayerSpace, candidate: Candidate, use: Use, prices: Prices | None) -> dict[str, Cost]:
    """The cost of a candidate in each of ``QUANTITIES``.

    MACs and parameters are exact: those of a whole layer go with both sides, those of a factorized one's first stage with what it reads and of its last
    with what it makes. Time is that of the ops at a few shares, fitted; it follows the MACs where there are no ``prices``.
    """
    found = {quantity: _exact(graph, space, candidate, quantity) for quantity in ("macs", "params")}
    whole = candidate.latency
    if prices is None:
        macs = found["macs"]
        scale = whole / max(macs.at(1, 1), 1)
        return found | {"latency": Cost(*(scale * each for each in (macs.fixed, macs.read, macs.made, macs.both)))}
    return found | {"latency": _timed(whole, prices, prices.executed.calls(space, candidate), use)}


def _timed(whole: float, prices: Prices, calls: Sequence[tuple[Signature, ...]], use: Use) -> Cost:
    """The time of ops that take ``whole`` at their full width, of all calls of a layer: least squares of the relative error over the shares."""
    reads, mades = _levels(use.read), _levels(use.made)
    shares = tuple(product(reads, mades))
    times = np.sum([prices.narrowed(parts, shares, carried=use.carried) for parts in calls if parts], axis=0)
    if not np.all(times > 0):
        return Cost(fixed=whole)
    r, m = np.array(shares).T
    columns = {"fixed": np.ones_like(r)}
    if len(reads) > 1:
        columns["read"] = r
    if len(mades) > 1:
        columns["made"] = m
    if len(columns) > 2:
        columns["both"] = r * m
    found = np.linalg.lstsq(np.stack(list(columns.values()), 1) / times[:, None], np.ones_like(times))[0]
    return Cost(**dict(zip(columns, (whole * found / found.sum()).tolist(), strict=True)))


def _exact(graph: Graph, space: LayerSpace, candidate: Candidate, quantity: str) -> Cost:
    value = float(getattr(candidate, quantity))
    if candidate.method is None or "Depthwise" in space.op.kind:  # every stage of a depthwise layer has a filter for each channel
        return Cost(both=value)
    stages = METHODS[candidate.method].outline(space.op, graph.input_tensors(space.op.name)[0], candidate.ranks)
    tensors: tuple[Tensor, ...] = (graph.input_tensors(space.op.name)[0],)
    parts = []
    for stage in stages:
        made = ops.infer(stage, tensors)
        parts.append(float(ops.macs(stage, tensors, made) if quantity == "macs" else stage.params))
        tensors = made
    first = next((place for place, stage in enumerate(stages) if stage.weights), 0)
    if first == len(stages) - 1:
        return Cost(read=value)
    read, made_ = (value * parts[place] / max(sum(parts), 1) for place in (first, -1))
    return Cost(fixed=value - read - made_, read=read, made=made_)


def _levels(share: Share) -> Sequence[float]:
    """Some of the values that a share may take, 1 among them."""
    if not share.by:
        return (1.0,)
    least = share.fixed + sum(float(values.min()) for values in share.by.values())
    return tuple(np.linspace(least, 1.0, LOOKED_AT).tolist())
