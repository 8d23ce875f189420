"""Where the time of a build went: the ``profile`` in manifest.json, and summaries of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lrfc.metrics.outcome import GREATEST, Count, Record
from lrfc.system.spans import Kind, Span

Seconds = Annotated[float, Field(ge=0, le=GREATEST, allow_inf_nan=False)]


class Entry(Record):
    """A stretch of a build, and the stretches within it (``parts``).

    ``kind``: a stage of the build, a layer in a stage, or a plan that was judged, with its
    ``verdict``. ``seconds``: wall-clock time. ``user_seconds``, ``system_seconds``: CPU time of
    lrfc in user mode and in the kernel. ``children_seconds``: CPU time of its child processes.
    ``page_faults``: minor ones; null where the operating system does not count them.

    ``parallel``: it ran beside others, in a thread of its own. Its seconds overlap with theirs, and
    its CPU time and page faults are those of the thread.
    """

    name: str
    kind: Kind
    parallel: bool
    verdict: str | None
    seconds: Seconds
    user_seconds: Seconds
    system_seconds: Seconds
    children_seconds: Seconds
    page_faults: Count | None
    parts: tuple[Entry, ...]

    @property
    def cpu_seconds(self) -> float:
        """CPU time of lrfc, without its child processes."""
        return self.user_seconds + self.system_seconds

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Entry]]:
        """This entry and all below it, each after the one that holds it, with its depth."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)


def entry_of(span: Span) -> Entry:
    """The entry of a span, up to now."""
    used = span.used
    # Clocks of the kernel count in steps, so that a difference may be a little below 0.
    seconds, user, system, children = (round(max(0.0, value), 6) for value in used[:4])
    return Entry(
        name=span.name,
        kind=span.kind,
        parallel=span.parallel,
        verdict=span.verdict,
        seconds=seconds,
        user_seconds=user,
        system_seconds=system,
        children_seconds=children,
        page_faults=used.faults,
        parts=tuple(map(entry_of, span.parts)),
    )


@dataclass
class Total:
    """All entries of one name together."""

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    system_seconds: float = 0.0
    children_seconds: float = 0.0
    page_faults: int | None = 0

    def add(self, entry: Entry, rest: Sequence[Entry] = ()) -> None:
        """Add an entry without ``rest``, entries that are counted elsewhere."""

        def own(quantity: str) -> float:
            less = sum(getattr(part, quantity) for part in rest)
            return max(0.0, float(getattr(entry, quantity) - less))

        self.seconds += own("seconds")
        self.cpu_seconds += own("cpu_seconds")
        self.system_seconds += own("system_seconds")
        self.children_seconds += own("children_seconds")
        known = all(each.page_faults is not None for each in (entry, *rest))
        faults = int(own("page_faults")) if known else None
        self.page_faults = (
            None if None in (self.page_faults, faults) else (self.page_faults or 0) + (faults or 0)
        )


def largest(profile: Entry, most: int = 5) -> list[Total]:
    """The names with the most wall-clock seconds outside of other stages and plans.

    Layers count as part of their stage. Plans are one name, 'plans'.
    """
    totals: dict[str, Total] = {}
    for _, entry in profile.walk():
        if entry.kind != "layer":
            name = "plans" if entry.kind == "plan" else entry.name
            rest = [part for part in entry.parts if part.kind != "layer"]
            totals.setdefault(name, Total(name)).add(entry, rest)
    return sorted(totals.values(), key=lambda total: -total.seconds)[:most]


def layers(profile: Entry) -> dict[str, dict[str, Total]]:
    """The total of each layer by its name, by the name of its stage."""
    stages: dict[str, dict[str, Total]] = {}
    for _, entry in profile.walk():
        for part in entry.parts:
            if part.kind == "layer":
                totals = stages.setdefault(entry.name, {})
                totals.setdefault(part.name, Total(part.name)).add(part)
    return stages
