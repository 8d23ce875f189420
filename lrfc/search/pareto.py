"""The Pareto front: the optimal plan at each of many budgets, for all methods and for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lrfc.config.build import frontier
from lrfc.errors import BudgetError
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate, pareto
from lrfc.search.facts import DesignSpace, Price, costs
from lrfc.search.memory import PlanMemory
from lrfc.state import State

Point = Mapping[str, Any]

#: Limits on memory, and shares of the original's time or MACs, of the fronts over memory.
LIMITS, SHARES = 8, (1.0, 0.75, 0.5)


def front(
    state: State,
    over: Sequence[str] = ("macs",),
    points: int = 24,
    precision: str = "fp32",
    also: Sequence[float] = (),
    tail: int = 0,
) -> list[Point]:
    """The Pareto-optimal plans in predicted divergence and the quantities ``over``, least first.

    A budget on each quantity is swept: over ``points`` values of one, over fewer of each of two or
    three. The allocation is solved exactly at every combination. ``also`` adds budgets, as shares
    of the original. A point has ``macs``, ``params``, ``predicted_divergence`` and ``methods``
    (number of layers by method); ``ram`` where it is in ``over``, with its ``tail`` where there is
    one; ``latency`` where a device is known (``Price``), which 'latency' in ``over`` needs.
    ``precision``, ``tail``: of ``ram``, see ``PlanMemory``.
    """
    frontier(over)
    design, whole = state.fact(DesignSpace), costs(state)
    outside = design.outside(whole)
    memory = PlanMemory(state.original, design.spaces, precision, tail) if "ram" in over else None
    count = max(2, round(points ** (1 / len(over))) if len(over) > 1 else points)
    axes: dict[str, Sequence[float]] = {}
    for quantity in over:
        if quantity == "ram" and memory is not None:
            axes[quantity] = _ram_limits(memory, count)
        else:
            least = outside[quantity] + design.least(quantity)
            shares = [share * whole[quantity] for share in also]
            shares = [budget for budget in shares if budget >= least]
            axes[quantity] = sorted([*np.linspace(least, whole[quantity], count), *shares])
    return _undominated(_solved(state, axes, memory), (*over, "predicted_divergence"))


def by_ram(
    state: State, memory: PlanMemory, points: int = LIMITS, shares: Sequence[float] = SHARES
) -> list[Point]:
    """The fronts over activation memory, each within a share of the original's predicted latency.

    Of its MACs where no device is known. ``points`` limits are swept, from the least memory that
    any plan needs to the original's peak. A point has the fields of ``front``, the ``share``, and
    the quantity that it is of (``of``).
    """
    quantity = "latency" if state.known(Price) is not None else "macs"
    found: list[Point] = []
    for share in shares:
        limits = {"ram": _ram_limits(memory, points), quantity: [share * costs(state)[quantity]]}
        best = _undominated(_solved(state, limits, memory), ("ram", "predicted_divergence"))
        found += [{**point, "share": share, "of": quantity} for point in best]
    return found


def _ram_limits(memory: PlanMemory, count: int) -> Sequence[float]:
    """Limits on the bytes alive at one time, from the least to the original's peak."""
    return sorted(set(np.linspace(memory.least, max(memory.whole, memory.least), count).tolist()))


def _solved(
    state: State,
    axes: Mapping[str, Sequence[float]],
    memory: PlanMemory | None,
) -> list[dict[str, Any]]:
    """The optimal plan within each combination of limits that can be met.

    ``memory``: needed for limits on 'ram', which are on the bytes alive at one time.
    """
    design = state.fact(DesignSpace)
    outside = design.outside(costs(state))
    undominated = [] if memory is not None else [pareto(s.candidates) for s in design.spaces]
    plans: list[dict[str, Any]] = []
    for budgets in product(*axes.values()):
        limits = dict(zip(axes, budgets, strict=True))
        choices = undominated
        if memory is not None:
            choices = memory.within(limits["ram"])
        chosen = _allocated(choices, outside, limits)
        if chosen is None:
            continue
        point = {q: cost + sum(getattr(c, q) for c in chosen) for q, cost in outside.items()}
        if memory is not None:
            peak, behind = memory.bytes(chosen)
            point |= {"ram": peak + behind, **({"tail": behind} if behind else {})}
        methods = [c.method for c in chosen if c.method is not None]
        predicted = sum(c.divergence for c in chosen)
        by_method = {m: methods.count(m) for m in sorted(set(methods))}
        plans.append({**point, "predicted_divergence": predicted, "methods": by_method})
    return plans


def _allocated(
    choices: Sequence[Sequence[Candidate]],
    outside: Mapping[str, float],
    limits: Mapping[str, float],
) -> tuple[Candidate, ...] | None:
    """The optimal candidates within the limits; None where the limits cannot be met together."""
    sums = {q: limit - outside[q] for q, limit in limits.items() if q != "ram"}
    if not all(choices):
        return None
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
