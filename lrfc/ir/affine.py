"""Affine ops, which scale and shift each value, and their folding into linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.ir import ops
from lrfc.ir.op import Array, Op, Tensor

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """The map x · scale + shift.

    Both arrays have one axis for each axis of a sample, of the same length or of length 1.
    """

    scale: Values
    shift: Values

    def then(self, other: Affine) -> Affine:
        """The composition: this map first, then the other one."""
        return Affine(self.scale * other.scale, self.shift * other.scale + other.shift)

    def reshaped(self, before: Tensor, after: Tensor) -> Affine | None:
        """The same map after a Flatten or Reshape, which keep the order of the values.

        None when a length is not fixed.
        """
        old, new = (
            tuple(length for length in shape[1:] if length is not None)
            for shape in (before.shape, after.shape)
        )
        if (len(old), len(new)) != (len(before.shape) - 1, len(after.shape) - 1):
            return None
        return Affine(*(np.broadcast_to(a, old).reshape(new) for a in (self.scale, self.shift)))

    def channels(self, tensor: Tensor, axis: int) -> tuple[Values, Values] | None:
        """Scale and shift (C,) along one axis of the tensor, where the batch is axis 0.

        None when they vary along another axis.
        """
        length = tensor.shape[axis]
        others = [i - 1 for i in range(1, len(tensor.shape)) if i != axis % len(tensor.shape)]
        if length is None or any(a.shape[i] != 1 for a in (self.scale, self.shift) for i in others):
            return None
        scale, shift = (
            np.broadcast_to(values.ravel(), (length,)) for values in (self.scale, self.shift)
        )
        return scale, shift


def at_inference(op: Op) -> bool:
    """Whether the layer computes in inference mode: it was not called with ``training=True``."""
    return op.call is None or not (
        op.call[1].get("training") or True in [arg for arg in op.call[0] if isinstance(arg, bool)]
    )


def affine(op: Op, source: Tensor) -> Affine | None:
    """The affine map of a BatchNormalization, Normalization or Rescaling op on a float input.

    None for every other op, and for one that is called in training mode.
    """
    rule = {
        "BatchNormalization": _batchnorm,
        "Normalization": _normalization,
        "Rescaling": _rescaling,
    }.get(op.kind)
    if rule is None or source.dtype != "float32" or not at_inference(op):
        return None
    return rule(op, source)


def _batchnorm(op: Op, source: Tensor) -> Affine | None:
    """The map γ · (x − μ) / √(σ² + ε) + β.

    Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 2.
    """
    axis = op["axis"]
    axis = axis if isinstance(axis, int) else axis[0]
    weights = {name: np.asarray(w, np.float64) for name, w in op.weights.items()}
    scale = weights.get("gamma", np.float64(1)) / np.sqrt(
        weights["moving_variance"] + op["epsilon"]
    )
    shift = weights.get("beta", np.float64(0)) - weights["moving_mean"] * scale
    shape = [1] * (len(source.shape) - 1)
    shape[axis % len(source.shape) - 1] = scale.size
    return Affine(scale.reshape(shape), shift.reshape(shape))


def _normalization(op: Op, source: Tensor) -> Affine | None:
    from lrfc.ir.backend import keras

    rank = len(source.shape)
    axis = op.attrs.get("axis", (-1,))
    axes = sorted(a % rank for a in ((axis,) if isinstance(axis, int) else axis or ()))
    if 0 in axes:
        return None

    def expand(values: Values) -> Values:
        """The values on their axes; those in a configuration may leave out the first axes."""
        shape = [1] * rank
        for length, position in zip(reversed(values.shape), reversed(axes), strict=False):
            shape[position] = length
        return values.reshape(shape[1:])

    mean, variance = (
        _array(op.attrs.get(name) if op.attrs.get(name) is not None else op.weights[name])
        for name in ("mean", "variance")
    )
    mean, spread = expand(mean), np.maximum(np.sqrt(expand(variance)), keras().config.epsilon())
    return Affine(spread, mean) if op.attrs.get("invert") else Affine(1 / spread, -mean / spread)


def _rescaling(op: Op, source: Tensor) -> Affine | None:
    from lrfc.ir.backend import keras

    rank = len(source.shape) - 1
    values = [_array(op.attrs["scale"]), _array(op.attrs.get("offset", 0.0))]
    if any(a.ndim > rank for a in values) or (
        values[0].ndim and keras().config.image_data_format() == "channels_first"
    ):
        return None
    scale, shift = (a.reshape((1,) * (rank - a.ndim) + a.shape) for a in values)
    fits = all(
        n in (1, length)
        for a in (scale, shift)
        for n, length in zip(a.shape, source.shape[1:], strict=True)
    )
    return Affine(scale, shift) if fits else None


def _array(value: Any) -> Values:
    from lrfc.ir.backend import keras

    return np.asarray(
        keras().saving.deserialize_keras_object(value) if isinstance(value, Mapping) else value,
        np.float64,
    )


# -- folding into a linear layer -------------------------------------------------------------------


def channel_axis(op: Op, tensor: Tensor) -> int:
    """The channel axis of a linear layer's input or output."""
    return (
        1
        if op.info.is_convolution and op["data_format"] == "channels_first"
        else len(tensor.shape) - 1
    )


def take_in_before(op: Op, source: Tensor, transform: Affine) -> Op | None:
    """The linear layer that computes ``op(transform(x))`` exactly; None when there is none.

    W ∗ (s·x + t) = (W·s) ∗ x + Σ W·t. Unless t is 0, the sum is a bias only where the layer
    pads no zeros.
    """
    channels = transform.channels(source, channel_axis(op, source)) if _plain(op) else None
    if channels is None:
        return None
    scale, shift = channels
    if shift.any() and (op.info.is_transposed or _pads(op, source)):
        return None
    weights = {name: np.asarray(w, np.float64) for name, w in op.weights.items()}
    kind = op.info
    if kind.is_transposed:
        return _with(op, weights | {"kernel": weights["kernel"] * scale})  # (*K, O, I)
    if kind.family in ("dense", "conv"):
        # (*K, I/groups, O); the inputs of a group are contiguous, and so are its outputs
        kernel = weights["kernel"]
        groups = 1 if kind.family == "dense" else int(op["groups"])
        by_output = [
            np.repeat(a.reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)
            for a in (scale, shift)
        ]
        added = (kernel * by_output[1]).reshape(-1, kernel.shape[-1]).sum(0)
        return _with(op, weights | {"kernel": kernel * by_output[0]}, added)
    name = "depthwise_kernel" if kind.is_separable else "kernel"  # (*K, I, multiplier)
    kernel = weights[name]
    added = (kernel * shift[:, None]).reshape(-1, kernel.shape[-2] * kernel.shape[-1]).sum(0)
    if kind.is_separable:
        point = weights["pointwise_kernel"]
        added = added @ point.reshape(point.shape[-2:])
    return _with(op, weights | {name: kernel * scale[:, None]}, added)


def take_in_after(op: Op, tensor: Tensor, transform: Affine) -> Op | None:
    """The linear layer that computes ``transform(op(x))`` exactly; None when there is none.

    ``tensor``: the output of the layer.
    """
    channels = (
        transform.channels(tensor, channel_axis(op, tensor))
        if _plain(op) and op["activation"] in (None, "linear")
        else None
    )
    if channels is None:
        return None
    scale, shift = channels
    weights = {name: np.asarray(w, np.float64) for name, w in op.weights.items()}
    name = "pointwise_kernel" if op.info.is_separable else "kernel"
    kernel = weights[name]
    if op.info.is_transposed:  # (*K, O, I)
        kernel = kernel * scale[:, None]
    elif op.info.is_depthwise:  # (*K, I, multiplier)
        kernel = kernel * scale.reshape(-1, kernel.shape[-1])
    else:  # the outputs come last
        kernel = kernel * scale
    bias = {"bias": weights["bias"] * scale} if "bias" in weights else {}
    return _with(op, weights | {name: kernel} | bias, shift)


def _plain(op: Op) -> bool:
    """Whether the op is a linear layer without other weights, such as those of an adapter."""
    names = {"kernel", "depthwise_kernel", "pointwise_kernel", "bias"}
    return op.info.is_linear and not set(op.weights) - names


def _pads(op: Op, source: Tensor) -> bool:
    """Whether the layer may read zeros around its input."""
    if op.info.family == "dense" or op["padding"] == "valid":
        return False
    rank = len(source.shape) - 2
    kernel, strides, dilation = (
        ops.spatial(op[key], rank) for key in ("kernel_size", "strides", "dilation_rate")
    )
    lengths = source.shape[2:] if channel_axis(op, source) == 1 else source.shape[1:-1]
    for k, stride, step, length in zip(kernel, strides, dilation, lengths, strict=True):
        extent = step * (k - 1) + 1
        if k > 1 and (
            op["padding"] == "causal"
            or length is None
            or (-(-length // stride) - 1) * stride + extent > length
        ):
            return True
    return False


def _with(op: Op, weights: Mapping[str, Array], added: Values | None = None) -> Op:
    """The op with these weights and ``added`` in its bias, which is created where there is none."""
    bias = weights.get("bias")
    if added is not None and added.any():
        bias = added if bias is None else bias + added
    arrays = {name: w.astype(np.float32) for name, w in weights.items() if name != "bias"}
    return replace(
        op.with_attrs(use_bias=bias is not None),
        weights=arrays if bias is None else {**arrays, "bias": bias.astype(np.float32)},
    )
