"""Spans: named stretches of work, nested in a tree, with the time and memory traffic of each.

A tree is recorded between the begin and the end of ``recording``. Elsewhere a span does nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, ParamSpec, Protocol, TypeVar

if sys.platform != "win32":
    import resource

#: What a span is about: a stage of the work, a layer in a stage, or a plan that is judged.
Kind = Literal["stage", "layer", "plan"]

P = ParamSpec("P")
R = TypeVar("R")


class Usage(NamedTuple):
    """Wall-clock seconds, CPU seconds, minor page faults, and memory.

    ``user``, ``system``: of this process or thread, in user mode and in the kernel. ``children``:
    of child processes that have ended, both together. ``peak``: bytes, the largest resident memory
    of this process. ``faults`` and ``peak`` are None where the operating system does not count
    them; so is the ``peak`` of a thread.
    """

    seconds: float = 0.0
    user: float = 0.0
    system: float = 0.0
    children: float = 0.0
    faults: int | None = 0
    peak: int | None = 0

    def plus(self, other: Usage, sign: int = 1) -> Usage:
        """Both together; the difference with a ``sign`` of -1."""
        return Usage(
            self.seconds + sign * other.seconds,
            self.user + sign * other.user,
            self.system + sign * other.system,
            self.children + sign * other.children,
            _sum(self.faults, other.faults, sign),
            _sum(self.peak, other.peak, sign),
        )


def _sum(one: int | None, other: int | None, sign: int) -> int | None:
    return None if one is None or other is None else one + sign * other


@dataclass(eq=False)
class Span:
    """A stretch of work; spans of the same name and kind in the same place are one.

    ``parallel``: it ran beside others, so its seconds overlap with theirs, and the rest is that of
    its thread alone. ``verdict``: what a plan was found to be. ``above``: the span that it is a
    part of; None for the whole.
    """

    name: str
    kind: Kind = "stage"
    parallel: bool = False
    above: Span | None = None
    verdict: str | None = None
    parts: list[Span] = field(default_factory=list)
    _ended: Usage = field(default_factory=Usage)
    _start: Usage | None = None

    @property
    def used(self) -> Usage:
        """The usage up to now."""
        if self._start is None:
            return self._ended
        return self._ended.plus(_usage(own_thread=self.parallel).plus(self._start, -1))

    def part(self, name: str, kind: Kind, *, parallel: bool) -> Span:
        """The part of that name, added where there is none."""
        with _ADDING:
            for part in self.parts:
                if (part.name, part.kind, part.parallel) == (name, kind, parallel):
                    return part
            self.parts.append(Span(name, kind, parallel, self))
            return self.parts[-1]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context manager: the innermost span while it lasts."""
        self._start = _usage(own_thread=self.parallel)
        _CURRENT.set(self)
        try:
            yield
        finally:
            self._ended, self._start = self.used, None
            # The span of a loop that an exception has left ends late, after those around it.
            if self in _ancestry(_CURRENT.get()):
                _CURRENT.set(self.above)


_CURRENT: ContextVar[Span | None] = ContextVar("lrfc.span", default=None)
_ADDING = threading.Lock()


@contextmanager
def recording(name: str, *, on: bool) -> Iterator[None]:
    """Context manager: record the spans of this thread as parts of a new one, or none unless on."""
    before = _CURRENT.get()
    _CURRENT.set(None)
    try:
        if on:
            with Span(name).open():
                yield
        else:
            yield
    finally:
        _CURRENT.set(before)


@contextmanager
def span(name: str, kind: Kind = "stage", *, parallel: bool = False) -> Iterator[None]:
    """Context manager and decorator: a part of the innermost span.

    ``parallel``: threads work on its siblings meanwhile; see ``Span``.
    """
    above = _CURRENT.get()
    if above is None:
        yield
        return
    with above.part(name, kind, parallel=parallel).open():
        yield


class Named(Protocol):
    """An op, or anything else with a name."""

    @property
    def name(self) -> str: ...  # noqa: D102


N = TypeVar("N", bound=Named)


def layers(ops: Iterable[N]) -> Iterator[N]:
    """The ops, each with a span that lasts until the next one is asked for."""
    for op in ops:
        with span(op.name, "layer"):
            yield op


def in_thread(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """The function for one call in another thread, as the work on that layer within this span."""
    if _CURRENT.get() is None:
        return function

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with span(name, "layer", parallel=True):
            return function(*args, **kwargs)

    return partial(copy_context().run, call)


def verdict(text: str) -> None:
    """Record the verdict on the plan whose span is the innermost one."""
    current = _CURRENT.get()
    if current is not None:
        current.verdict = text


def whole() -> Span | None:
    """The span of the whole recording so far; None where nothing is recorded."""
    spans = list(_ancestry(_CURRENT.get()))
    return spans[-1] if spans else None


def _ancestry(current: Span | None) -> Iterator[Span]:
    """A span, the one that it is a part of, and so on."""
    while current is not None:
        yield current
        current = current.above


def _usage(*, own_thread: bool) -> Usage:
    """The clock, and what this process or thread has used since it began."""
    now = time.perf_counter()
    if sys.platform == "win32" or (own_thread and not hasattr(resource, "RUSAGE_THREAD")):
        times = os.times()
        user, system = (time.thread_time(), 0.0) if own_thread else (times.user, times.system)
        return Usage(now, user, system, 0.0, None, None)
    if own_thread:
        own = resource.getrusage(resource.RUSAGE_THREAD)
        return Usage(now, own.ru_utime, own.ru_stime, 0.0, own.ru_minflt, None)
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    below = children.ru_utime + children.ru_stime
    peak = own.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(now, own.ru_utime, own.ru_stime, below, own.ru_minflt, peak)
