"""Silence the output of libraries, and leave stdout and stderr to the rest of the program.

File descriptors belong to the process, so blocks that redirect them share them. Text that Python
prints and its warnings are redirected for each thread separately.
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
    """Flush the buffers of Python and of C for stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(ValueError):  # closed
                stream.flush()
    _FLUSH_LIBC(None)


def written(descriptor: int) -> str:
    """Return the text of the descriptor's file, and move to the end of the file."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        text = file.read().decode(errors="replace")
    os.lseek(descriptor, 0, os.SEEK_END)
    return text


# -- file descriptors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sink:
    """The target of descriptors 1 and 2; ``whole``: for the text of other threads, too."""

    descriptor: int
    whole: bool


def _saved() -> tuple[int | None, int | None]:
    flush()
    return _copy(1), _copy(2)


def _copy(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # the descriptor is closed
        return None


def _redirect(sink: _Sink) -> None:
    flush()  # earlier text belongs to the earlier target
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
    """Context manager: redirect descriptors 1 and 2, which C++ code writes to, to ``to``.

    Yields copies of the program's own descriptors, None for a closed one. All threads are
    redirected; but while a ``thread`` block is open, text that other threads write to
    ``sys.stdout`` and ``sys.stderr`` still reaches the program's own, unless ``whole`` is true.
    """
    return _DESCRIPTORS.to(_Sink(to, whole))


# -- the root logger -------------------------------------------------------------------------------


def _passes(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING or not _THREAD.silent_loggers


def _begin(_: None) -> None:
    logging.root.addFilter(_passes)
    logging.root.addHandler(_NULL_HANDLER)


def _end(_: None) -> None:
    logging.root.removeFilter(_passes)
    logging.root.removeHandler(_NULL_HANDLER)


#: Without any handler, ``logging.warning`` would add one to the program's root logger for good.
_NULL_HANDLER = logging.NullHandler()
_ROOT: Override[None, None] = Override(lambda: None, _begin, _end)


@contextmanager
def root_logger() -> Iterator[None]:
    """Context manager: drop this thread's root-logger records up to the level of warnings."""
    with _ROOT.to(None):
        _THREAD.silent_loggers += 1
        try:
            yield
        finally:
            _THREAD.silent_loggers -= 1


# -- text of Python --------------------------------------------------------------------------------


class _Thread(threading.local):
    """The open blocks of one thread.

    ``blocks``: for each ``thread`` block, the functions that take its text and its warnings.
    ``silent_loggers``: the number of ``root_logger`` blocks.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[Callable[[str], object], Callable[[str], object]]] = []
        self.silent_loggers = 0


_THREAD = _Thread()


class _ByThread:
    """A replacement for ``sys.stdout`` or ``sys.stderr`` that tells threads apart.

    Log handlers that a library sets up in the meantime hold on to it. It then writes to the stream
    that has its name at that time.
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
            encoding = getattr(current, "encoding", None) or "utf-8"
            data = text.encode(encoding, getattr(current, "errors", None) or "backslashreplace")
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
    """Return 1 or 2 when the stream writes to that descriptor, otherwise None."""
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


class _Intercept:
    """The pattern of a warning filter that matches, and takes, the warnings of silent threads."""

    def match(self, text: str) -> bool:
        if not _THREAD.blocks:
            return False
        _THREAD.blocks[-1][1](text)
        return True


#: A warning filter that depends on the thread; warnings.catch_warnings affects the whole process.
_FILTER: Any = ("ignore", _Intercept(), Warning, None, 0)


def _install(_: None = None) -> None:
    """Put the filter first, without removing it in between, as other threads may rely on it."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    if filters[:1] != [_FILTER]:
        filters.insert(0, _FILTER)


def _uninstall(_: None) -> None:
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    while _FILTER in filters:
        filters.remove(_FILTER)


_STREAMS: Override[None, None] = Override(lambda: None, _route, _unroute)
_WARNINGS: Override[None, None] = Override(lambda: None, _install, _uninstall)


@contextmanager
def thread(
    printed: Callable[[str], object], warned: Callable[[str], object] = lambda text: None
) -> Iterator[None]:
    """Context manager: pass this thread's text and warnings to the two functions instead."""
    with _STREAMS.to(None), _WARNINGS.to(None):
        _THREAD.blocks.append((printed, warned))
        try:
            yield
        finally:
            _THREAD.blocks.pop()
