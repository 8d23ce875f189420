"""Keep what libraries write away from the user, and stdout and stderr for the rest of the program.

Descriptors belong to the process, and are shared by the blocks that redirect them; what Python
prints and warns of goes by the thread.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lrfc.system.overrides import Override

_FLUSH_LIBC: Callable[[None], int] = ctypes.CDLL(None).fflush if os.name == "posix" else lambda _: 0


def flush() -> None:
    """Write out what Python and C hold back for stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(ValueError):  # closed
                stream.flush()
    _FLUSH_LIBC(None)


def written(descriptor: int) -> str:
    """All that is in the file of the descriptor, which then stands at its end."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        text = file.read().decode(errors="replace")
    os.lseek(descriptor, 0, os.SEEK_END)
    return text


# -- file descriptors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sink:
    """Where descriptors 1 and 2 go. ``whole``: also what other threads print."""

    descriptor: int
    whole: bool


def _saved() -> tuple[int | None, int | None]:
    flush()
    return _copy(1), _copy(2)


def _copy(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # the program runs without it
        return None


def _redirect(sink: _Sink) -> None:
    flush()  # what was printed until now belongs where it was printed to
    for descriptor in (1, 2):
        os.dup2(sink.descriptor, descriptor)


def _restore(saved: tuple[int | None, int | None]) -> None:
    flush()
    for descriptor, copy in enumerate(saved, start=1):
        if copy is None:
            os.close(descriptor)
        else:
            os.dup2(copy, descriptor)
            os.close(copy)


_DESCRIPTORS: Override[tuple[int | None, int | None], _Sink] = Override(_saved, _redirect, _restore)


def descriptors(
    to: int, *, whole: bool = False
) -> AbstractContextManager[tuple[int | None, int | None]]:
    """Send descriptors 1 and 2 to ``to``; gives the program's own, None for one that is closed.

    C++ code writes there, past ``sys.stdout``. That concerns all threads of the process. What other
    threads print through ``sys.stdout`` and ``sys.stderr`` still reaches the program's own while a
    ``thread`` block is open, unless ``whole`` is true.
    """
    return _DESCRIPTORS.to(_Sink(to, whole))


# -- the root logger -------------------------------------------------------------------------------


def _deaf(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING or not _THREAD.deaf


def _begin(_: None) -> None:
    logging.root.addFilter(_deaf)
    logging.root.addHandler(_NOWHERE)


def _end(_: None) -> None:
    logging.root.removeFilter(_deaf)
    logging.root.removeHandler(_NOWHERE)


_NOWHERE = logging.NullHandler()
_ROOT: Override[None, None] = Override(lambda: None, _begin, _end)


@contextmanager
def root_logger() -> Iterator[None]:
    """Drop what this thread logs on the root logger, up to warnings: the advice of libraries.

    Without any handler, ``logging.warning`` would give the program's root logger one, for good.
    """
    with _ROOT.to(None):
        _THREAD.deaf += 1
        try:
            yield
        finally:
            _THREAD.deaf -= 1


# -- what Python prints ----------------------------------------------------------------------------


class _Thread(threading.local):
    """The open blocks of one thread: where its text and its warnings go; those of the root logger."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Callable[[str], object], Callable[[str], object]]] = []
        self.deaf = 0


_THREAD = _Thread()


class _ByThread:
    """``sys.stdout`` or ``sys.stderr`` that asks which thread writes.

    Log handlers that a library sets up meanwhile keep it for good: it then writes to whatever the
    stream of its name is at that time.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self._name, self.stream = name, stream

    def _current(self) -> Any:
        current = getattr(sys, self._name)
        return self.stream if current is self or current is None else current

    def write(self, text: str) -> int:
        if _THREAD.blocks:
            _THREAD.blocks[-1][0](text)
            return len(text)
        current = self._current()
        with _DESCRIPTORS.held() as (saved, sinks):
            number = (
                None if saved is None or any(sink.whole for sink in sinks) else _number(current)
            )
            own = None if saved is None or number is None else saved[number - 1]
            if own is None:
                current.write(text)
                return len(text)
            data = text.encode(
                getattr(current, "encoding", None) or "utf-8",
                getattr(current, "errors", None) or "backslashreplace",
            )
            while data:
                data = data[os.write(own, data) :]
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._current().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._current(), name)


def _number(stream: Any) -> int | None:
    """1 or 2 when the stream writes to that descriptor, otherwise None."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return number if number in (1, 2) else None


def _route(_: None = None) -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _ByThread):
            setattr(sys, name, _ByThread(name, stream))


def _unroute(_: None = None) -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _ByThread):
            setattr(sys, name, stream.stream)


class _Heard:
    """The pattern of a warning filter. It matches what a silent thread warns of, and takes it."""

    def match(self, text: str) -> bool:
        if not _THREAD.blocks:
            return False
        _THREAD.blocks[-1][1](text)
        return True


#: warnings.catch_warnings belongs to the whole process; a filter that asks for the thread does not.
_FILTER: Any = ("ignore", _Heard(), Warning, None, 0)


def _listen(_: None = None) -> None:
    """Put the filter first. Other threads may be silent meanwhile: it is there at every moment."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    if filters[:1] != [_FILTER]:
        filters.insert(0, _FILTER)


def _unlisten(_: None) -> None:
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    while _FILTER in filters:
        filters.remove(_FILTER)


_STREAMS: Override[None, None] = Override(lambda: None, _route, _unroute)
_WARNINGS: Override[None, None] = Override(lambda: None, _listen, _unlisten)


@contextmanager
def thread(
    printed: Callable[[str], object], warned: Callable[[str], object] = lambda text: None
) -> Iterator[None]:
    """Hand what this thread prints and warns of to the two functions, instead of showing it."""
    with _STREAMS.to(None), _WARNINGS.to(None):
        _THREAD.blocks.append((printed, warned))
        try:
            yield
        finally:
            _THREAD.blocks.pop()
