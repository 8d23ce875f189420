"""The norm of the error: weights of output channels, covariance of the inputs, and the bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrfc.errors import ModelError
from lrfc.factorization.base import Ranks, Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import Array, LowRank, cholesky, need, shrink, shrink_rows


def output_scale(layout: Layout, scale: NDArray[Any] | None) -> Array:
    """The weight (G·T,) of each output channel's error.

    Channels that a BatchNorm switches off have a thousandth of the largest weight, so that the
    weighted kernel can be divided by it again.
    """
    length = layout.groups * layout.outputs
    if scale is None:
        return np.ones(length)
    weights = np.abs(np.asarray(scale, np.float64)).reshape(-1)
    if weights.shape != (length,):
        raise ModelError(
            f"layer '{layout.op.name}': {weights.size} output scales for {length} output channels"
        )
    largest = float(weights.max())
    return np.maximum(weights, 1e-3 * largest) if largest > 0 else np.ones(length)


def centred(layout: Layout, statistics: Statistics) -> bool:
    """Whether the mean error is absorbed later, so that it does not count.

    The layer's bias absorbs it, or without one the BatchNorm behind the layer.
    """
    if statistics.mean is None or layout.family == "transposed":
        return False
    return "bias" not in layout.op.weights or layout.bias is not None


def mean_absorbed(layout: Layout, statistics: Statistics) -> bool:
    """Whether the layer's own bias absorbs the mean error."""
    return layout.bias is not None and centred(layout, statistics)


def input_grams(layout: Layout, statistics: Statistics) -> Array:
    """The second moment (G, D, D) of each group's patches, positive definite.

    It is centred where the mean error is absorbed, and shrunk by the number of samples.
    """
    expected = (layout.groups, layout.patch, layout.patch)
    shape = (
        statistics.covariance.shape
        if isinstance(statistics.covariance, np.ndarray)
        else (1, *statistics.covariance.shape)
    )
    if shape != expected:
        raise ModelError(
            f"layer '{layout.op.name}': statistics of shape {shape}, expected {expected}"
        )
    need(
        layout.op.name, f"the covariance of its {layout.patch} inputs", shape, shape[1:], shape[1:]
    )
    if isinstance(statistics.covariance, LowRank):
        return input_rows(layout, statistics).dense()[None]
    grams = np.empty(shape, statistics.covariance.dtype)
    for group, covariance in enumerate(statistics.covariance):
        moment = covariance
        if statistics.mean is not None and not centred(layout, statistics):
            moment = covariance + np.outer(statistics.mean[group], statistics.mean[group])
        grams[group] = shrink(moment, statistics.count)
    return grams


def ordered_grams(
    layout: Layout, statistics: Statistics, order: Sequence[int], dtype: DTypeLike
) -> NDArray[Any]:
    """The result of ``input_grams``, (G, D, D), with the axes (k..., S) of D in this order.

    It is computed once for all decompositions that use the same statistics.
    """
    key = (centred(layout, statistics), tuple(order), np.dtype(dtype).str)
    if key not in statistics.shared:
        shape = (*layout.kernel, layout.inputs)
        grams = input_grams(layout, statistics)
        axes = (0, *(1 + axis for axis in order), *(1 + len(shape) + axis for axis in order))
        moved = grams.reshape(-1, *shape, *shape).transpose(axes)
        statistics.shared[key] = np.ascontiguousarray(moved, dtype).reshape(grams.shape)
    return statistics.shared[key]


def input_rows(layout: Layout, statistics: Statistics) -> LowRank:
    """The result of ``input_grams`` by its rows, for a layer of one group with such statistics."""
    assert isinstance(statistics.covariance, LowRank)
    moment = statistics.covariance
    if statistics.mean is not None and not centred(layout, statistics):
        moment = LowRank(np.concatenate([moment.rows, statistics.mean]))
    return shrink_rows(moment, statistics.count)


def mean_shift(layout: Layout, statistics: Statistics | None, tensor: Array) -> Array | None:
    """The change of the bias (G·T,) that preserves the layer's mean output: (W - W̃)ᵀμ.

    ``tensor`` is the approximated kernel (G, k..., S, T). None when no bias can absorb the mean
    error. The layer's own bias cancels: it is in the mean output before and after (literature
    sheet, §5.1).
    """
    if statistics is None or statistics.mean is None or not mean_absorbed(layout, statistics):
        return None
    approximated = np.einsum("gd,gdt->gt", statistics.mean, layout.matrix(tensor)).reshape(-1)
    return np.asarray(mean_response(layout, statistics) - approximated)


def mean_response(layout: Layout, statistics: Statistics) -> Array:
    """The layer's response (G·T,) to its mean input, without the bias."""
    assert statistics.mean is not None
    # The weights of a wide layer would be a gigabyte in float64: they are read in float32.
    matrix = (
        layout.op.weights["kernel"][None]
        if layout.family == "dense"
        else layout.matrix(layout.tensor())
    )
    return np.asarray(np.einsum("gd,gdt->gt", statistics.mean, matrix).reshape(-1))


def dense_responses(
    layout: Layout,
    tensor: Callable[[Ranks], Array],
    statistics: Statistics | None,
    patches: NDArray[np.float32],
    ranks: Sequence[Ranks],
) -> Iterator[NDArray[np.float32]]:
    """Responses (N, T) to patches (N, G, D) at each of the ranks, by the approximated kernels.

    For a transposed convolution they are (N, prod(kernel)·T), without the bias.
    """
    for choice in ranks:
        approximation = tensor(choice)
        matrix = layout.matrix(approximation).astype(np.float32)
        yield add_bias(
            layout, multiplied(patches, matrix), mean_shift(layout, statistics, approximation)
        )


def multiplied(patches: NDArray[np.float32], matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """The products (N, G·T) of patches (N, G, D) and the matrices (G, D, T) of their groups."""
    if matrices.shape[2] == 1:  # depthwise: without a copy, in half the time
        return np.asarray(np.einsum("ngd,gd->ng", patches, matrices[..., 0]))
    products = patches.swapaxes(0, 1) @ matrices
    return products.swapaxes(0, 1).reshape(len(patches), -1)


def add_bias(layout: Layout, response: NDArray[Any], shift: Array | None) -> NDArray[np.float32]:
    """The response with the layer's bias and its shift.

    It is unchanged where the layer has no bias, or none that is a constant of the patch's response.
    """
    bias = layout.bias
    if bias is None:
        return response.astype(np.float32, copy=False)
    return (response + (bias if shift is None else bias + shift)).astype(np.float32)


def tensor_of(layout: Layout, order: Sequence[int], cores: Sequence[Array]) -> Array:
    """The kernel tensor (G, k..., S, T) of cores (G, r_in, taps, r_out).

    ``order`` has the tensor's axes in the chain's order: S, those of the stages, T.
    """
    product = cores[0]
    for core in cores[1:]:
        product = np.matmul(
            product.reshape(layout.groups, -1, product.shape[-1]),
            core.reshape(layout.groups, core.shape[1], -1),
        )
        product = product.reshape(layout.groups, -1, core.shape[-1])
    sizes = (*layout.kernel, layout.inputs, layout.outputs)
    assert product.size == layout.groups * prod(sizes)
    chained = product.reshape(layout.groups, *(sizes[axis] for axis in order))
    back = [0, *(1 + int(axis) for axis in np.argsort(order))]
    return chained.transpose(back)


def separable_roots(gram: Array, sizes: Sequence[int]) -> list[Array]:
    """Cholesky factors of the partial traces of ``gram``, one for each mode.

    The Kronecker product of the partial traces is near ``gram``.
    """
    full = gram.reshape(*sizes, *sizes)
    roots = []
    for mode, size in enumerate(sizes):
        letters = "abcdefgh"[: len(sizes)]
        part = np.einsum(f"{letters}{letters.replace(letters[mode], 'z')}->{letters[mode]}z", full)
        roots.append(cholesky(part * size / np.trace(part)))
    return roots
