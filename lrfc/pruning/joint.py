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
from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.graph import Graph, Tensor
from lrfc.pruning.room import Room
from lrfc.pruning.shares import Shares, Use
from lrfc.pruning.space import FilterSpace, Keep
from lrfc.search import allocate as exact
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.cost import arena

#: Candidates of a layer that are weighed: the product of ranks and filters is large, and close ranks differ little.
CANDIDATES = 16
#: What the optimum may be missed by, relative, and seconds that one programme may take.
GAP, SECONDS = 1e-3, 30.0
_COSTS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Joint:
    """The choice of every layer, at the costs that it has between what is left of its neighbours, and of every group that loses units.

    ``beside``: what the layers cost that have no choice of their own.
    """

    chosen: tuple[Candidate, ...]
    keeps: Mapping[str, Keep]
    beside: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Variables:
    """A layer's columns in the programme; see lrfc.pruning.room.Layer."""

    space: LayerSpace
    use: Use
    candidates: Sequence[Candidate]
    chosen: Sequence[int]
    joined: Mapping[tuple[int, str], Sequence[int]]


def allocate(
    graph: Graph,
    spaces: Sequence[LayerSpace],
    filters: FilterSpace,
    limits: Mapping[str, float],
    minimise: str = "impact",
    rooms: Sequence[Room] = (),
) -> Joint:
    """The candidate of each layer and the units of each group that together have the least ``minimise``, with each limited quantity within its limit.

    ``limits``: bounds on 'macs', 'params', 'latency' or 'impact', summed over these layers and all others that filters are cut from or read by.
    ``rooms``: activation memory. A factorized layer's cost is linear in what is left of its inputs and outputs, for given ranks: its first stage reads,
    its last stage makes. A whole layer's is their product. Both are exact in the programme: for each pair of choices there is a variable whose margins
    are the choices (the local polytope of a pairwise model), so only the choices themselves need to be integers. BudgetError when nothing is within.
    """
    return _Programme(graph, spaces, filters, rooms, _alone(graph, spaces, limits, minimise)).solved(limits, minimise)


def least_room(graph: Graph, spaces: Sequence[LayerSpace], filters: FilterSpace, itemsize: int) -> float:
    """The fewest bytes of activations, at ``itemsize`` bytes a value, that ranks and filters together leave alive at once."""
    return _Programme(graph, spaces, filters, (), frozenset()).least_room(itemsize)


def _alone(graph: Graph, spaces: Sequence[LayerSpace], limits: Mapping[str, float], minimise: str) -> frozenset[Candidate]:
    """The candidates that are best without cutting any filters: always weighed, so that cutting is never worse."""
    outside = others(graph, spaces)
    try:
        own = {quantity: limit - outside.get(quantity, 0) for quantity, limit in limits.items()}
        return frozenset(exact.allocate([pareto(space.candidates) for space in spaces], own, minimise))
    except BudgetError:
        return frozenset()


class _Programme:
    def __init__(self, graph: Graph, spaces: Sequence[LayerSpace], filters: FilterSpace, rooms: Sequence[Room], always: frozenset[Candidate]) -> None:
        self._graph, self._filters, self._always = graph, filters, always
        self._costs: dict[str, list[float]] = {name: [] for name in (*_COSTS, "impact", "room")}
        self._integer: list[int] = []
        self._rows: list[tuple[list[int], list[float], float, float]] = []
        self._shares = Shares(graph, filters)
        self._keeps = {name: [self._add(integer=True, impact=keep.impact) for keep in keeps] for name, keeps in filters.choices.items()}
        for columns in self._keeps.values():
            self._row(columns, 1, 1)
        self._own = [self._layer(space, self._shares.use(space.op)) for space in spaces]
        self._others = [self._layer(space, self._shares.use(space.op)) for space in _others(graph, spaces)]
        for room in rooms:
            for columns, values, limit in room.rows(graph, self._shares, self._keeps, self._own):
                self._rows.append((columns, values, -np.inf, limit))

    # -- variables -------------------------------------------------------------------------------------------------------------

    def _add(self, *, integer: bool = False, **costs: float) -> int:
        for name, values in self._costs.items():
            values.append(costs.get(name, 0.0))
        self._integer.append(int(integer))
        return len(self._integer) - 1

    def _row(self, columns: Sequence[int], low: float, high: float, minus: Sequence[int] = ()) -> None:
        self._rows.append(([*columns, *minus], [1.0] * len(columns) + [-1.0] * len(minus), low, high))

    def _layer(self, space: LayerSpace, use: Use) -> Variables:
        candidates = _thinned(space, self._always)
        chosen: list[int] = []
        joined: dict[str, list[list[int]]] = {name: [[] for _ in self._keeps[name]] for name in use.groups}
        parts: dict[tuple[int, str], list[int]] = {}
        for number, candidate in enumerate(candidates):
            split = _split(self._graph, space, candidate)
            constant = {q: r * use.read.fixed + m + d * use.made.fixed for q, (r, m, d) in split.items()}
            whole = {q: getattr(candidate, q) for q in _COSTS} if candidate.method is None else None
            if whole is not None:
                constant = {q: v * use.read.fixed * use.made.fixed for q, v in whole.items()}
            chosen.append(self._add(integer=True, impact=candidate.impact, **constant))
            for name in use.groups:
                read, made = (share.by.get(name, np.zeros(len(self._keeps[name]))) for share in (use.read, use.made))
                columns = []
                for k in range(len(self._keeps[name])):
                    if whole is not None:
                        each = read[k] * use.made.fixed + made[k] * use.read.fixed + read[k] * made[k]
                        costs = {q: v * each for q, v in whole.items()}
                    else:
                        costs = {q: r * read[k] + d * made[k] for q, (r, _, d) in split.items()}
                    columns.append(self._add(**costs))
                    joined[name][k].append(columns[-1])
                self._row(columns, 0, 0, [chosen[-1]])
                parts[number, name] = columns
            if whole is not None:
                self._pairs(use, whole, {name: parts[number, name] for name in use.groups})
        self._row(chosen, 1, 1)
        for name, by_choice in joined.items():
            for k, columns in enumerate(by_choice):
                self._row(columns, 0, 0, [self._keeps[name][k]])
        return Variables(space, use, candidates, chosen, parts)

    def _pairs(self, use: Use, whole: Mapping[str, float], margins: Mapping[str, Sequence[int]]) -> None:
        """A whole layer between two groups costs the product of what is left of both."""
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
                    [[self._add(**{q: v * factor[k, m] for q, v in whole.items()}) for m in range(factor.shape[1])] for k in range(len(factor))]
                )
                for k, column in enumerate(margins[one]):
                    self._row(columns[k].tolist(), 0, 0, [column])
                for m, column in enumerate(margins[other]):
                    self._row(columns[:, m].tolist(), 0, 0, [column])

    # -- solving ---------------------------------------------------------------------------------------------------------------

    def least_room(self, itemsize: int) -> float:
        """What bounds every step's bytes is a variable of its own, a share of what the original needs."""
        whole = max(arena(self._graph, itemsize).timeline.values())
        share = self._add(room=float(whole))
        for columns, values, limit in Room(itemsize, 0).rows(self._graph, self._shares, self._keeps, self._own):
            self._rows.append(([*columns, share], [*values, -float(whole)], -np.inf, limit))
        return float(whole * self._optimum({}, "room")[share])

    def solved(self, limits: Mapping[str, float], minimise: str) -> Joint:
        """What the optimum chooses."""
        chosen = self._optimum(limits, minimise)
        at = {name: int(np.argmax(chosen[columns])) for name, columns in self._keeps.items()}
        own, others = (
            [_between(self._graph, layer.space, layer.candidates[int(np.argmax(chosen[layer.chosen]))], layer.use, at) for layer in layers]
            for layers in (self._own, self._others)
        )
        keeps = {name: keep for name, k in at.items() if (keep := self._filters.choices[name][k]).cuts}
        return Joint(tuple(own), keeps, {quantity: float(sum(getattr(c, quantity) for c in others)) for quantity in _COSTS})

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


def others(graph: Graph, spaces: Sequence[LayerSpace]) -> dict[str, float]:
    """MACs and parameters of the layers that have no choice of their own, but lose what their neighbours lose."""
    found = [space.whole for space in _others(graph, spaces)]
    return {quantity: float(sum(getattr(c, quantity) for c in found)) for quantity in _COSTS}


def _others(graph: Graph, spaces: Sequence[LayerSpace]) -> list[LayerSpace]:
    known = {space.op.name for space in spaces}
    found = []
    for op in graph.layers():
        if op.name in known or "kernel" not in op.weights or op.origin is not None:
            continue
        macs = sum(ops.macs(call, graph.input_tensors(call.name), graph.tensors(call.name)) for call in graph.calls(op))
        whole = Candidate(op.name, None, (), op.params, macs)
        found.append(LayerSpace(op, tuple(call.name for call in graph.calls(op)), (whole,)))
    return found


def _thinned(space: LayerSpace, always: frozenset[Candidate]) -> list[Candidate]:
    """The layer as it is, those of its candidates that are always weighed, and of those that no other one beats an even choice along their MACs."""
    good = [c for c in pareto(space.candidates) if c.method is not None]
    good.sort(key=lambda c: (c.macs, c.params))
    if len(good) > CANDIDATES:
        even = {id(good[round(i)]) for i in np.linspace(0, len(good) - 1, CANDIDATES)}
        good = [c for c in good if id(c) in even or c in always]
    return [*([] if space.excluded else [space.whole]), *good]


def _split(graph: Graph, space: LayerSpace, candidate: Candidate) -> dict[str, tuple[float, float, float]]:
    """What of each cost of a candidate goes with what it reads, with neither, and with what it makes."""
    if candidate.method is None:
        return {quantity: (float(getattr(candidate, quantity)), 0.0, 0.0) for quantity in _COSTS}
    source = graph.input_tensors(space.op.name)[0]
    stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
    macs, params = list[float](), list[float]()
    tensors: tuple[Tensor, ...] = (source,)
    for stage in stages:
        made = ops.infer(stage, tensors)
        macs.append(float(ops.macs(stage, tensors, made)))
        params.append(float(stage.params))
        tensors = made
    if "Depthwise" in space.op.kind:  # every stage has a filter for each channel
        return {q: (float(getattr(candidate, q)), 0.0, 0.0) for q in _COSTS}
    first = next((i for i, stage in enumerate(stages) if stage.weights), 0)
    shares = {
        name: (values[first] / max(sum(values), 1), values[-1] / max(sum(values), 1)) if first < len(values) - 1 else (1.0, 0.0)
        for name, values in (("macs", macs), ("params", params))
    }
    shares["latency"] = shares["macs"]
    return {q: (r * getattr(candidate, q), (1 - r - m) * getattr(candidate, q), m * getattr(candidate, q)) for q, (r, m) in shares.items()}


def _between(graph: Graph, space: LayerSpace, candidate: Candidate, use: Use, at: Mapping[str, int]) -> Candidate:
    """A candidate at the costs that it has when these choices are made."""
    read, made = use.read.at(at), use.made.at(at)
    if candidate.method is None:
        found = {q: getattr(candidate, q) * read * made for q in _COSTS}
    else:
        found = {q: r * read + m + d * made for q, (r, m, d) in _split(graph, space, candidate).items()}
    return replace(candidate, macs=round(found["macs"]), params=round(found["params"]), latency=found["latency"])


__all__ = ["Joint", "allocate", "least_room", "others"]
