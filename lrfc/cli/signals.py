"""Ctrl-C and SIGTERM end the work by unwinding it, and only where an exception gets through.

Libraries call Python from C in places where nobody expects an exception: h5py drops one that is
raised there, and the build goes on as if nobody had pressed Ctrl-C; TensorFlow crashes, and what
was being written stays. So an exception is raised at once only while nothing but lrfc and the
standard library is at work. Inside another library it waits for the next call that lrfc's own code
makes or that is made to it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

#: Packages that an exception may unwind at any place. The command line's own frames are below every
#: other.
_SAFE = sys.stdlib_module_names | {"lrfc", "typer", "click", "__main__"}


class Terminated(BaseException):
    """SIGTERM."""


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_safe(frame: FrameType | None) -> bool:
    while frame is not None:
        if _package(frame) not in _SAFE:
            return False
        frame = frame.f_back
    return True


def _end(signum: int) -> NoReturn:
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


def _handle(signum: int, frame: FrameType | None) -> None:
    if sys.getprofile() is not None or _is_safe(
        frame
    ):  # asked for a second time, it does not wait any longer
        sys.setprofile(None)
        _end(signum)

    def when_lrfc_is_back(frame: FrameType, event: str, arg: Any) -> None:
        if (
            _package(frame) == "lrfc" and frame.f_code is not _handle.__code__
        ):  # which itself returns into the library
            sys.setprofile(None)
            _end(signum)

    sys.setprofile(when_lrfc_is_back)


@contextmanager
def unwinding() -> Iterator[None]:
    """In the block SIGINT raises KeyboardInterrupt and SIGTERM Terminated, in the main thread, at the next safe place; a second signal at any place.

    In other threads nothing changes: signals reach the main thread only. A SIGINT that the process
    was started to ignore (in the background of a shell) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [signal.SIGTERM] + [signal.SIGINT] * (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    )
    before = {each: signal.signal(each, _handle) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
