"""Python's garbage collector, and the million objects that an import of TensorFlow makes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


class _Process:
    """The use of this process. ``ours``: it runs a command of lrfc and nothing else."""

    ours = False


def process_is_ours() -> None:
    """Say that this process runs a command of lrfc and nothing else."""
    _Process.ours = True


@contextmanager
def importing() -> Iterator[None]:
    """Context manager: import a large package without collections.

    Collections during the import of TensorFlow take a fifth of its CPU time and find next to
    nothing. Later ones search its objects again, some 0.3 CPU-s each time that the TFLite converter
    asks for one. In a process of lrfc's own, these objects are therefore left out of later
    collections. In a host program they are not: its own objects would be left out with them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
    if _Process.ours:
        gc.freeze()
