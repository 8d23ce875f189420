"""Capture the output of converters, whichever language writes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lrfc.system import scratch, silence


@contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Redirect stdout and stderr to a temporary file; yield a function that reads it.

    Warnings of this thread are dropped. C++ code writes to the file descriptors, past
    ``sys.stdout``, so these are redirected, for all threads of the process. Where blocks of several
    threads overlap, all output goes to the file of the block that began last.
    """
    with scratch.unnamed() as file:
        descriptor = file.fileno()

        def printed(text: str) -> None:
            os.write(descriptor, text.encode(errors="replace"))

        def read() -> str:
            silence.flush()
            return silence.written(descriptor)

        with silence.descriptors(descriptor), silence.thread(printed):
            yield read
