"""The number of BLAS threads: one where matrices are small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from lrfc.factorization.layout import Layout
from lrfc.system.overrides import Override

#: Layers with patches up to this length are decomposed on one thread. Their products take less time
#: than waking a second thread, and on a busy machine threads that wait for each other made a sweep
#: over a 32-channel layer twenty times slower (two cores, OpenBLAS).
SMALL = 1200
#: Layers with longer patches than this are processed one at a time.
HUGE = 5000
_ONE_AT_A_TIME = Lock()


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    # The controller looks for BLAS libraries in a C callback, where Python drops every exception,
    # also the KeyboardInterrupt of a Ctrl-C. That one reaches the main thread only, so the search
    # runs in another thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ThreadpoolController).result()


def workers() -> int:
    """The number of threads for work with one BLAS thread each: one for each core, at most four."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


def one_thread() -> AbstractContextManager[Any]:
    """Context manager: BLAS uses one thread, for many solves in a row.

    With two threads on a busy machine a Cholesky factor of 566 columns takes half a second, with
    one 14 ms.
    """
    return _LIMIT.to(None)


def _limit() -> Any:
    return _controller().limit(limits=1, user_api="blas")


def _restore(limiter: Any) -> None:
    limiter.restore_original_limits()


#: The library has one limit for the whole process. The first block sets it; the saved value is a
#: limiter, which knows the limits from before it.
_LIMIT: Override[Any, None] = Override(_limit, lambda _: None, _restore)


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Context manager: no other very large layer is processed.

    Two such layers at once would need twice the memory, a gigabyte each. BLAS keeps its one thread,
    because other layers use the other cores: with two threads beside them, the eigenvalues of 512
    columns took three seconds instead of a tenth.
    """
    with _ONE_AT_A_TIME if layout.patch > HUGE else nullcontext():
        yield


def threads(layout: Layout) -> AbstractContextManager[Any]:
    """Context manager: BLAS uses one thread for a small layer, otherwise the current setting."""
    return one_thread() if max(layout.patch, layout.outputs) <= SMALL else nullcontext()


def on_threads(
    layout: Layout, responses: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """The responses, each computed in the context ``threads``; the caller's work is outside it."""
    while True:
        with threads(layout):
            response = next(responses, None)
        if response is None:
            return
        yield response
