"""Settings of the C library's heap under which freed arrays return to the system at once."""

from __future__ import annotations

import ctypes
import sys

#: glibc's numbers for the two options of ``mallopt`` (malloc.h), and the size in bytes from which
#: an array has pages of its own.
_MMAP_THRESHOLD, _ARENAS = -3, -8
_LARGE = 16 << 20


def lean() -> None:
    """Map and unmap arrays above 16 MiB one by one, and let all threads share two heaps.

    By default glibc raises the threshold to 32 MB as arrays are freed, and gives each thread a heap
    of its own; exploring VGG16 then takes 1.5 GB more than its arrays. From 1 MiB on, exploring
    ResNet50 at 224×224 has 21 million page faults in the place of three. Without glibc this does
    nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_ARENAS, 2)
