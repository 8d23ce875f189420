"""What the factorization methods could do for a model, side by side, before anything is built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrfc.results import candidates as choices
from lrfc.results import folder as artifact
from lrfc.results.report.exploration import render
from lrfc.search.facts import DesignSpace
from lrfc.search.pareto import Point

#: Shares of the MACs at which the methods are compared.
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Survey:
    """An exploration.

    ``whole``: MACs and parameters of the original, and its predicted latency where a device was named. ``fronts``: by method, 'all' for the mix, over MACs. ``points``: the front that was asked for, over the
    quantities ``over``.
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
            reached = [[p["predicted_divergence"] for p in points if p["macs"] <= share * self.whole["macs"]] for share in SHARES]
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
            "methods": {method: [dict(point) for point in points] for method, points in self.fronts.items()},
            "skipped": dict(self.design.skipped),
        }

    def write(self, place: artifact.Reserved) -> Path:
        """Write the folder: pareto.json, candidates.csv and explore.html."""
        with place.writing() as work:
            (work / "pareto.json").write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            choices.write(work, self.design.spaces, {})
            (work / "explore.html").write_text(render(self, SHARES), encoding="utf-8")
        return place.out
