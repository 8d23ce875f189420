"""The result of ``lrfc explore``: Pareto fronts by method, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.results.time_profile import Entry
from lrfc.search.facts import DesignSpace
from lrfc.search.pareto import Point

#: Shares of the MACs at which the methods are compared.
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Survey:
    """An exploration.

    ``whole``: MACs and parameters of the original, and its predicted latency with a device.
    ``fronts``: the Pareto front over MACs by method, 'all' for a mix of them. ``points``: the
    Pareto front over the requested quantities, ``over``. ``by_ram``: the fronts over activation
    memory, of files in ``precision``; see ``lrfc.search.pareto.by_ram``.
    ``profile``: where the time went; None unless it was recorded.
    """

    model: str
    whole: dict[str, float]
    design: DesignSpace
    over: tuple[str, ...]
    points: Sequence[Point]
    fronts: dict[str, list[Point]]
    by_ram: Sequence[Point]
    precision: str
    seconds: float
    synthetic: bool
    profile: Entry | None = None

    def table(self) -> list[tuple[str, list[float | None]]]:
        """The least predicted divergence of each method at each of ``SHARES``.

        None where the method does not reach the share.
        """
        return [
            (method, [self._least(points, share) for share in SHARES])
            for method, points in self.fronts.items()
        ]

    def _least(self, points: Sequence[Point], share: float) -> float | None:
        within = (p for p in points if p["macs"] <= share * self.whole["macs"])
        return min((p["predicted_divergence"] for p in within), default=None)

    def to_json(self) -> dict[str, Any]:
        """The content of pareto.json."""
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
            "by_ram": [dict(point) for point in self.by_ram],
            "methods": {
                method: [dict(point) for point in points] for method, points in self.fronts.items()
            },
            "skipped": dict(self.design.skipped),
            **({} if self.profile is None else {"profile": self.profile.model_dump(mode="json")}),
        }
