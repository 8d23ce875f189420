"""The rows of the page's tables on where the time of a build went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lrfc.results import time_profile
from lrfc.results.time_profile import Entry, Taken


@dataclass(frozen=True)
class Row:
    """The time and memory traffic of a stage, a plan or a layer.

    ``depth``: 0 for the outermost. ``share``: of the wall-clock time of the build.
    """

    name: str
    depth: int
    share: float
    taken: Taken
    verdict: str | None = None


def stages(profile: Entry) -> list[Row]:
    """The build and its stages, without layers and plans."""
    return list(_rows(profile, profile.seconds, 0))


def plans(profile: Entry) -> list[Row]:
    """The plans in the order in which they were judged, each with its stages."""
    return [
        row
        for _, entry in profile.walk()
        if entry.kind == "plan"
        for row in _rows(entry, profile.seconds, 0)
    ]


def layers(profile: Entry) -> list[tuple[str, list[Row]]]:
    """Each stage that works layer by layer, and its layers, the longest first."""
    return [
        (
            stage,
            [
                Row(total.name, 0, _share(total.seconds, profile.seconds), total)
                for total in sorted(totals, key=lambda total: -total.seconds)
            ],
        )
        for stage, totals in time_profile.layers(profile).items()
    ]


def _rows(entry: Entry, whole: float, depth: int) -> Iterator[Row]:
    yield Row(entry.name, depth, _share(entry.seconds, whole), entry, entry.verdict)
    for part in entry.parts:
        if part.kind == "stage":
            yield from _rows(part, whole, depth + 1)


def _share(seconds: float, whole: float) -> float:
    """At most 1: layers that ran beside each other may take more than the whole."""
    return min(1.0, seconds / whole) if whole else 0.0
