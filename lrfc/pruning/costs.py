"""Costs of an op after pruning, as functions of the kept fractions of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

#: The cost of an op for the kept fractions r of its input channels and m of its output channels.
Cost = Callable[[float, float], float]

#: The quantities of a candidate that depend on channels.
QUANTITIES = ("macs", "params", "latency")
#: Most kept fractions of one side of an op that are evaluated one by one, and those that are
#: evaluated where there are more.
MANY, FEW = 200, (0.2, 0.4, 0.6, 0.8, 1.0)


def costs(
    graph: Graph, space: LayerSpace, candidate: Candidate, use: Use, prices: Prices | None
) -> dict[str, Cost]:
    """The cost of a candidate in each of ``QUANTITIES``.

    MACs and parameters are exact. Those of an unfactorized layer are proportional to both kept
    fractions, its bias to that of the outputs. Of a factorized layer, the first factor layer
    depends on the inputs and the last one on the outputs. The latency is that of the narrower ops;
    without ``prices`` it is proportional to the MACs.
    """
    macs, params = (count(graph, space, candidate, use) for count in (_macs, _params))
    if prices is not None:
        return {"macs": macs, "params": params, "latency": _latency(prices, space, candidate, use)}
    scale = candidate.latency / max(candidate.macs, 1)
    return {"macs": macs, "params": params, "latency": lambda r, m: scale * macs(r, m)}


def narrower(graph: Graph, shares: Shares, executed: Executed) -> Iterator[Workload]:
    """The workloads of a graph at every width that the choices allow."""
    for op in graph:
        use = shares.use(op)
        for workloads in executed.ops((op.name,)):
            for r, m in product(_levels(use.inputs), _levels(use.outputs)):
                yield from narrowed(workloads, r, m, carried=use.channelwise)


def apart(candidate: Candidate, use: Use) -> bool:
    """Whether inputs and outputs concern different ops: the first and last factor layer."""
    return candidate.method is not None and not use.channelwise


def _macs(graph: Graph, space: LayerSpace, candidate: Candidate, use: Use) -> Cost:
    whole = float(candidate.macs)
    if not apart(candidate, use):
        return lambda r, m: whole * r * m
    first, last = _ends(
        _factor_layers(graph, space, candidate),
        lambda layer, inputs, outputs: float(ops.macs(layer, inputs, outputs)),
    )
    return lambda r, m: whole + whole * (first * (r - 1) + last * (m - 1))


def _params(graph: Graph, space: LayerSpace, candidate: Candidate, use: Use) -> Cost:
    whole = float(candidate.params)
    if use.channelwise:
        return lambda r, m: whole * r
    if candidate.method is None:
        bias = float(
            sum(weight.size for name, weight in space.op.weights.items() if name == "bias")
        )
        return lambda r, m: (whole - bias) * r * m + bias * m
    first, last = _ends(
        _factor_layers(graph, space, candidate), lambda layer, _, __: float(layer.params)
    )
    return lambda r, m: whole + whole * (first * (r - 1) + last * (m - 1))


#: A factor layer with its input tensors and its output tensors.
_FactorLayer = tuple[Op, tuple[Tensor, ...], tuple[Tensor, ...]]


def _factor_layers(graph: Graph, space: LayerSpace, candidate: Candidate) -> list[_FactorLayer]:
    assert candidate.method is not None
    tensors: tuple[Tensor, ...] = (graph.input_tensors(space.op.name)[0],)
    layers = []
    for layer in METHODS[candidate.method].outline(space.op, tensors[0], candidate.ranks):
        outputs = ops.infer(layer, tensors)
        layers.append((layer, tensors, outputs))
        tensors = outputs
    return layers


def _ends(
    layers: Sequence[_FactorLayer],
    count: Callable[[Op, tuple[Tensor, ...], tuple[Tensor, ...]], float],
) -> tuple[float, float]:
    """The fractions of the total count in the first factor layer with weights, and in the last.

    Of a single factor layer with weights, everything depends on the inputs.
    """
    counts = [count(*layer) for layer in layers]
    first = next((place for place, (layer, _, _) in enumerate(layers) if layer.weights), 0)
    total = max(sum(counts), 1.0)
    return (1.0, 0.0) if first == len(layers) - 1 else (counts[first] / total, counts[-1] / total)


def _latency(prices: Prices, space: LayerSpace, candidate: Candidate, use: Use) -> Cost:
    """The latency of all calls at every width that the choices allow.

    Where the groups that meet allow too many widths, it is a bilinear function, fitted at a few of
    them by relative least squares.
    """
    whole = candidate.latency
    levels_r, levels_m = _levels(use.inputs), _levels(use.outputs)
    separate = apart(candidate, use)
    pairs: Iterable[tuple[float, float]] = (
        (*product(levels_r, (1.0,)), *product((1.0,), levels_m))
        if separate
        else product(levels_r, levels_m)
    )
    widths = tuple(dict.fromkeys(pairs))
    calls = prices.executed.calls(space, candidate)
    times = np.sum(
        [
            prices.narrowed(workloads, widths, carried=use.channelwise)
            for workloads in calls
            if workloads
        ],
        axis=0,
    )
    if not whole or not np.all(times > 0):
        return lambda r, m: whole
    times *= whole / times[widths.index((1.0, 1.0))]
    if FEW in (levels_r, levels_m):
        columns = [np.ones(len(widths)), *np.array(widths).T, np.prod(widths, axis=1)]
        solution = np.linalg.lstsq(np.stack(columns, 1) / times[:, None], np.ones_like(times))[0]
        constant, by_r, by_m, by_both = (whole * solution / solution.sum()).tolist()
        return lambda r, m: constant + by_r * r + by_m * m + by_both * r * m
    table = {(_key(r), _key(m)): time for (r, m), time in zip(widths, times.tolist(), strict=True)}
    one = _key(1.0)
    if separate:
        return lambda r, m: table[_key(r), one] + table[one, _key(m)] - whole
    return lambda r, m: table[_key(r), _key(m)]


def _levels(share: Share) -> tuple[float, ...]:
    """The values that a kept fraction may have; ``FEW`` of them where there are too many."""
    sums = {_key(share.fixed): share.fixed}
    for values in share.by.values():
        sums = {
            _key(partial + value): partial + value
            for partial in sums.values()
            for value in values.tolist()
        }
        if len(sums) > MANY:
            return FEW
    return tuple({**sums, _key(1.0): 1.0}.values())


def _key(fraction: float) -> float:
    """A rounded fraction: the same number for sums of the same terms in any order."""
    # Fractions of powers of two lie in the middle between two roundings; this moves them off it.
    return round(fraction + 3e-11, 9)
