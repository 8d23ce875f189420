"""The memory that a command may use, and memory that goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim() -> None:
    """Free what is unreachable, and give freed memory back to the system.

    glibc keeps it otherwise: after the conversion of a 100 MB file some 450 MB. Elsewhere the
    system decides.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
