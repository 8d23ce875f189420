"""The Pareto front: the exact optimum at each of many budgets, for all methods together and for each alone."""

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
from lrfc.search.candidates import pareto
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
    """The plans that no other plan beats in predicted divergence and the quantities of ``over``, least first.

    One budget is swept for each quantity, ``points`` values for one, fewer each for two or three,
    and the allocation solved exactly at every combination; ``also`` adds budgets as shares of the
    original. Each point has ``macs``, ``params``, ``predicted_divergence``, with 'ram' in ``over``
    also ``ram``, where a device is known (``Price``) its ``latency``, and ``methods``: how many
    layers each has. 'latency' in ``over`` needs a device.
    """
    frontier(over)
    design, whole = state.fact(DesignSpace), costs(state)
    spaces, outside = design.spaces, design.outside(whole)
    least = {quantity: outside[quantity] + design.least(quantity) for quantity in whole}
    memory = arena(state.original, of(precision).activation)
    needs = (
        {
            s.op.name: {c: need(c) for c in s.candidates}
            for s in spaces
            for need in [live_need(state.original, s, precision)]
        }
        if "ram" in over
        else {}
    )
    alone = max(
        (
            size
            for name, size in memory.timeline.items()
            if not any(name in s.calls for s in spaces)
        ),
        default=0,
    )
    each = max(2, round(points ** (1 / len(over))) if len(over) > 1 else points)
    axes = []
    for quantity in over:
        if quantity == "ram":
            low = max(alone, *(min(need.values()) for need in needs.values()), 0)
            axes.append(np.linspace(low, max(memory.peak_bytes, low), each))
        else:
            shares = [
                share * whole[quantity]
                for share in also
                if share * whole[quantity] >= least[quantity]
            ]
            axes.append(np.sort([*np.linspace(least[quantity], whole[quantity], each), *shares]))
    found: list[dict[str, Any]] = []
    for budgets in product(*axes):
        limits = {
            quantity: limit - outside[quantity]
            for quantity, limit in zip(over, budgets, strict=True)
            if quantity != "ram"
        }
        room = dict(zip(over, budgets, strict=True)).get("ram", np.inf)
        choices = [
            [c for c in s.candidates if not needs or needs[s.op.name][c] <= room] for s in spaces
        ]
        try:
            chosen = allocate([pareto(layer) for layer in choices], limits)
        except BudgetError:
            continue  # two budgets that cannot be met together
        point: dict[str, Any] = {
            quantity: outside[quantity] + sum(getattr(c, quantity) for c in chosen)
            for quantity in outside
        }
        if needs:
            point["ram"] = max(alone, *(needs[c.layer][c] for c in chosen))
        methods = [c.method for c in chosen if c.method is not None]
        found.append(
            point
            | {
                "predicted_divergence": sum(c.divergence for c in chosen),
                "methods": {m: methods.count(m) for m in sorted(set(methods))},
            }
        )
    return _undominated(found, (*over, "predicted_divergence"))


def by_method(state: State, points: int = 24, also: Sequence[float] = ()) -> dict[str, list[Point]]:
    """The front over MACs of all methods together ('all'), and of each method for convolutions alone, with those for fully connected layers beside it."""
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
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: [p[q] for q in quantities]):
        if not any(all(other[q] <= point[q] for q in quantities) for other in kept):
            kept.append(point)
    return kept
