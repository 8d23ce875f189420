"""Samples for an emitted file: checks before it runs, and its outputs joined afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.ir.batch import Batch


@dataclass(frozen=True)
class Spec:
    """An input of a file. ``shape``: with the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


def checked(batch: Batch, inputs: Sequence[Spec], reader: str) -> list[NDArray[Any]]:
    """The arrays of a batch in the dtypes of the inputs.

    UsageError when their number, shapes or dtypes do not fit. ``reader``: the file or model that
    reads them, for messages.
    """
    if len(batch) != len(inputs):
        raise UsageError(
            f"{reader} takes {len(inputs)} inputs ({', '.join(spec.name for spec in inputs)}), the"
            f" data have {len(batch)}"
        )
    arrays = []
    for spec, x in zip(inputs, batch, strict=True):
        if (
            x.shape[1:] != spec.shape[1:]
            or len(x) != len(batch[0])
            or len(x) == 0
            or not np.can_cast(x.dtype, spec.dtype, "same_kind")
        ):
            raise UsageError(
                f"input '{spec.name}' of {reader} takes samples of shape {spec.shape[1:]}"
                f" {np.dtype(spec.dtype)}, the data have {x.shape} {x.dtype}"
            )
        arrays.append(np.ascontiguousarray(x, dtype=spec.dtype))
    return arrays


def joined(results: Sequence[Sequence[NDArray[Any]]]) -> Batch:
    """Join the outputs of single samples into one array per output."""
    return tuple(np.concatenate(output) for output in zip(*results, strict=True))
