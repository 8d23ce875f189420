"""The samples that a file runs on: shapes and dtypes checked before, results joined after."""

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
    """An input of a file: its name, its shape with the batch axis, its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


def checked(batch: Batch, inputs: Sequence[Spec], taker: str) -> list[NDArray[Any]]:
    """The arrays with the dtypes of the inputs; UsageError, naming the taker, when their number, shapes or dtypes do not fit."""
    if len(batch) != len(inputs):
        raise UsageError(
            f"{taker} takes {len(inputs)} inputs ({', '.join(spec.name for spec in inputs)}), the"
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
                f"input '{spec.name}' of {taker} takes samples of shape {spec.shape[1:]}"
                f" {np.dtype(spec.dtype)}, the data have {x.shape} {x.dtype}"
            )
        arrays.append(np.ascontiguousarray(x, dtype=spec.dtype))
    return arrays


def joined(results: Sequence[Sequence[NDArray[Any]]]) -> Batch:
    """The outputs of all samples, one array per output, from the outputs of each sample."""
    return tuple(np.concatenate(output) for output in zip(*results, strict=True))
