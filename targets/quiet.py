"""Keep the converters' noise away from the user, whichever language writes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lrfc.system import scratch, silence


@contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Send what is written to stdout and stderr to a temporary file; gives a function that reads it.

    Warnings of this thread are dropped. C++ code writes to the file descriptors, past
    ``sys.stdout``, so these are redirected, for all threads of the process. Where blocks of several
    threads overlap, the file of the one that began last takes what all of them write there.
    """
    with scratch.unnamed() as noise:
        descriptor = noise.fileno()

        def printed(text: str) -> None:
            os.write(descriptor, text.encode(errors="replace"))

        def read() -> str:
            silence.flush()
            return silence.written(descriptor)

        with silence.descriptors(descriptor), silence.thread(printed):
            yield read
