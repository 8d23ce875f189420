"""Ctrl-C and SIGTERM end a command by an exception, raised at a place where it is safe.

Libraries call Python from C in places that do not expect an exception: h5py drops one that is
raised there, so that the build continues in spite of Ctrl-C; TensorFlow crashes, and a file in
progress is left behind. Therefore an exception is raised at once only while no code but that of
lrfc and the standard library is active. Inside of another library it is delayed until the next
call or return of a function of lrfc.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

#: Packages whose code an exception may leave at any place; typer and click are always on the stack.
_SAFE = sys.stdlib_module_names | {"lrfc", "typer", "click", "__main__"}


class Terminated(BaseException):
    """SIGTERM."""


def _package(frame: FrameType) -> str:
    """The top-level package of a frame's code."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_safe(frame: FrameType | None) -> bool:
    """Whether all code on the stack may be left by an exception."""
    while frame is not None:
        if _package(frame) not in _SAFE:
            return False
        frame = frame.f_back
    return True


def _raise(signum: int) -> NoReturn:
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


def _handle(signum: int, frame: FrameType | None) -> None:
    # A profile function is set: this is the second signal, which does not wait any longer.
    if sys.getprofile() is not None or _is_safe(frame):
        sys.setprofile(None)
        _raise(signum)

    def raise_in_lrfc(frame: FrameType, event: str, arg: Any) -> None:
        # This handler is code of lrfc, too, but returns into the library.
        if _package(frame) == "lrfc" and frame.f_code is not _handle.__code__:
            sys.setprofile(None)
            _raise(signum)

    sys.setprofile(raise_in_lrfc)


@contextmanager
def unwinding() -> Iterator[None]:
    """Context manager: SIGINT raises KeyboardInterrupt and SIGTERM raises Terminated.

    Both at the next safe place; a second signal raises at once. Outside of the main thread, which
    is the only one that receives signals, nothing changes. A SIGINT that the process was started to
    ignore (in the background of a shell) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [signal.SIGTERM] + [signal.SIGINT] * (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    )
    handlers = {number: signal.signal(number, _handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
