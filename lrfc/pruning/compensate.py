"""The layer behind a cut, refitted in closed form: what it still reads makes up for what is gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.factorization.base import Statistics
from lrfc.factorization.layout import Layout, refusal
from lrfc.factorization.linalg import Array, LowRank, solve_positive
from lrfc.factorization.norms import centred, input_grams, input_rows
from lrfc.ir.op import Op, Tensor
from lrfc.pruning.labels import Ids


@dataclass(frozen=True, eq=False)
class Refitted:
    """A layer's weights after a cut in front of it, in its own shapes, with zeros where it read what is gone.

    ``bias`` is None where the layer has none. Then ``shift`` (T,), where the statistics are
    centred, is the mean response that is missing: the moving mean of the BatchNorm behind the layer
    absorbs it by ``moving_mean - shift``. It is None where there is nothing to absorb, or the bias
    did. ``error`` is the energy of the response that could not be made up for, relative to that of
    the response.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    shift: NDArray[np.float32] | None
    error: float


def layout_of(op: Op, source: Tensor) -> Layout:
    """The layout of a layer that reads filters; ModelError for those that have no plain matrix."""
    why = refusal(op, source)
    if why is not None:
        raise ModelError(f"layer '{op.name}': {why}")
    return Layout.of(op, source)


def patch_rows(layout: Layout, channels: Ids) -> Ids:
    """What is said of each input channel (of each row, for a matrix product), said of each row (G, D) of the layer's patches."""
    if layout.family in ("conv", "depthwise"):
        return np.tile(channels.reshape(layout.groups, -1), layout.patch // layout.inputs)
    return channels.reshape(1, -1)


def refitted(op: Op, source: Tensor, statistics: Statistics, removed: Ids) -> Refitted:
    """The layer's weights that best give its own response without the ``removed`` input channels (``Part.where`` of a consumer).

    For covariance G of the inputs, kept rows K and removed rows R: W_K + (G_KK)⁻¹·G_KR·W_R, the
    least-squares solution (He, Zhang and Sun 2017, arXiv 1707.06168, eq. 2 with the channels
    given). The covariance is shrunk towards the identity by its sample size, which is the ridge.
    The bias absorbs the mean of what is gone, so that only its variation has to be made up for.
    """
    layout = layout_of(op, source)
    channels = np.zeros(layout.groups * layout.inputs, np.intp)
    channels[removed] = 1
    gone = patch_rows(layout, channels).astype(bool)
    old = layout.matrix(layout.tensor())
    new, error, energy = np.where(gone[..., None], 0, old), 0.0, 0.0
    if isinstance(statistics.covariance, LowRank):
        rows = input_rows(layout, statistics)
        new[0, ~gone[0]] += _made_up_by_rows(rows, gone[0], old[0, gone[0]])
        error, energy = _energy(rows, old[0] - new[0]), _energy(rows, old[0])
    else:
        for group, gram in enumerate(input_grams(layout, statistics)):
            lost = gone[group]
            if lost.any() and not lost.all():
                new[group, ~lost] += solve_positive(
                    gram[np.ix_(~lost, ~lost)], gram[np.ix_(~lost, lost)] @ old[group, lost]
                )
            error, energy = (
                error + _energy(gram, old[group] - new[group]),
                energy + _energy(gram, old[group]),
            )
    shift = None
    if statistics.mean is not None and centred(layout, statistics):
        shift = np.einsum("gd,gdt->gt", statistics.mean, old - new).reshape(-1)
    bias = op.weights.get("bias")
    if bias is not None and shift is not None and layout.bias is not None:
        flat = layout.bias + shift
        bias, shift = (layout.einsum.layer_bias(flat) if layout.family == "einsum" else flat), None
    return Refitted(
        (
            layout.layer_kernel(new.reshape(layout.tensor().shape))
            if layout.family != "transposed"
            else _transposed_kernel(layout, new)
        ),
        None if bias is None else np.asarray(bias, np.float32),
        None if shift is None else shift.astype(np.float32),
        error / max(energy, 1e-30),
    )


def _transposed_kernel(layout: Layout, matrix: Array) -> NDArray[np.float32]:
    """The kernel of a matrix (1, S, prod(kernel)·T)."""
    return layout.layer_kernel(
        np.moveaxis(matrix.reshape(1, layout.inputs, *layout.kernel, layout.outputs), 1, -2)
    )


def _made_up_by_rows(covariance: LowRank, gone: NDArray[np.bool_], lost: Array) -> Array:
    """(X_KᵀX_K + ρI)⁻¹·X_KᵀX_R·W_R = X_Kᵀ·(X_K·X_Kᵀ + ρI)⁻¹·X_R·W_R, for far fewer samples X than inputs."""
    kept, removed = covariance.rows[:, ~gone], covariance.rows[:, gone]
    inner = kept @ kept.T
    inner[np.diag_indices(len(inner))] += covariance.ridge
    return np.asarray(kept.T @ solve_positive(inner, removed @ lost))


def _energy(gram: Array | LowRank, matrix: Array) -> float:
    return float(np.vdot(matrix, gram @ matrix))
