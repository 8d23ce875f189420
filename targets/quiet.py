"""Keep the converters' noise away from the user, whichever language writes it."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

_FLUSH_LIBC: Callable[[None], int] = ctypes.CDLL(None).fflush if os.name == "posix" else lambda _: 0


@contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Send all that the process writes to stdout and stderr to a temporary file, and drop Python's warnings; gives a function that reads the file.

    C++ code writes to the file descriptors, past ``sys.stdout``, so these are redirected. That concerns all threads of the process.
    """
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        _flush()
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(file.fileno(), descriptor)
        stack.callback(_flush)  # libc holds back what C code printed until now; it must not reach the user's stdout later
        stack.enter_context(redirect_stdout(_Descriptor(1)))
        stack.enter_context(redirect_stderr(_Descriptor(2)))

        def read() -> str:
            _flush()
            file.seek(0)
            return file.read()

        yield read


class _Descriptor(io.TextIOBase):
    """A stream that writes to whatever the descriptor points to at that time: log handlers that a library sets up meanwhile keep it for good."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        os.write(self._descriptor, text.encode(errors="replace"))
        return len(text)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _FLUSH_LIBC(None)
