"""Closed-form reconstruction of a consumer from its remaining input channels."""

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
    """The weights of a consumer after pruning, in its own shapes, with zeros for removed inputs.

    ``bias`` is None if the layer has none. Then ``shift`` (T,) is the mean that the output has
    lost, if the statistics are centred; the BatchNorm behind the layer absorbs it by ``moving_mean
    - shift``. ``shift`` is None if there is nothing to absorb, or the bias absorbs it. ``error``
    is the energy of the error of the output, relative to that of the output.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    shift: NDArray[np.float32] | None
    error: float


def layout_of(op: Op, source: Tensor) -> Layout:
    """The layout of a consumer; ModelError if its kernel is not a plain matrix."""
    reason = refusal(op, source)
    if reason is not None:
        raise ModelError(f"layer '{op.name}': {reason}")
    return Layout.of(op, source)


def patch_rows(layout: Layout, channels: Ids) -> Ids:
    """Values for each input channel, repeated for each row (G, D) of the layer's patches.

    A matrix product has one value for each of its rows already.
    """
    if layout.family in ("conv", "depthwise"):
        return np.tile(channels.reshape(layout.groups, -1), layout.patch // layout.inputs)
    return channels.reshape(1, -1)


def refitted(op: Op, source: Tensor, statistics: Statistics, removed: Ids) -> Refitted:
    """The weights that best reproduce the layer's output without the ``removed`` input channels.

    For covariance G of inputs, kept rows K and removed rows R: W_K + (G_KK)⁻¹·G_KR·W_R, the
    solution of least squares (He, Zhang, Sun 2017, arXiv 1707.06168, eq. 2 for given channels).
    The covariance is shrunk towards the identity by its sample size, which is the ridge. The bias
    absorbs the mean of the removed channels, so that only their variation has to be reconstructed.
    ``removed`` is ``Part.where`` of a consumer.
    """
    layout = layout_of(op, source)
    channels = np.zeros(layout.groups * layout.inputs, np.intp)
    channels[removed] = 1
    old = layout.matrix(layout.tensor())
    new, error = _reconstructed(layout, statistics, old, patch_rows(layout, channels).astype(bool))
    shift = None
    if statistics.mean is not None and centred(layout, statistics):
        shift = np.einsum("gd,gdt->gt", statistics.mean, old - new).reshape(-1)
    bias = op.weights.get("bias")
    if bias is not None and shift is not None and layout.bias is not None:
        flat = layout.bias + shift
        bias, shift = (layout.einsum.layer_bias(flat) if layout.family == "einsum" else flat), None
    kernel = (
        layout.layer_kernel(new.reshape(layout.tensor().shape))
        if layout.family != "transposed"
        else _transposed_kernel(layout, new)
    )
    return Refitted(
        kernel,
        None if bias is None else np.asarray(bias, np.float32),
        None if shift is None else shift.astype(np.float32),
        error,
    )


def _reconstructed(
    layout: Layout, statistics: Statistics, old: Array, removed: NDArray[np.bool_]
) -> tuple[Array, float]:
    """The matrix (G, D, T) without the ``removed`` rows (G, D), and the relative error."""
    new, error, energy = np.where(removed[..., None], 0, old), 0.0, 0.0
    if isinstance(statistics.covariance, LowRank):
        rows = input_rows(layout, statistics)
        new[0, ~removed[0]] += _wide_correction(rows, removed[0], old[0, removed[0]])
        error, energy = _energy(rows, old[0] - new[0]), _energy(rows, old[0])
    else:
        for group, gram in enumerate(input_grams(layout, statistics)):
            out = removed[group]
            if out.any() and not out.all():
                new[group, ~out] += solve_positive(
                    gram[np.ix_(~out, ~out)], gram[np.ix_(~out, out)] @ old[group, out]
                )
            error += _energy(gram, old[group] - new[group])
            energy += _energy(gram, old[group])
    return new, error / max(energy, 1e-30)


def _transposed_kernel(layout: Layout, matrix: Array) -> NDArray[np.float32]:
    """The kernel of a transposed convolution from its matrix (1, S, prod(kernel)·T)."""
    return layout.layer_kernel(
        np.moveaxis(matrix.reshape(1, layout.inputs, *layout.kernel, layout.outputs), 1, -2)
    )


def _wide_correction(covariance: LowRank, removed: NDArray[np.bool_], weights: Array) -> Array:
    """The correction of the kept rows, for far fewer samples X than inputs.

    With ``weights`` W_R, (X_KᵀX_K + ρI)⁻¹·X_KᵀX_R·W_R is
    X_Kᵀ·(X_K·X_Kᵀ + ρI)⁻¹·X_R·W_R.
    """
    kept_inputs, removed_inputs = covariance.rows[:, ~removed], covariance.rows[:, removed]
    inner = kept_inputs @ kept_inputs.T
    inner[np.diag_indices(len(inner))] += covariance.ridge
    return np.asarray(kept_inputs.T @ solve_positive(inner, removed_inputs @ weights))


def _energy(gram: Array | LowRank, matrix: Array) -> float:
    """tr(Wᵀ·G·W)."""
    return float(np.vdot(matrix, gram @ matrix))
