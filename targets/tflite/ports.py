"""Inputs and outputs of a .tflite file: floats outside, integers inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.ir import backend
from lrfc.targets.imports import need
from lrfc.targets.samples import Spec


class Port(NamedTuple):
    """An input or output of a loaded file.

    ``number``: of its tensor. ``spec``: of the values outside; integers with a scale are floats
    there. ``dtype``: of the tensor.
    """

    number: int
    spec: Spec
    dtype: Any
    scale: float
    zero_point: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Port:
        """The port in an entry of the interpreter's details."""
        scale, zero_point = entry["quantization"]
        dtype = np.float32 if scale else entry["dtype"]
        return cls(
            entry["index"],
            Spec(entry["name"], tuple(entry["shape"].tolist()), dtype),
            entry["dtype"],
            float(scale),
            int(zero_point),
        )

    def quantised(self, x: NDArray[Any]) -> NDArray[Any]:
        """The values as the tensor stores them."""
        if not self.scale:
            return x
        limits = np.iinfo(self.dtype)
        rounded = np.rint(x / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(rounded, limits.min, limits.max), self.dtype)

    def dequantised(self, y: NDArray[Any]) -> NDArray[Any]:
        """The values that a tensor represents."""
        return (
            np.float32(self.scale) * (y.astype(np.float32) - self.zero_point) if self.scale else y
        )


def ports(path: Path) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of a file, in its order; ModelError when LiteRT refuses it."""
    litert = need("ai_edge_litert.interpreter", "ai-edge-litert")
    try:
        file = litert.Interpreter(model_path=str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"LiteRT cannot load {path}: {backend.reason(error)}") from error
    inputs, outputs = file.get_input_details(), file.get_output_details()
    return [Port.of(entry) for entry in inputs], [Port.of(entry) for entry in outputs]
