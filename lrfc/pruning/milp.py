"""One MILP over the candidates of every layer and the units that every dependency group keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint
from scipy.sparse import csr_array

from lrfc.costs.arena import arena
from lrfc.errors import BudgetError
from lrfc.ir.graph import Graph
from lrfc.pruning.choices import (
    Variables,
    cost_added,
    cost_at,
    cost_interaction,
    other_spaces,
    others,
    pruned,
    thinned,
)
from lrfc.pruning.costs import QUANTITIES, Cost, apart, costs
from lrfc.pruning.kept_fractions import Shares, Use
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.space import FilterSpace, Keep
from lrfc.search import allocate as exact
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.pricing import Prices
from lrfc.search.solver import solved

#: The relative gap to the optimum at which the solver stops, and its time limit in seconds.
GAP, SECONDS = 1e-3, 60.0
#: Most combinations of the choices of groups that meet in an op.
COMBINATIONS = 200
#: Most MILPs that are solved until a latency limit is met.
TURNS = 6


class UnsolvedError(BudgetError):
    """The solver found no feasible solution in time; one may exist."""


@dataclass(frozen=True)
class Joint:
    """The candidate of every layer, with its costs after pruning, and the groups that lose units.

    ``pruned_cost``: by quantity, the cost of the ops without candidates of their own, after
    pruning.
    """

    chosen: tuple[Candidate, ...]
    keeps: Mapping[str, Keep]
    pruned_cost: Mapping[str, float]

    def cost(self, quantity: str) -> float:
        """The total MACs, parameters or latency."""
        return self.pruned_cost[quantity] + float(sum(getattr(c, quantity) for c in self.chosen))


def allocate(
    graph: Graph,
    spaces: Sequence[LayerSpace],
    filters: FilterSpace,
    limits: Mapping[str, float],
    minimise: str = "divergence",
    peak_memory: Sequence[PeakMemory] = (),
    prices: Prices | None = None,
) -> Joint:
    """The candidates and kept units with the minimum of one quantity within all limits.

    ``limits``: upper bounds on 'macs', 'params', 'latency', 'divergence' or 'tail', summed over
    these layers and the ops that are pruned with them. ``peak_memory``: bounds on the activations
    alive at once. ``prices``: latencies of ops at any width; without them the latency is
    proportional to the MACs.

    For given ranks, the MACs of a factorized layer are linear in the kept fractions of its inputs
    (first factor layer) and outputs (last factor layer). Those of an unfactorized layer are the
    product of both. The MILP represents both exactly, and so the latency of an op between two
    groups: each pair of choices has a variable whose margins are the choices (the local polytope
    of a pairwise model), so that only the choices themselves need to be integers.

    BudgetError if there is no solution, UnsolvedError if none was found in time.
    """
    unpruned = _best_unpruned(graph, spaces, limits, minimise, prices)
    program = Program(graph, spaces, filters, peak_memory, unpruned, prices)
    return program.solve(limits, minimise)


def least_peak_memory(
    graph: Graph, spaces: Sequence[LayerSpace], filters: FilterSpace, itemsize: int
) -> float:
    """The least peak memory of activations in bytes that ranks and filters reach together.

    A value has ``itemsize`` bytes.
    """
    return Program(graph, spaces, filters, (), frozenset(), None).least_peak_memory(itemsize)


def _best_unpruned(
    graph: Graph,
    spaces: Sequence[LayerSpace],
    limits: Mapping[str, float],
    minimise: str,
    prices: Prices | None,
) -> frozenset[Candidate]:
    """The optimal candidates without pruning; none if no candidates are within the limits.

    They are always part of the MILP, so that pruning never makes its optimum worse.
    """
    other_costs = others(graph, spaces, prices)
    remaining = {
        quantity: limit - other_costs.get(quantity, 0) for quantity, limit in limits.items()
    }
    try:
        return frozenset(
            exact.allocate([pareto(space.candidates) for space in spaces], remaining, minimise)
        )
    except BudgetError:
        return frozenset()


class Program:
    """The MILP, built column by column and row by row.

    ``always``: candidates that are not dropped, however many a layer has. ``costs``: the
    coefficient of every variable, by quantity.
    """

    def __init__(
        self,
        graph: Graph,
        spaces: Sequence[LayerSpace],
        filters: FilterSpace,
        peak_memory: Sequence[PeakMemory],
        always: frozenset[Candidate],
        prices: Prices | None,
    ) -> None:
        self._graph, self._filters, self._always, self._prices = graph, filters, always, prices
        self.costs: dict[str, list[float]] = {
            name: [] for name in (*QUANTITIES, "divergence", "tail", "peak_memory")
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
            for space in other_spaces(graph, spaces, prices)
        ]
        for bound in peak_memory:
            beside = [self._tail(bound.limit)] if bound.tail else []
            for columns, values, limit in bound.rows(graph, self._shares, self._keeps, self._own):
                sizes = [*values, *(bound.limit for _ in beside)]
                self._rows.append(([*columns, *beside], sizes, -np.inf, limit))

    # -- variables ---------------------------------------------------------------------------------

    def _add(self, costs: Mapping[str, float], *, integer: bool = False) -> int:
        """Add a variable, and return its column."""
        for name, values in self.costs.items():
            values.append(costs.get(name, 0.0))
        self._integer.append(int(integer))
        return len(self._integer) - 1

    def _row(
        self, columns: Sequence[int], low: float, high: float, minus: Sequence[int] = ()
    ) -> None:
        """Add the row low ≤ Σ columns − Σ minus ≤ high."""
        self._rows.append(
            ([*columns, *minus], [1.0] * len(columns) + [-1.0] * len(minus), low, high)
        )

    def _tail(self, limit: float) -> int:
        """Add a variable that bounds the bytes added to the tail, as a fraction of a limit."""
        fraction = self._add({})
        columns = [column for layer in self._own for column in layer.chosen]
        sizes = [self.costs["tail"][column] for column in columns]
        self._rows.append(([*columns, fraction], [*sizes, -limit], -np.inf, 0))
        return fraction

    def _layer(self, space: LayerSpace, use: Use) -> Variables:
        """Add the variables of a layer and the rows that tie them to the choices of its groups."""
        candidates = thinned(space, self._always)
        by_candidate = [
            costs(self._graph, space, candidate, use, self._prices) for candidate in candidates
        ]
        chosen: list[int] = []
        joined: dict[tuple[int, str], list[int]] = {}
        for number, (candidate, cost) in enumerate(zip(candidates, by_candidate, strict=True)):
            chosen.append(
                self._add(
                    {
                        **cost_at(cost, use),
                        "divergence": candidate.divergence,
                        "tail": candidate.tail,
                    },
                    integer=True,
                )
            )
            for name in use.groups:
                joined[number, name] = [self._add({}) for _ in self._keeps[name]]
                self._row(joined[number, name], 0, 0, [chosen[-1]])
            sides = apart(candidate, use) and not use.inputs.by.keys() & use.outputs.by.keys()
            for names in [use.inputs.by, use.outputs.by] if sides else [use.groups]:
                self._add_joint_cost(cost, use, {name: joined[number, name] for name in names})
        self._row(chosen, 1, 1)
        for name in use.groups:
            for k, keep in enumerate(self._keeps[name]):
                self._row(
                    [joined[number, name][k] for number in range(len(candidates))], 0, 0, [keep]
                )
        return Variables(space, use, candidates, by_candidate, chosen, joined)

    def _add_joint_cost(
        self, cost: Mapping[str, Cost], use: Use, margins: Mapping[str, Sequence[int]]
    ) -> None:
        """Add the cost of the choices of some groups: a variable for each combination of them.

        ``margins``: by group, the columns of its choices. Many groups have too many combinations.
        Then there is a variable for each pair of choices of an input group and an output group,
        which is exact for products of both kept fractions (MACs), and close for latencies.
        """
        if prod(len(columns) for columns in margins.values()) <= COMBINATIONS:
            self._add_table(margins, lambda chosen: cost_added(cost, use, chosen))
            return
        for name, columns in margins.items():
            self._add_table({name: columns}, lambda chosen: cost_added(cost, use, chosen))
        for one, other in combinations(margins, 2):
            if (one in use.inputs.by and other in use.outputs.by) or (
                other in use.inputs.by and one in use.outputs.by
            ):
                self._add_table(
                    {name: margins[name] for name in (one, other)},
                    lambda chosen: cost_interaction(cost, use, chosen),
                )

    def _add_table(
        self,
        margins: Mapping[str, Sequence[int]],
        costs: Callable[[Mapping[str, int]], Mapping[str, float]],
    ) -> None:
        """Add a variable for each combination of choices, with its cost and its margins.

        For a single group, the cost is added to the columns of its choices instead.
        """
        if len(margins) == 1:
            ((name, columns),) = margins.items()
            for k, column in enumerate(columns):
                for quantity, value in costs({name: k}).items():
                    self.costs[quantity][column] += value
            return
        sums: dict[int, list[int]] = {
            column: [] for columns in margins.values() for column in columns
        }
        for choices in product(*(range(len(columns)) for columns in margins.values())):
            variable = self._add(costs(dict(zip(margins, choices, strict=True))))
            for k, columns in zip(choices, margins.values(), strict=True):
                sums[columns[k]].append(variable)
        for column, parts in sums.items():
            self._row(parts, 0, 0, [column])

    # -- solving -----------------------------------------------------------------------------------

    def least_peak_memory(self, itemsize: int) -> float:
        """The least peak memory in bytes.

        A new variable bounds every step, as a fraction of the original's peak memory.
        """
        original = float(max(arena(self._graph, itemsize).timeline.values()))
        fraction = self._add({"peak_memory": original})
        for columns, values, limit in PeakMemory(itemsize, 0).rows(
            self._graph, self._shares, self._keeps, self._own
        ):
            self._rows.append(([*columns, fraction], [*values, -original], -np.inf, limit))
        return float(original * self.optimum({}, "peak_memory")[fraction])

    def solve(self, limits: Mapping[str, float], minimise: str) -> Joint:
        """The solution within the limits, also within that on the latency.

        Where three groups meet in an op, the MILP only approximates its latency. Then the limit in
        the MILP is tightened until the solution meets the real one, at most ``TURNS`` times.
        """
        limit = limits.get("latency", np.inf)
        best = solution = self.solution(limits, minimise)
        tightened = feasible = limit
        for _ in range(TURNS):
            latency = solution.cost("latency")
            if latency <= limit * (1 + 1e-6):
                return solution
            tightened = (
                tightened * limit / latency if tightened == feasible else (tightened + feasible) / 2
            )
            try:
                solution = self.solution({**limits, "latency": tightened}, minimise)
            except BudgetError:  # too tight for the MILP: try a limit in the middle
                continue
            feasible = tightened
            best = min(best, solution, key=lambda joint: joint.cost("latency"))
        return best

    def solution(self, limits: Mapping[str, float], minimise: str) -> Joint:
        """The choices at the optimum, with their costs."""
        values = self.optimum(limits, minimise)
        at = {name: int(np.argmax(values[columns])) for name, columns in self._keeps.items()}
        own, others = (
            [pruned(layer, int(np.argmax(values[layer.chosen])), at) for layer in layers]
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

    def optimum(self, limits: Mapping[str, float], minimise: str) -> NDArray[np.float64]:
        """The value of every variable at the optimum.

        BudgetError if there is no solution, UnsolvedError if none was found in time.
        """
        costs = {name: np.array(values) for name, values in self.costs.items()}
        goal = costs[minimise] / max(float(costs[minimise].max()), 1e-30)
        tie = costs["macs"] + costs["params"]
        objective = 1e6 * (goal + 1e-9 * tie / max(float(np.abs(tie).sum()), 1))
        constraints = [self._constraint()]
        for quantity, limit in limits.items():
            if not limit > 0:
                raise BudgetError(f"the {quantity} budget cannot be met")
            # HiGHS allows a relative violation of 1e-6, a budget none.
            constraints.append(LinearConstraint(costs[quantity][None] / limit, -np.inf, 1 - 2e-6))
        integer = np.array(self._integer)
        result = solved(objective, integer, constraints, mip_rel_gap=GAP, time_limit=SECONDS)
        budgets = " and ".join(limits) or "memory"
        if result.x is None and result.status == 1:
            raise UnsolvedError(
                f"no choice of ranks and filters within the {budgets} budgets was found in"
                f" {SECONDS:g} s"
            )
        if result.x is None:
            raise BudgetError(f"the {budgets} budgets cannot be met by ranks and filters together")
        return np.asarray(result.x)

    def _constraint(self) -> LinearConstraint:
        """All rows; those without a lower bound are scaled to a largest coefficient of 1."""
        data, rows, columns, low, high = [], [], [], [], []
        for number, (row_columns, values, least, most) in enumerate(self._rows):
            unit = max(map(abs, values), default=0) or 1.0 if np.isinf(least) else 1.0
            data += [value / unit for value in values]
            rows += [number] * len(row_columns)
            columns += row_columns
            low.append(least / unit)
            high.append(most / unit)
        shape = (len(self._rows), len(self._integer))
        return LinearConstraint(csr_array((data, (rows, columns)), shape=shape), low, high)


__all__ = ["Joint", "Program", "UnsolvedError", "allocate", "least_peak_memory", "others"]
