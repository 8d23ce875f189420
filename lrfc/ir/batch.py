"""Batches of samples: one array for each input of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: One array for each model input, in the model's order, with the samples along axis 0.
Batch = tuple[NDArray[Any], ...]


def batches(inputs: Batch, size: int) -> Iterator[Batch]:
    """The samples in consecutive batches of ``size``; the last may be smaller."""
    for start in range(0, len(inputs[0]), size):
        yield tuple(np.asarray(x[start : start + size]) for x in inputs)


def head(batch: Batch, count: int) -> Batch:
    """At most the first ``count`` samples, as views of the same arrays."""
    return tuple(x[:count] for x in batch)
