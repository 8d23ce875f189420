"""The memory that a command may use: its budget, and freed memory that goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

from lrfc.system.overrides import Override
from lrfc.text import size

#: The budget in bytes from which on no share is smaller than it can be, so that every machine with
#: at least twice as much finds the same plan.
SUFFICIENT = 3 << 30
#: Where Linux shows the control groups of this process, and all of them.
_MEMBERSHIP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class _Stated:
    """The stated budget of the process in bytes; None: half of the machine."""

    value: int | None = None


def _write(value: int | None) -> None:
    _Stated.value = value


_BUDGET: Override[int | None, int | None] = Override(lambda: _Stated.value, _write, _write)


def limited(stated: int | None) -> AbstractContextManager[Any]:
    """Context manager: the budget of the process in bytes; None for half of the machine."""
    return _BUDGET.to(stated)


def budget() -> int:
    """Bytes that the arrays of a command may take together, besides TensorFlow itself."""
    return _Stated.value if _Stated.value is not None else machine() // 2


def share(most: int) -> int:
    """Bytes of a task that takes ``most`` of a sufficient budget; less of a smaller one."""
    return min(most, most * budget() // SUFFICIENT)


def limit(most: int) -> int:
    """Bytes that a single task may need: ``most``, within the budget."""
    return min(most, budget())


def remark() -> str | None:
    """The line for the log where the budget is too small for the usual shares; else None."""
    if budget() >= SUFFICIENT:
        return None
    source = "half of this machine" if _Stated.value is None else "--memory"
    return (
        f"memory: {size(budget())} ({source}) is less than {size(SUFFICIENT)}, so fewer samples are"
        " used at once, and the result may differ from that with more"
    )


@lru_cache(maxsize=1)
def machine() -> int:
    """Bytes of this machine, or of the process's control group (a container) where that is less."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits()])


def _group_limits() -> Iterator[int]:
    """The limits of the process's control groups and the groups around them, versions 1 and 2."""
    for line in _MEMBERSHIP.read_text().splitlines() if _MEMBERSHIP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (folder / name).is_file():
                text = (folder / name).read_text().strip()
                if text.isdigit():  # 'max': no limit
                    yield int(text)


def trim() -> None:
    """Free what is unreachable, and give freed memory back to the system.

    glibc keeps it otherwise: after the conversion of a 100 MB file some 450 MB. Elsewhere the
    system decides.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
