"""How a layer looks to a factorization: one kernel tensor per group, and the plain ops that can stand in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.factorization.base import Cost, Ranks
from lrfc.factorization.einsum import Einsum
from lrfc.factorization.linalg import Array
from lrfc.ir.graph import Op, Tensor
from lrfc.ir.ops import conv_geometry

#: The spatial axes that each stage of a chain takes, first stage first.
Split = tuple[tuple[int, ...], ...]

_CONV = re.compile(r"(Depthwise)?Conv([123])D(Transpose)?")
#: Attributes of the layer that all its stages take over, and those that the last one takes over as well.
_CARRIED = ("dtype", "trainable", "data_format")
_LAST = ("activation", "activity_regularizer", "bias_initializer", "bias_regularizer", "bias_constraint")


def refusal(op: Op, source: Tensor) -> str | None:
    """Why no factorization applies to this op, as one clause; None when some may."""
    if op.kind.startswith("SeparableConv"):
        return "a separable convolution is two layers: split it first"
    if op.kind == "MultiHeadAttention":
        return "the projections of an attention layer are inside the layer, which Keras offers only as a whole"
    if _CONV.fullmatch(op.kind) is None and op.kind not in ("Dense", "EinsumDense"):
        return f"{op.kind} is neither a convolution nor a matrix product"
    if "kernel" not in op.weights:
        return "its kernel is not a plain weight"
    if op.kind == "EinsumDense":
        return Einsum.refusal(op, source)
    return None


@dataclass(frozen=True)
class Layout:
    """A factorizable op on its input: sizes of one group, and what builds its stages.

    ``family`` is 'conv', 'depthwise', 'transposed', 'dense' or 'einsum'; ``kernel`` the spatial kernel sizes (empty for dense and einsum);
    ``inputs`` and ``outputs`` the channels of one of the ``groups``.
    """

    op: Op
    source: Tensor
    family: str
    kernel: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int

    @staticmethod
    def of(op: Op, source: Tensor) -> Layout:
        """The layout of an op that ``refusal`` lets pass."""
        if op.kind == "Dense":
            return Layout(op, source, "dense", (), 1, *op.weights["kernel"].shape)
        if op.kind == "EinsumDense":
            einsum = Einsum.of(op, source)
            return Layout(op, source, "einsum", (), 1, einsum.inputs, einsum.outputs)
        at = conv_geometry(op, source)
        family = "transposed" if at.transposed else "depthwise" if at.multiplier else "conv"
        return Layout(op, source, family, at.kernel, at.groups, at.inputs // at.groups, at.outputs // at.groups)

    @property
    def wide(self) -> tuple[int, ...]:
        """The spatial axes along which the kernel is longer than 1."""
        return tuple(axis for axis, length in enumerate(self.kernel) if length > 1)

    @property
    def patch(self) -> int:
        """D: the length of one flattened input patch of a group."""
        return self.inputs if self.family == "transposed" else self.inputs * prod(self.kernel)

    # -- arrays ----------------------------------------------------------------------------------------------------------------

    def tensor(self) -> Array:
        """The kernel as (G, kernel sizes..., S, T), float64."""
        kernel = np.asarray(self.op.weights["kernel"], np.float64)
        if self.family == "transposed":
            return np.swapaxes(kernel, -1, -2)[None]
        if self.family == "depthwise":
            return np.expand_dims(np.moveaxis(kernel, -2, 0), -2)
        if self.family == "einsum":
            return self._einsum.matrix(kernel)[None]
        return np.moveaxis(kernel.reshape(*kernel.shape[:-1], self.groups, self.outputs), -2, 0)

    def layer_kernel(self, tensor: Array) -> NDArray[np.float32]:
        """The inverse of ``tensor``: a kernel in the layer's own layout."""
        if self.family == "transposed":
            kernel = np.swapaxes(tensor[0], -1, -2)
        elif self.family == "depthwise":
            kernel = np.moveaxis(tensor[..., 0, :], 0, -2)
        elif self.family == "einsum":
            kernel = self._einsum.kernel(tensor[0])
        else:
            moved = np.moveaxis(tensor, 0, -2)
            kernel = moved.reshape(*moved.shape[:-2], -1)
        return np.ascontiguousarray(kernel, np.float32)

    def matrix(self, tensor: Array) -> Array:
        """A kernel tensor as the map from a flattened patch to the response: (G, D, T), or (1, S, prod(kernel)·T) for a transposed convolution."""
        if self.family == "transposed":
            return np.moveaxis(tensor, -2, 1).reshape(1, self.inputs, -1)
        return tensor.reshape(self.groups, self.patch, self.outputs)

    @property
    def bias(self) -> Array | None:
        """The bias, (G·T,) where it can absorb the mean error of every output, else None."""
        bias = self.op.weights.get("bias")
        if bias is None or self.family == "transposed":
            # The mean of a transposed convolution depends on how many kernel taps reach an output position: no constant absorbs it.
            return None
        if self.family == "einsum":
            return self._einsum.flat_bias(np.asarray(bias, np.float64))
        return np.asarray(bias, np.float64)

    @cached_property
    def _einsum(self) -> Einsum:
        return Einsum.of(self.op, self.source)

    # -- stages ----------------------------------------------------------------------------------------------------------------

    def place(self, split: Split) -> Split:
        """The split with the axes of length 1 given to a stage.

        The first stage takes them, where a stride leaves the least to compute; in a transposed convolution, whose strides enlarge the map, the last
        stage that has a kernel.
        """
        narrow = tuple(axis for axis, length in enumerate(self.kernel) if length == 1)
        at = max((j for j, axes in enumerate(split) if axes), default=len(split) - 1) if self.family == "transposed" else 0
        return tuple(tuple(sorted(axes + narrow)) if j == at else axes for j, axes in enumerate(split))

    def sizes(self, split: Split) -> list[int]:
        """The number of kernel taps of each stage."""
        return [prod(self.kernel[axis] for axis in axes) for axes in split]

    def cost(self, split: Split, ranks: Ranks) -> Cost:
        """Σ_j G·r_{j-1}·k_j·r_j weights, each used once at every position of its stage (reference: §4.1 of the literature sheet).

        A stage runs at the output length along the axes that it or an earlier stage takes, at the input length along the others; a transposed
        stage runs at the length that it reads.
        """
        widths = (self.inputs, *ranks, self.outputs)
        weights = [self.groups * widths[j] * size * widths[j + 1] for j, size in enumerate(self.sizes(split))]
        bias = self.op.weights["bias"].size if "bias" in self.op.weights else 0
        return Cost(sum(weights) + bias, sum(w * p for w, p in zip(weights, self.positions(split), strict=True)))

    def positions(self, split: Split) -> list[int]:
        """The number of positions at which each stage applies its kernel."""
        if self.family == "dense":
            return [_fixed(self.op, self.source.shape[1:-1])] * len(split)
        if self.family == "einsum":
            return [_fixed(self.op, self._einsum.kept_shape)] * len(split)
        at = conv_geometry(self.op, self.source)
        placed = self.place(split)
        taken: set[int] = set()
        positions = []
        for axes in placed:
            before = set(taken)
            taken |= set(axes)
            grown = before if self.family == "transposed" else taken
            if self.family == "transposed" and not axes:
                grown = taken
            positions.append(_fixed(self.op, [at.out_shape[a] if a in grown else at.in_shape[a] for a in range(at.rank)]))
        return positions

    def unrunnable(self, placed: Split) -> str | None:
        """Why a stage of this split has no kernel in TensorFlow, as one clause."""
        for axes in placed:
            strides = self.strides(axes)
            if self.family == "depthwise" and len(set(strides)) > 1:
                return f"its stage would be a depthwise convolution with strides {'x'.join(map(str, strides))}, which TensorFlow does not run"
        return None

    def strides(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The strides of a stage that takes these axes."""
        return tuple(_per_axis(self.op["strides"], axis) if axis in axes else 1 for axis in range(len(self.kernel)))

    def stage(self, role: str | None, axes: tuple[int, ...], kernel: Array) -> Op:
        """One stage: a linear op ``<name>__<role>`` without bias, or the last one when ``role`` is None (its bias is added by ``finish``).

        ``kernel`` is (G, r_in, taps, r_out) with the taps of ``axes`` flattened in ascending order.
        """
        groups, width, _, outputs = kernel.shape
        kernel = kernel.swapaxes(1, 2)
        attrs: dict[str, Any] = {key: self.op.attrs[key] for key in _CARRIED if key in self.op.attrs}
        if role is None:
            attrs |= {key: self.op.attrs[key] for key in _LAST if key in self.op.attrs}
        attrs |= {"use_bias": role is None and "bias" in self.op.weights}
        name, shared = (text if role is None or text is None else f"{text}__{role}" for text in (self.op.name, self.op.shared))
        assert name is not None
        if self.family == "dense":
            return Op(name, "Dense", {**attrs, "units": outputs}, {"kernel": kernel[0, 0].astype(np.float32)}, shared)
        if self.family == "einsum":
            del attrs["use_bias"]
            kind, extra, array = self._einsum.stage(kernel[0, 0], last=role is None)
            return Op(name, kind, {**attrs, **extra}, {"kernel": array.astype(np.float32)}, shared)
        rank = len(self.kernel)
        taps = tuple(self.kernel[axis] if axis in axes else 1 for axis in range(rank))
        attrs |= {
            "kernel_size": taps,
            "strides": self.strides(axes),
            "dilation_rate": tuple(_per_axis(self.op["dilation_rate"], axis) if axis in axes and taps[axis] > 1 else 1 for axis in range(rank)),
            "padding": self.op["padding"] if axes and (max(taps) > 1 or self.family == "transposed") else "valid",
        }
        array = kernel.reshape(groups, *taps, width, outputs)
        if self.family == "transposed" and axes:
            extra_length = self.op["output_padding"]
            if extra_length is not None:
                attrs["output_padding"] = tuple(_per_axis(extra_length, axis) if axis in axes else 0 for axis in range(rank))
            kind, array = f"Conv{rank}DTranspose", np.swapaxes(array[0], -1, -2)
            attrs["filters"] = outputs
        elif self.family == "depthwise" and width == 1:
            kind, array = f"DepthwiseConv{rank}D", np.moveaxis(array[..., 0, :], 0, -2)
            attrs["depth_multiplier"] = outputs
        else:
            moved = np.moveaxis(array, 0, -2)
            kind, array = f"Conv{rank}D", moved.reshape(*moved.shape[:-2], -1)
            attrs |= {"filters": groups * outputs, "groups": groups}
        return Op(name, kind, attrs, {"kernel": np.ascontiguousarray(array, np.float32)}, shared)

    def finish(self, last: Op, shift: Array | None) -> Op:
        """The last stage with the layer's bias, moved by ``shift`` (G·T,)."""
        bias = self.op.weights.get("bias")
        if bias is None:
            return last
        if shift is not None:
            moved = self._einsum.layer_bias(shift) if self.family == "einsum" else shift
            bias = (bias + moved).astype(np.float32)
        return Op(last.name, last.kind, last.attrs, {**last.weights, "bias": bias}, last.shared)


def _per_axis(value: Any, axis: int) -> int:
    return int(value) if isinstance(value, int) else int(value[axis])


def _fixed(op: Op, lengths: Sequence[int | None]) -> int:
    if None in lengths:
        raise ModelError(f"layer '{op.name}': the size {tuple(lengths)} of its input is not fixed; re-save the model with a fixed Input shape")
    return prod(length for length in lengths if length is not None)
