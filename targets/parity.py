"""The check that an emitted file computes the function of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.config.precision import PRECISIONS
from lrfc.errors import ParityError
from lrfc.ir.batch import Batch
from lrfc.protocols import Artifact, Runner
from lrfc.system.spans import span

#: Precision → largest error allowed: of ``relative`` where nothing is rounded to 8 bits
#: (lrfc.config.precision), else of ``distance``. Six trained networks stayed below 2e-5 in float32
#: and below 0.07 in int8; at a distance of 0.5 a classifier changes its answer for every tenth
#: sample.
TOLERANCE: Mapping[str, float] = {
    "fp32": 1e-4,
    "fp16": 2e-2,
    "dynamic": 0.5,
    "int8": 0.5,
    "int16x8": 0.5,
}


@dataclass(frozen=True)
class Parity:
    """The difference between the outputs of a file and of the model: the maximum over the outputs.

    ``max_abs_diff``: largest absolute difference, in the unit of the output. ``relative``: that
    difference divided by the range (max - min) of the output. ``distance``: L2 norm of the
    difference divided by that of the output around its mean. ``samples``: the number of samples
    compared.
    """

    max_abs_diff: float
    relative: float
    distance: float
    samples: int


@span("parity")
def parity(artifact: Artifact, runner: Runner, inputs: Batch, reference: Batch) -> Parity:
    """Run the file on ``inputs`` and compare its outputs with ``reference``, those of the model.

    ParityError when the difference is above TOLERANCE: of ``relative`` for float files, of
    ``distance`` for files that are rounded to 8 bits.
    """
    outputs = runner(inputs)
    shapes, expected = [y.shape for y in outputs], [y.shape for y in reference]
    if shapes != expected:
        raise ParityError(
            f"{artifact.path.name} gives outputs of shape {shapes}, the model {expected}"
        )
    absolute, relative, distance = (
        max(values) for values in zip(*map(_differences, outputs, reference), strict=True)
    )
    result = Parity(absolute, relative, distance, samples=len(inputs[0]))
    rounded, limit = PRECISIONS[artifact.precision].rounding, TOLERANCE[artifact.precision]
    error, measure = (
        (result.distance, "L2 distance")
        if rounded
        else (result.relative, "difference relative to the output's range")
    )
    if not error <= limit:
        raise ParityError(
            f"{artifact.path.name} does not compute what the model computes: {measure} {error:.2g},"
            f" allowed is {limit:g} (largest absolute difference {result.max_abs_diff:.3g},"
            f" {result.samples} samples)"
        )
    return result


def _differences(output: NDArray[Any], reference: NDArray[Any]) -> tuple[float, float, float]:
    """Largest absolute difference, that relative to the range, and the L2 distance."""
    y, r = output.astype(np.float64), reference.astype(np.float64)
    difference = np.abs(y - r)
    if not np.isfinite(difference).all():
        return np.inf, np.inf, np.inf
    spread = np.ptp(r) or np.abs(r).max() or 1.0  # a constant output is held to its own size
    norm = np.linalg.norm(r - r.mean()) or np.linalg.norm(r) or 1.0
    return (
        float(difference.max()),
        float(difference.max() / spread),
        float(np.linalg.norm(difference) / norm),
    )
