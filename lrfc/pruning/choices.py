"""Choices of a layer in the MILP: its candidates, and their costs for choices of the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType

import numpy as np

from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.pruning.costs import QUANTITIES, Cost
from lrfc.pruning.kept_fractions import Use
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.pricing import Prices

#: Most candidates of a layer in the MILP: the product of ranks and filters is large, and close
#: ranks differ little.
CANDIDATES = 16


@dataclass(frozen=True, eq=False)
class Variables:
    """The columns of a layer in the MILP; see lrfc.pruning.memory.Layer.

    ``costs``: the costs of each candidate, by quantity.
    """

    space: LayerSpace
    use: Use
    candidates: Sequence[Candidate]
    costs: Sequence[Mapping[str, Cost]]
    chosen: Sequence[int]
    joined: Mapping[tuple[int, str], Sequence[int]]


def cost_at(
    cost: Mapping[str, Cost], use: Use, chosen: Mapping[str, int] = MappingProxyType({})
) -> dict[str, float]:
    """The cost of these choices, with the first choice of all other groups."""
    inputs = use.inputs.at({**dict.fromkeys(use.inputs.by, 0), **chosen})
    outputs = use.outputs.at({**dict.fromkeys(use.outputs.by, 0), **chosen})
    return {quantity: of(inputs, outputs) for quantity, of in cost.items()}


def cost_added(cost: Mapping[str, Cost], use: Use, chosen: Mapping[str, int]) -> dict[str, float]:
    """The difference between the cost of these choices and that of the first ones."""
    base = cost_at(cost, use)
    return {q: value - base[q] for q, value in cost_at(cost, use, chosen).items()}


def cost_interaction(
    cost: Mapping[str, Cost], use: Use, chosen: Mapping[str, int]
) -> dict[str, float]:
    """The cost that two choices add together, less the cost that each of them adds alone."""
    one, other = (cost_added(cost, use, {name: k}) for name, k in chosen.items())
    return {q: value - one[q] - other[q] for q, value in cost_added(cost, use, chosen).items()}


def others(
    graph: Graph, spaces: Sequence[LayerSpace], prices: Prices | None = None
) -> dict[str, float]:
    """The cost of the ops without candidates of their own, before pruning."""
    candidates = [space.whole for space in other_spaces(graph, spaces, prices)]
    return {
        quantity: float(sum(getattr(c, quantity) for c in candidates)) for quantity in QUANTITIES
    }


def other_spaces(
    graph: Graph, spaces: Sequence[LayerSpace], prices: Prices | None
) -> list[LayerSpace]:
    """The ops without candidates of their own that have a cost; latency counts with ``prices``."""
    with_candidates = {call for space in spaces for call in space.calls}
    unchosen = []
    for op in graph:
        calls = tuple(call.name for call in graph.calls(op)) if op.weights else (op.name,)
        if op.name in with_candidates or op.name != calls[0]:
            continue
        # A BatchNorm counts as folded into the layer before it; exceptions are not known here.
        params = 0 if op.kind == "BatchNormalization" or op.origin is not None else op.params
        macs = (
            sum(
                ops.macs(graph.op(call), graph.input_tensors(call), graph.tensors(call))
                for call in calls
            )
            if op.origin is None
            else 0
        )
        latency = 0.0 if prices is None else prices.time(calls)
        if params or macs or latency:
            candidate = Candidate(op.name, None, (), params, macs, latency=latency)
            unchosen.append(LayerSpace(op, calls, (candidate,)))
    return unchosen


def thinned(space: LayerSpace, always: frozenset[Candidate]) -> list[Candidate]:
    """The unfactorized layer, and about ``CANDIDATES`` of its undominated candidates.

    They are evenly spaced in the order of their MACs. Those in ``always`` stay, and so do the least
    in each quantity, so that the lowest budgets remain reachable.
    """
    undominated = [c for c in pareto(space.candidates) if c.method is not None]
    undominated.sort(key=lambda c: (c.macs, c.params))
    if len(undominated) > CANDIDATES:
        places = np.linspace(0, len(undominated) - 1, CANDIDATES)
        even = {id(undominated[round(i)]) for i in places}
        even |= {id(min(undominated, key=attrgetter(quantity))) for quantity in QUANTITIES}
        undominated = [c for c in undominated if id(c) in even or c in always]
    return [*([] if space.excluded else [space.whole]), *undominated]


def pruned(layer: Variables, number: int, at: Mapping[str, int]) -> Candidate:
    """A candidate with its costs for these choices of the groups."""
    cost = {
        quantity: of(layer.use.inputs.at(at), layer.use.outputs.at(at))
        for quantity, of in layer.costs[number].items()
    }
    return replace(
        layer.candidates[number],
        macs=round(cost["macs"]),
        params=round(cost["params"]),
        latency=cost["latency"],
    )
