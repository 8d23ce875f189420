"""Ranks and filters chosen together: one mixed-integer program over the candidates of every layer and the units that every group keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lrfc.costs.arena import arena
from lrfc.errors import BudgetError
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.pruning.costs import QUANTITIES, Cost, apart, costs
from lrfc.pruning.kept_fractions import Shares, Use
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.space import FilterSpace, Keep
from lrfc.search import allocate as exact
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.pricing import Prices

#: Candidates of a layer that are weighed: the product of ranks and filters is large, and close
#: ranks differ little.
CANDIDATES = 16
#: What the optimum may be missed by, relative, and seconds that one program may take.
GAP, SECONDS = 1e-3, 60.0
#: Most combinations of the choices of groups that meet in an op.
COMBINATIONS = 200
#: Programmes that are solved at most until a limit on the time is kept.
TURNS = 6


class UnsolvedError(BudgetError):
    """Not a single choice was found in time; there may be one."""


@dataclass(frozen=True)
class Joint:
    """The choice of every layer, at the costs that it has between what is left of its neighbours, and of every group that loses units.

    ``beside``: what everything costs that has no choice of its own.
    """

    chosen: tuple[Candidate, ...]
    keeps: Mapping[str, Keep]
    beside: Mapping[str, float]

    def cost(self, quantity: str) -> float:
        """The MACs, parameters or time of all of it."""
        return self.beside[quantity] + float(sum(getattr(c, quantity) for c in self.chosen))


@dataclass(frozen=True, eq=False)
class Variables:
    """A layer's columns in the MILP; see lrfc.pruning.memory.Layer.

    ``costs``: of each candidate.
    """

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
    minimise: str = "divergence",
    rooms: Sequence[PeakMemory] = (),
    prices: Prices | None = None,
) -> Joint:
    """The candidate of each layer and the units of each group that together have the least ``minimise``, with each limited quantity within its limit.

    ``limits``: bounds on 'macs', 'params', 'latency' or 'divergence', summed over these layers and all
    else that loses channels with them. ``rooms``: activation memory. ``prices``: what ops take, at
    any width; without them time follows the MACs. A factorized layer's MACs are linear in what is
    left of its inputs and outputs, for given ranks: its first stage reads, its last stage makes. A
    whole layer's are their product. Both are exact in the MILP, and so is the time of an op
    between two groups: for each pair of choices there is a variable whose margins are the choices
    (the local polytope of a pairwise model), so only the choices themselves need to be integers.
    BudgetError when nothing is within, UnsolvedError when nothing was found in time.
    """
    return _Programme(
        graph, spaces, filters, rooms, _alone(graph, spaces, limits, minimise, prices), prices
    ).solved(limits, minimise)


def least_room(
    graph: Graph, spaces: Sequence[LayerSpace], filters: FilterSpace, itemsize: int
) -> float:
    """The fewest bytes of activations, at ``itemsize`` bytes a value, that ranks and filters together leave alive at once."""
    return _Programme(graph, spaces, filters, (), frozenset(), None).least_room(itemsize)


def _alone(
    graph: Graph,
    spaces: Sequence[LayerSpace],
    limits: Mapping[str, float],
    minimise: str,
    prices: Prices | None,
) -> frozenset[Candidate]:
    """The candidates that are best without cutting any filters: always weighed, so that cutting is never worse."""
    outside = others(graph, spaces, prices)
    try:
        own = {quantity: limit - outside.get(quantity, 0) for quantity, limit in limits.items()}
        return frozenset(
            exact.allocate([pareto(space.candidates) for space in spaces], own, minimise)
        )
    except BudgetError:
        return frozenset()


class _Programme:
    def __init__(
        self,
        graph: Graph,
        spaces: Sequence[LayerSpace],
        filters: FilterSpace,
        rooms: Sequence[PeakMemory],
        always: frozenset[Candidate],
        prices: Prices | None,
    ) -> None:
        self._graph, self._filters, self._always, self._prices = graph, filters, always, prices
        self._costs: dict[str, list[float]] = {
            name: [] for name in (*QUANTITIES, "divergence", "room")
        }
        self._integer: list[int] = []
        self._rows: list[tuple[list[int], list[float], float, float]] = []
        self._shares = Shares(graph, filters)
        self._keeps = {
            name: [self._add({"divergence": keep.divergence}, integer=True) for keep in keeps]
            for name, keeps in filters.choices.items()
        }
        for columns in self._keeps.values():
            self._row(columns, 1, 1)
        self._own = [self._layer(space, self._shares.use(space.op)) for space in spaces]
        self._others = [
            self._layer(space, self._shares.use(space.op))
            for space in _others(graph, spaces, prices)
        ]
        for room in rooms:
            for columns, values, limit in room.rows(graph, self._shares, self._keeps, self._own):
                self._rows.append((columns, values, -np.inf, limit))

    # -- variables ---------------------------------------------------------------------------------

    def _add(self, costs: Mapping[str, float], *, integer: bool = False) -> int:
        for name, values in self._costs.items():
            values.append(costs.get(name, 0.0))
        self._integer.append(int(integer))
        return len(self._integer) - 1

    def _row(
        self, columns: Sequence[int], low: float, high: float, minus: Sequence[int] = ()
    ) -> None:
        self._rows.append(
            ([*columns, *minus], [1.0] * len(columns) + [-1.0] * len(minus), low, high)
        )

    def _layer(self, space: LayerSpace, use: Use) -> Variables:
        candidates = _thinned(space, self._always)
        found = [
            costs(self._graph, space, candidate, use, self._prices) for candidate in candidates
        ]
        chosen: list[int] = []
        parts: dict[tuple[int, str], list[int]] = {}
        for number, (candidate, cost) in enumerate(zip(candidates, found, strict=True)):
            chosen.append(
                self._add(_at(cost, use) | {"divergence": candidate.divergence}, integer=True)
            )
            for name in use.groups:
                parts[number, name] = [self._add({}) for _ in self._keeps[name]]
                self._row(parts[number, name], 0, 0, [chosen[-1]])
            sides = apart(candidate, use) and not use.read.by.keys() & use.made.by.keys()
            for names in [use.read.by, use.made.by] if sides else [use.groups]:
                self._together(cost, use, {name: parts[number, name] for name in names})
        self._row(chosen, 1, 1)
        for name in use.groups:
            for k, keep in enumerate(self._keeps[name]):
                self._row(
                    [parts[number, name][k] for number in range(len(candidates))], 0, 0, [keep]
                )
        return Variables(space, use, candidates, found, chosen, parts)

    def _together(
        self, cost: Mapping[str, Cost], use: Use, margins: Mapping[str, Sequence[int]]
    ) -> None:
        """What the choices of some groups add to the cost: a variable for each combination of them, whose margins are the choices.

        Of many groups the combinations are too many: then those of one that is read with one that
        is made. That is exact for products of both shares, as MACs are, and near for times.
        """
        if prod(len(columns) for columns in margins.values()) <= COMBINATIONS:
            self._table(margins, lambda chosen: _added(cost, use, chosen))
            return
        for name, columns in margins.items():
            self._table({name: columns}, lambda chosen: _added(cost, use, chosen))
        for one, other in combinations(margins, 2):
            if (one in use.read.by and other in use.made.by) or (
                other in use.read.by and one in use.made.by
            ):
                self._table(
                    {name: margins[name] for name in (one, other)},
                    lambda chosen: _beyond(cost, use, chosen),
                )

    def _table(
        self,
        margins: Mapping[str, Sequence[int]],
        costs: Callable[[Mapping[str, int]], Mapping[str, float]],
    ) -> None:
        """A variable for each combination of choices, at what it costs; for one group those that there are."""
        if len(margins) == 1:
            ((name, columns),) = margins.items()
            for k, column in enumerate(columns):
                for quantity, value in costs({name: k}).items():
                    self._costs[quantity][column] += value
            return
        sums: dict[int, list[int]] = {
            column: [] for columns in margins.values() for column in columns
        }
        for each in product(*(range(len(columns)) for columns in margins.values())):
            added = self._add(costs(dict(zip(margins, each, strict=True))))
            for k, columns in zip(each, margins.values(), strict=True):
                sums[columns[k]].append(added)
        for column, parts in sums.items():
            self._row(parts, 0, 0, [column])

    # -- solving -----------------------------------------------------------------------------------

    def least_room(self, itemsize: int) -> float:
        """What bounds every step's bytes is a variable of its own, a share of what the original needs."""
        whole = max(arena(self._graph, itemsize).timeline.values())
        share = self._add({"room": float(whole)})
        for columns, values, limit in PeakMemory(itemsize, 0).rows(
            self._graph, self._shares, self._keeps, self._own
        ):
            self._rows.append(([*columns, share], [*values, -float(whole)], -np.inf, limit))
        return float(whole * self._optimum({}, "room")[share])

    def solved(self, limits: Mapping[str, float], minimise: str) -> Joint:
        """What the optimum chooses.

        Where three groups meet in an op, the MILP only nears its time: then the limit is
        lowered until the choice keeps it, or comes no nearer.
        """
        limit = limits.get("latency", np.inf)
        best = found = self._chosen(limits, minimise)
        asked = kept = limit
        for _ in range(TURNS):
            if found.cost("latency") <= limit * (1 + 1e-6):
                return found
            asked = asked * limit / found.cost("latency") if asked == kept else (asked + kept) / 2
            try:
                found = self._chosen({**limits, "latency": asked}, minimise)
            except BudgetError:  # by the MILP's own account; somewhat more may do
                continue
            kept = asked
            best = min(best, found, key=lambda each: each.cost("latency"))
        return best

    def _chosen(self, limits: Mapping[str, float], minimise: str) -> Joint:
        chosen = self._optimum(limits, minimise)
        at = {name: int(np.argmax(chosen[columns])) for name, columns in self._keeps.items()}
        own, others = (
            [_between(layer, int(np.argmax(chosen[layer.chosen])), at) for layer in layers]
            for layers in (self._own, self._others)
        )
        keeps = {
            name: keep for name, k in at.items() if (keep := self._filters.choices[name][k]).cuts
        }
        return Joint(
            tuple(own),
            keeps,
            {quantity: float(sum(getattr(c, quantity) for c in others)) for quantity in QUANTITIES},
        )

    def _optimum(self, limits: Mapping[str, float], minimise: str) -> NDArray[np.float64]:
        """The value of every variable."""
        count = len(self._integer)
        costs = {name: np.array(values) for name, values in self._costs.items()}
        goal = costs[minimise] / max(float(costs[minimise].max()), 1e-30)
        tie = costs["macs"] + costs["params"]
        objective = 1e6 * (goal + 1e-9 * tie / max(float(np.abs(tie).sum()), 1))
        data, rows, columns, low, high = [], [], [], [], []
        for number, (places, values, least, most) in enumerate(self._rows):
            unit = max(map(abs, values), default=0) or 1.0 if np.isinf(least) else 1.0
            data += [value / unit for value in values]
            rows += [number] * len(places)
            columns += places
            low.append(least / unit)
            high.append(most / unit)
        constraints = [
            LinearConstraint(
                csr_array((data, (rows, columns)), shape=(len(self._rows), count)), low, high
            )
        ]
        for quantity, limit in limits.items():
            if not limit > 0:
                raise BudgetError(f"the {quantity} budget cannot be met")
            # HiGHS keeps a limit within a relative 1e-6 of it: a budget is a promise.
            constraints.append(LinearConstraint(costs[quantity][None] / limit, -np.inf, 1 - 2e-6))
        options: dict[str, Any] = {"mip_rel_gap": GAP, "time_limit": SECONDS}
        result = milp(
            objective,
            integrality=np.array(self._integer),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options=options,
        )
        if result.x is None and result.status == 1:
            raise UnsolvedError(
                f"no choice of ranks and filters within the {' and '.join(limits) or 'memory'}"
                f" budgets was found in {SECONDS:g} s"
            )
        if result.x is None:
            raise BudgetError(
                f"the {' and '.join(limits) or 'memory'} budgets cannot be met by ranks and filters"
                " together"
            )
        return np.asarray(result.x)


def _at(
    cost: Mapping[str, Cost], use: Use, chosen: Mapping[str, int] = MappingProxyType({})
) -> dict[str, float]:
    """What it costs with these choices, and the first one for all other groups."""
    read, made = (
        use.read.at({**dict.fromkeys(use.read.by, 0), **chosen}),
        use.made.at({**dict.fromkeys(use.made.by, 0), **chosen}),
    )
    return {q: each(read, made) for q, each in cost.items()}


def _added(cost: Mapping[str, Cost], use: Use, chosen: Mapping[str, int]) -> dict[str, float]:
    """What these choices add to the cost with all first ones."""
    base = _at(cost, use)
    return {q: value - base[q] for q, value in _at(cost, use, chosen).items()}


def _beyond(cost: Mapping[str, Cost], use: Use, chosen: Mapping[str, int]) -> dict[str, float]:
    """What two choices together add beyond what each of them does."""
    one, other = ({name: k} for name, k in chosen.items())
    alone = _added(cost, use, one), _added(cost, use, other)
    return {q: value - alone[0][q] - alone[1][q] for q, value in _added(cost, use, chosen).items()}


def others(
    graph: Graph, spaces: Sequence[LayerSpace], prices: Prices | None = None
) -> dict[str, float]:
    """MACs, parameters and time of what has no choice of its own, but loses what its neighbours lose."""
    found = [space.whole for space in _others(graph, spaces, prices)]
    return {quantity: float(sum(getattr(c, quantity) for c in found)) for quantity in QUANTITIES}


def _others(graph: Graph, spaces: Sequence[LayerSpace], prices: Prices | None) -> list[LayerSpace]:
    """The other layers with weights, and where ops have prices all that takes time."""
    known = {call for space in spaces for call in space.calls}
    found = []
    for op in graph:
        calls = tuple(call.name for call in graph.calls(op)) if op.weights else (op.name,)
        if op.name in known or op.name != calls[0]:
            continue
        # A BatchNorm is folded into the layer before it; which of them are not is not known here.
        params = 0 if op.kind == "BatchNormalization" or op.origin is not None else op.params
        macs = (
            sum(
                ops.macs(graph.op(call), graph.input_tensors(call), graph.tensors(call))
                for call in calls
            )
            if op.origin is None
            else 0
        )
        time = 0.0 if prices is None else prices.time(calls)
        if params or macs or time:
            found.append(
                LayerSpace(op, calls, (Candidate(op.name, None, (), params, macs, latency=time),))
            )
    return found


def _thinned(space: LayerSpace, always: frozenset[Candidate]) -> list[Candidate]:
    """The layer as it is, and of its candidates that no other one beats an even choice along their MACs.

    Besides those that are always weighed, and the least in each quantity: what can be reached has
    to be.
    """
    good = [c for c in pareto(space.candidates) if c.method is not None]
    good.sort(key=lambda c: (c.macs, c.params))
    if len(good) > CANDIDATES:
        even = {id(good[round(i)]) for i in np.linspace(0, len(good) - 1, CANDIDATES)}
        even |= {id(min(good, key=attrgetter(quantity))) for quantity in QUANTITIES}
        good = [c for c in good if id(c) in even or c in always]
    return [*([] if space.excluded else [space.whole]), *good]


def _between(layer: Variables, number: int, at: Mapping[str, int]) -> Candidate:
    """A candidate at the costs that it has when these choices are made."""
    found = {
        q: cost(layer.use.read.at(at), layer.use.made.at(at))
        for q, cost in layer.costs[number].items()
    }
    return replace(
        layer.candidates[number],
        macs=round(found["macs"]),
        params=round(found["params"]),
        latency=found["latency"],
    )


__all__ = ["Joint", "UnsolvedError", "allocate", "least_room", "others"]
