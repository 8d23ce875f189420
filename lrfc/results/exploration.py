"""What the factorization methods could do for a model, side by side, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.search.facts import DesignSpace
from lrfc.search.pareto import Point

#: Shares of the MACs at which the methods are compared.
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Survey:
    """An exploration.

    ``whole``: MACs and parameters of the original, and its predicted latency where a device was
    named. ``fronts``: by method, 'all' for the mix, over MACs. ``points``: the front that was asked
    for, over the quantities ``over``.
    """

    model: str
    whole: dict[str, float]
    design: DesignSpace
    over: tuple[str, ...]
    points: Sequence[Point]
    fronts: dict[str, list[Point]]
    seconds: float
    synthetic: bool

    def table(self) -> list[tuple[str, list[float | None]]]:
        """For each method, the least predicted divergence at each of ``SHARES``; None where the method cannot go so far."""
        rows = []
        for method, points in self.fronts.items():
            reached = [
                [
                    p["predicted_divergence"]
                    for p in points
                    if p["macs"] <= share * self.whole["macs"]
                ]
                for share in SHARES
            ]
            rows.append((method, [min(found) if found else None for found in reached]))
        return rows

    def to_json(self) -> dict[str, Any]:
        """pareto.json."""
        return {
            "schema_version": 1,
            "model": self.model,
            "original": self.whole,
            "over": list(self.over),
            "candidates": self.design.size,
            "undominated": self.design.undominated,
            "seconds": self.seconds,
            "synthetic": self.synthetic,
            "points": [dict(point) for point in self.points],
            "methods": {
                method: [dict(point) for point in points] for method, points in self.fronts.items()
            },
            "skipped": dict(self.design.skipped),
        }
