"""Where the time went: the ``profile`` of a build in manifest.json, and summaries of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from lrfc.metrics.outcome import GREATEST, Count, Record
from lrfc.system import spans
from lrfc.system.spans import Kind, Span

Seconds = Annotated[float, Field(ge=0, le=GREATEST, allow_inf_nan=False)]


class Taken(Record):
    """The time and memory traffic of a stretch of work.

    ``seconds``: wall-clock time. ``user_seconds``, ``system_seconds``: CPU time of lrfc in user
    mode and in the kernel. ``children_seconds``: CPU time of its child processes. ``page_faults``:
    minor ones. ``peak_growth_bytes``: by which it raised the largest resident memory of lrfc. The
    latter two are null where the operating system does not count them.
    """

    name: str
    seconds: Seconds
    user_seconds: Seconds
    system_seconds: Seconds
    children_seconds: Seconds
    page_faults: Count | None
    peak_growth_bytes: Count | None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of lrfc, without its child processes."""
        return self.user_seconds + self.system_seconds


#: The quantities of ``Taken``.
_QUANTITIES = tuple(name for name in Taken.model_fields if name != "name")


class Entry(Taken):
    """A stretch of a build, and the stretches within it (``parts``).

    ``kind``: a stage of the build, a layer in a stage, or a plan that was judged, with its
    ``verdict``. ``parallel``: it ran beside others, in a thread of its own. Its seconds overlap
    with theirs, and its CPU time and page faults are those of the thread.

    The other fields are those of every stretch of work: ``seconds`` of wall-clock time, CPU time in
    user mode, in the kernel (``system_seconds``) and in child processes, minor page faults, and the
    growth of the largest resident memory. Null: not counted.
    """

    kind: Kind
    parallel: bool
    verdict: str | None
    parts: tuple[Entry, ...]

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Entry]]:
        """This entry and all below it, each after the one that holds it, with its depth."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)


def recorded() -> Entry | None:
    """The recording of this thread so far; None where nothing is recorded."""
    span = spans.whole()
    return None if span is None else entry_of(span)


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
        peak_growth_bytes=used.peak,
        parts=tuple(map(entry_of, span.parts)),
    )


def largest(profile: Entry, most: int = 5) -> list[Taken]:
    """The names with the most wall-clock seconds outside of other stages and plans.

    Layers count as part of their stage. Plans are one name, 'plans'.
    """
    named: dict[str, list[Entry]] = {}
    for _, entry in profile.walk():
        if entry.kind != "layer":
            named.setdefault("plans" if entry.kind == "plan" else entry.name, []).append(entry)
    totals = [
        _total(name, entries, [p for e in entries for p in e.parts if p.kind != "layer"])
        for name, entries in named.items()
    ]
    return sorted(totals, key=lambda total: -total.seconds)[:most]


def layers(profile: Entry) -> dict[str, list[Taken]]:
    """The usage of each layer in all runs of a stage together, by the name of the stage."""
    stages: dict[str, dict[str, list[Entry]]] = {}
    for _, entry in profile.walk():
        for part in entry.parts:
            if part.kind == "layer":
                stages.setdefault(entry.name, {}).setdefault(part.name, []).append(part)
    return {
        stage: [_total(name, entries) for name, entries in named.items()]
        for stage, named in stages.items()
    }


def _total(name: str, entries: Sequence[Entry], rest: Sequence[Entry] = ()) -> Taken:
    """All entries together, without ``rest``, their parts that are counted elsewhere."""
    totals: dict[str, Any] = {}
    for quantity in _QUANTITIES:
        own, less = ([getattr(each, quantity) for each in group] for group in (entries, rest))
        totals[quantity] = None if None in own + less else max(0, sum(own) - sum(less))
    return Taken(name=name, **totals)
