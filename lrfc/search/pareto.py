"""The Pareto front: the optimal plan at each of many budgets, for all methods and for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lrfc.config.build import frontier
from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.errors import BudgetError
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.facts import DesignSpace, costs
from lrfc.search.memory import live_need
from lrfc.state import State

Point = Mapping[str, Any]


def front(
    state: State,
    over: Sequence[str] = ("macs",),
    points: int = 24,
    precision: str = "fp32",
    also: Sequence[float] = (),
) -> list[Point]:
    """The Pareto-optimal plans in predicted divergence and the quantities ``over``, least first.

    A budget on each quantity is swept: over ``points`` values of one, over fewer of each of two or
    three. The allocation is solved exactly at every combination. ``also`` adds budgets, as shares
    of the original. A point has ``macs``, ``params``, ``predicted_divergence`` and ``methods``
    (number of layers by method); ``ram`` where it is in ``over``, ``latency`` where a device is
    known (``Price``), which 'latency' in ``over`` needs.
    """
    frontier(over)
    design, whole = state.fact(DesignSpace), costs(state)
    spaces, outside = design.spaces, design.outside(whole)
    least = {quantity: outside[quantity] + design.least(quantity) for quantity in whole}
    memory = arena(state.original, of(precision).activation)
    ram = _live_bytes(state, spaces, precision) if "ram" in over else {}
    calls = {call for s in spaces for call in s.calls}
    others = (size for name, size in memory.timeline.items() if name not in calls)
    ram_of_others = max(others, default=0)
    count = max(2, round(points ** (1 / len(over))) if len(over) > 1 else points)
    axes = []
    for quantity in over:
        if quantity == "ram":
            low = max(ram_of_others, *(min(sizes.values()) for sizes in ram.values()), 0)
            axes.append(np.linspace(low, max(memory.peak_bytes, low), count))
        else:
            shares = [share * whole[quantity] for share in also]
            shares = [budget for budget in shares if budget >= least[quantity]]
            axes.append(np.sort([*np.linspace(least[quantity], whole[quantity], count), *shares]))
    plans: list[dict[str, Any]] = []
    undominated = [pareto(s.candidates) for s in spaces]
    for budgets in product(*axes):
        limits = dict(zip(over, budgets, strict=True))
        choices = _within(spaces, ram, limits["ram"]) if ram else undominated
        chosen = _allocated(choices, outside, limits)
        if chosen is None:
            continue
        point = {q: cost + sum(getattr(c, q) for c in chosen) for q, cost in outside.items()}
        if ram:
            point["ram"] = max(ram_of_others, *(ram[c.layer][c] for c in chosen))
        methods = [c.method for c in chosen if c.method is not None]
        predicted = sum(c.divergence for c in chosen)
        by_method = {m: methods.count(m) for m in sorted(set(methods))}
        plans.append({**point, "predicted_divergence": predicted, "methods": by_method})
    return _undominated(plans, (*over, "predicted_divergence"))


def _live_bytes(
    state: State, spaces: Sequence[LayerSpace], precision: str
) -> dict[str, dict[Candidate, int]]:
    """The peak activation bytes while each candidate runs, by layer."""
    needs = {s.op.name: live_need(state.original, s, precision) for s in spaces}
    return {s.op.name: {c: needs[s.op.name](c) for c in s.candidates} for s in spaces}


def _within(
    spaces: Sequence[LayerSpace], ram: Mapping[str, Mapping[Candidate, int]], limit: float
) -> list[tuple[Candidate, ...]]:
    """The undominated ones of the candidates that need at most ``limit`` bytes, by layer."""
    return [pareto([c for c in s.candidates if ram[s.op.name][c] <= limit]) for s in spaces]


def _allocated(
    choices: Sequence[Sequence[Candidate]],
    outside: Mapping[str, float],
    limits: Mapping[str, float],
) -> tuple[Candidate, ...] | None:
    """The optimal candidates within the limits; None where the limits cannot be met together."""
    sums = {q: limit - outside[q] for q, limit in limits.items() if q != "ram"}
    try:
        return allocate(choices, sums)
    except BudgetError:
        return None


def by_method(state: State, points: int = 24, also: Sequence[float] = ()) -> dict[str, list[Point]]:
    """The fronts over MACs: of all methods ('all'), and by method for convolutions.

    The methods for fully connected layers are part of every front.
    """
    spaces = state.fact(DesignSpace).spaces
    dense = {
        c.method for s in spaces if not s.op.info.is_convolution for c in s.candidates if c.method
    }
    conv = dict.fromkeys(
        c.method for s in spaces if s.op.info.is_convolution for c in s.candidates if c.method
    )
    fronts = {"all": front(state, points=points, also=also)}
    for method in [*conv, *(() if conv else sorted(dense))]:
        narrowed = state.fact(DesignSpace).narrowed((method, *dense) if conv else (method,))
        fronts[method] = front(state.with_fact(narrowed), points=points, also=also)
    return fronts


def _undominated(points: Sequence[dict[str, Any]], quantities: Sequence[str]) -> list[Point]:
    optimal: list[Point] = []
    for point in sorted(points, key=lambda p: [p[q] for q in quantities]):
        if not any(all(other[q] <= point[q] for q in quantities) for other in optimal):
            optimal.append(point)
    return optimal
