"""Ranks and filters chosen together: one mixed-integer programme over the candidates of every layer and the units that every group keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lrfc.errors import BudgetError
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.pruning.costs import QUANTITIES, Cost, costs
from lrfc.pruning.room import Room
from lrfc.pruning.shares import Shares, Use
from lrfc.pruning.space import FilterSpace, Keep
from lrfc.search import allocate as exact
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.cost import arena
from lrfc.search.pricing import Prices

#: Candidates of a layer that are weighed: the product of ranks and filters is large, and close ranks differ little.
CANDIDATES = 16
#: What the optimum may be missed by, relative, and seconds that one programme may take.
GAP, SECONDS = 1e-3, 30.0


@dataclass(frozen=True)
class Joint:
    """The choice of every layer, at the costs that it has between what is left of its neighbours, and of every group that loses units.

    ``beside``: what everything costs that has no choice of its own.
    """

    chosen: tuple[Candidate, ...]
    keeps: Mapping[str, Keep]
    beside: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Variables:
    """A layer's columns in the programme; see lrfc.pruning.room.Layer. ``costs``: of each candidate."""

    space: LayerSpace
    use: Use
    candidates: Sequence[Candidate]
    costs: Sequence[Mapping[str, Cost]]
    chosen: Sequence[int]
    joined: Mapping[tuple[int, str], Sequence[int]]


def allocate(
    graph: Graph,
    spaces: Sequence[LayerSpace],
    filters: FilterSpace,
    limits: Mapping[str, float],
    minimise: str = "impact",
    rooms: Sequence[Room] = (),
    prices: Prices | None = None,
) -> Joint:
    """The candidate of each layer and the units of each group that together have the least ``minimise``, with each limited quantity within its limit.

    ``limits``: bounds on 'macs', 'params', 'latency' or 'impact', summed over these layers and all else that loses channels with them.
    ``rooms``: activation memory. ``prices``: what ops take, at any width; without them time follows the MACs. A factorized layer's MACs are linear in what
    is left of its inputs and outputs, for given ranks: its first stage reads, its last stage makes. A whole layer's are their product. Both are exact in
    the programme: for each pair of choices there is a variable whose margins are the choices (the local polytope of a pairwise model), so only the choices
    themselves need to be integers. BudgetError when nothing is within.
    """
    return _Programme(graph, spaces, filters, rooms, _alone(graph, spaces, limits, minimise, prices), prices).solved(limits, minimise)


def least_room(graph: Graph, spaces: Sequence[LayerSpace], filters: FilterSpace, itemsize: int) -> float:
    """The fewest bytes of activations, at ``itemsize`` bytes a value, that ranks and filters together leave alive at once."""
    return _Programme(graph, spaces, filters, (), frozenset(), None).least_room(itemsize)


def _alone(graph: Graph, spaces: Sequence[LayerSpace], limits: Mapping[str, float], minimise: str, prices: Prices | None) -> frozenset[Candidate]:
    """The candidates that are best without cutting any filters: always weighed, so that cutting is never worse."""
    outside = others(graph, spaces, prices)
    try:
        own = {quantity: limit - outside.get(quantity, 0) for quantity, limit in limits.items()}
        return frozenset(exact.allocate([pareto(space.candidates) for space in spaces], own, minimise))
    except BudgetError:
        return frozenset()


class _Programme:
    def __init__(
        self,
        graph: Graph,
        spaces: Sequence[LayerSpace],
        filters: FilterSpace,
        rooms: Sequence[Room],
        always: frozenset[Candidate],
        prices: Prices | None,
    ) -> None:
        self._graph, self._filters, self._always, self._prices = graph, filters, always, prices
        self._costs: dict[str, list[float]] = {name: [] for name in (*QUANTITIES, "impact", "room")}
        self._integer: list[int] = []
        self._rows: list[tuple[list[int], list[float], float, float]] = []
        self._shares = Shares(graph, filters)
        self._keeps = {name: [self._add({"impact": keep.impact}, integer=True) for keep in keeps] for name, keeps in filters.choices.items()}
        for columns in self._keeps.values():
            self._row(columns, 1, 1)
        self._own = [self._layer(space, self._shares.use(space.op)) for space in spaces]
        self._others = [self._layer(space, self._shares.use(space.op)) for space in _others(graph, spaces, prices)]
        for room in rooms:
            for columns, values, limit in room.rows(graph, self._shares, self._keeps, self._own):
                self._rows.append((columns, values, -np.inf, limit))

    # -- variables -------------------------------------------------------------------------------------------------------------

    def _add(self, costs: Mapping[str, float], *, integer: bool = False) -> int:
        for name, values in self._costs.items():
            values.append(costs.get(name, 0.0))
        self._integer.append(int(integer))
        return len(self._integer) - 1

    def _row(self, columns: Sequence[int], low: float, high: float, minus: Sequence[int] = ()) -> None:
        self._rows.append(([*columns, *minus], [1.0] * len(columns) + [-1.0] * len(minus), low, high))

    def _layer(self, space: LayerSpace, use: Use) -> Variables:
        candidates = _thinned(space, self._always)
        found = [costs(self._graph, space, candidate, use, self._prices) for candidate in candidates]
        chosen: list[int] = []
        joined: dict[str, list[list[int]]] = {name: [[] for _ in self._keeps[name]] for name in use.groups}
        parts: dict[tuple[int, str], list[int]] = {}
        for number, (candidate, cost) in enumerate(zip(candidates, found, strict=True)):
            constant = {q: c.at(use.read.fixed, use.made.fixed) for q, c in cost.items()}
            chosen.append(self._add({**constant, "impact": candidate.impact}, integer=True))
            for name in use.groups:
                read, made = (share.by.get(name, np.zeros(len(self._keeps[name]))) for share in (use.read, use.made))
                columns = []
                for k in range(len(self._keeps[name])):
                    more = {q: c.at(use.read.fixed + read[k], use.made.fixed + made[k]) - constant[q] for q, c in cost.items()}
                    columns.append(self._add(more))
                    joined[name][k].append(columns[-1])
                self._row(columns, 0, 0, [chosen[-1]])
                parts[number, name] = columns
            if any(c.both for c in cost.values()):
                self._pairs(use, cost, {name: parts[number, name] for name in use.groups})
        self._row(chosen, 1, 1)
        for name, by_choice in joined.items():
            for k, columns in enumerate(by_choice):
                self._row(columns, 0, 0, [self._keeps[name][k]])
        return Variables(space, use, candidates, found, chosen, parts)

    def _pairs(self, use: Use, cost: Mapping[str, Cost], margins: Mapping[str, Sequence[int]]) -> None:
        """What costs the product of what is left of both sides costs it for each pair of choices of two groups."""
        names = list(margins)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                tables = [
                    np.outer(a.by[one], b.by[other]) if one in a.by and other in b.by else None
                    for a, b in ((use.read, use.made), (use.made, use.read))
                ]
                both = [table for table in tables if table is not None]
                if not both:
                    continue
                factor = np.sum(both, axis=0)
                columns = np.array(
                    [[self._add({q: c.both * factor[k, m] for q, c in cost.items()}) for m in range(factor.shape[1])] for k in range(len(factor))]
                )
                for k, column in enumerate(margins[one]):
                    self._row(columns[k].tolist(), 0, 0, [column])
                for m, column in enumerate(margins[other]):
                    self._row(columns[:, m].tolist(), 0, 0, [column])

    # -- solving ---------------------------------------------------------------------------------------------------------------

    def least_room(self, itemsize: int) -> float:
        """What bounds every step's bytes is a variable of its own, a share of what the original needs."""
        whole = max(arena(self._graph, itemsize).timeline.values())
        share = self._add({"room": float(whole)})
        for columns, values, limit in Room(itemsize, 0).rows(self._graph, self._shares, self._keeps, self._own):
            self._rows.append(([*columns, share], [*values, -float(whole)], -np.inf, limit))
        return float(whole * self._optimum({}, "room")[share])

    def solved(self, limits: Mapping[str, float], minimise: str) -> Joint:
        """What the optimum chooses."""
        chosen = self._optimum(limits, minimise)
        at = {name: int(np.argmax(chosen[columns])) for name, columns in self._keeps.items()}
        own, others = ([_between(layer, int(np.argmax(chosen[layer.chosen])), at) for layer in layers] for layers in (self._own, self._others))
        keeps = {name: keep for name, k in at.items() if (keep := self._filters.choices[name][k]).cuts}
        return Joint(tuple(own), keeps, {quantity: float(sum(getattr(c, quantity) for c in others)) for quantity in QUANTITIES})

    def _optimum(self, limits: Mapping[str, float], minimise: str) -> NDArray[np.float64]:
        """The value of every variable."""
        count = len(self._integer)
        costs = {name: np.array(values) for name, values in self._costs.items()}
        goal = costs[minimise] / max(float(costs[minimise].max()), 1e-30)
        tie = costs["macs"] + costs["params"]
        objective = 1e6 * (goal + 1e-9 * tie / max(float(tie.sum()), 1))
        data, rows, columns, low, high = [], [], [], [], []
        for number, (places, values, least, most) in enumerate(self._rows):
            unit = max(map(abs, values), default=0) or 1.0 if np.isinf(least) else 1.0
            data += [value / unit for value in values]
            rows += [number] * len(places)
            columns += places
            low.append(least / unit)
            high.append(most / unit)
        constraints = [LinearConstraint(csr_array((data, (rows, columns)), shape=(len(self._rows), count)), low, high)]
        for quantity, limit in limits.items():
            if not limit > 0:
                raise BudgetError(f"the {quantity} budget cannot be met")
            # HiGHS keeps a limit within a relative 1e-6 of it: a budget is a promise.
            constraints.append(LinearConstraint(costs[quantity][None] / limit, -np.inf, 1 - 2e-6))
        options: dict[str, Any] = {"mip_rel_gap": GAP, "time_limit": SECONDS}
        result = milp(objective, integrality=np.array(self._integer), bounds=Bounds(0, 1), constraints=constraints, options=options)
        if result.x is None:
            raise BudgetError(f"the {' and '.join(limits) or 'memory'} budgets cannot be met by ranks and filters together")
        return np.asarray(result.x)


def others(graph: Graph, spaces: Sequence[LayerSpace], prices: Prices | None = None) -> dict[str, float]:
    """MACs, parameters and time of what has no choice of its own, but loses what its neighbours lose."""
    found = [space.whole for space in _others(graph, spaces, prices)]
    return {quantity: float(sum(getattr(c, quantity) for c in found)) for quantity in QUANTITIES}


def _others(graph: Graph, spaces: Sequence[LayerSpace], prices: Prices | None) -> list[LayerSpace]:
    """The other layers, and where ops have prices all that takes time."""
    known = {call for space in spaces for call in space.calls}
    found = []
    for op in graph:
        layer = "kernel" in op.weights and op.origin is None
        if op.name in known or (layer and graph.calls(op)[0].name != op.name):
            continue
        calls = tuple(call.name for call in graph.calls(op)) if layer else (op.name,)
        time = 0.0 if prices is None else prices.time(calls)
        if layer:
            macs = sum(ops.macs(graph.op(call), graph.input_tensors(call), graph.tensors(call)) for call in calls)
            found.append(LayerSpace(op, calls, (Candidate(op.name, None, (), op.params, macs, latency=time),)))
        elif time:
            found.append(LayerSpace(op, calls, (Candidate(op.name, None, (), 0, 0, latency=time),)))
    return found


def _thinned(space: LayerSpace, always: frozenset[Candidate]) -> list[Candidate]:
    """The layer as it is, those of its candidates that are always weighed, and of those that no other one beats an even choice along their MACs."""
    good = [c for c in pareto(space.candidates) if c.method is not None]
    good.sort(key=lambda c: (c.macs, c.params))
    if len(good) > CANDIDATES:
        even = {id(good[round(i)]) for i in np.linspace(0, len(good) - 1, CANDIDATES)}
        good = [c for c in good if id(c) in even or c in always]
    return [*([] if space.excluded else [space.whole]), *good]


def _between(layer: Variables, number: int, at: Mapping[str, int]) -> Candidate:
    """A candidate at the costs that it has when these choices are made."""
    found = {q: cost.at(layer.use.read.at(at), layer.use.made.at(at)) for q, cost in layer.costs[number].items()}
    return replace(layer.candidates[number], macs=round(found["macs"]), params=round(found["params"]), latency=found["latency"])


__all__ = ["Joint", "allocate", "least_room", "others"]
