"""A layer as a factorization reads it: one kernel tensor for each group, and sizes and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrfc.errors import ModelError
from lrfc.factorization import embedding, recurrent
from lrfc.factorization.base import Cost, Ranks
from lrfc.factorization.einsum import Einsum
from lrfc.factorization.linalg import Array
from lrfc.ir import ops
from lrfc.ir.kinds import Family
from lrfc.ir.op import Op, Tensor
from lrfc.ir.ops import conv_geometry

#: The spatial axes that each stage of a chain takes, first stage first.
Split = tuple[tuple[int, ...], ...]


def refusal(op: Op, source: Tensor) -> str | None:
    """The reason why no factorization applies to this op, as one clause; None when some may."""
    if op.info.is_separable:
        return "a separable convolution is two layers: split it first"
    if op.info.family == "attention":
        return "an attention layer that has to stay whole keeps its projections"
    if op.info.family == "recurrent":
        return recurrent.refusal(op)
    if op.info.family == "embedding":
        return embedding.refusal(op)
    if not op.info.has_kernel:
        return f"{op.kind} is neither a convolution nor a matrix product"
    if "kernel" not in op.weights:
        return "its kernel is not a plain weight"
    if op.info.family == "einsum":
        return Einsum.refusal(op, source)
    return None


@dataclass(frozen=True)
class Layout:
    """A factorizable op on its input.

    ``family`` is 'conv', 'depthwise', 'transposed', 'dense', 'einsum', 'recurrent' or 'embedding'.
    ``kernel`` has the spatial kernel sizes (empty for matrix products). ``inputs`` and ``outputs``
    are the channels of one of the ``groups``; of a recurrent layer they are those of its input
    kernels, and both are those of the rows of an embedding.
    """

    op: Op
    source: Tensor
    family: Family
    kernel: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int

    @staticmethod
    def of(op: Op, source: Tensor) -> Layout:
        """The layout of an op that ``refusal`` accepts."""
        family = op.info.family
        if family == "dense":
            return Layout(op, source, family, (), 1, *op.weights["kernel"].shape)
        if family == "einsum":
            einsum = Einsum.of(op, source)
            return Layout(op, source, family, (), 1, einsum.inputs, einsum.outputs)
        if family == "recurrent":
            return Layout(op, source, family, (), 1, *recurrent.matrix(op).shape)
        if family == "embedding":
            return Layout(op, source, family, (), 1, *embedding.kernel(op).shape)
        geometry = conv_geometry(op, source)
        groups = geometry.groups
        inputs, outputs = geometry.inputs // groups, geometry.outputs // groups
        return Layout(op, source, family, geometry.kernel, groups, inputs, outputs)

    @property
    def wide(self) -> tuple[int, ...]:
        """The spatial axes along which the kernel is longer than 1."""
        return tuple(axis for axis, length in enumerate(self.kernel) if length > 1)

    @property
    def patch(self) -> int:
        """D: the length of one flattened input patch of a group."""
        return self.inputs if self.family == "transposed" else self.inputs * prod(self.kernel)

    # -- arrays ------------------------------------------------------------------------------------

    def tensor(self, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """The kernel as (G, kernel sizes..., S, T)."""
        if self.family == "recurrent":
            return np.asarray(recurrent.matrix(self.op), dtype)[None]
        if self.family == "embedding":
            return np.asarray(embedding.kernel(self.op), dtype)[None]
        kernel = np.asarray(self.op.weights["kernel"], dtype)
        if self.family == "transposed":
            return np.swapaxes(kernel, -1, -2)[None]
        if self.family == "depthwise":
            return np.expand_dims(np.moveaxis(kernel, -2, 0), -2)
        if self.family == "einsum":
            return self.einsum.matrix(kernel)[None]
        return np.moveaxis(kernel.reshape(*kernel.shape[:-1], self.groups, self.outputs), -2, 0)

    def layer_kernel(self, tensor: Array) -> NDArray[np.float32]:
        """The inverse of ``tensor``: a kernel in the layer's own layout.

        That of a recurrent layer is the matrix of its input kernels, that of an embedding the one
        behind it.
        """
        if self.family == "transposed":
            kernel = np.swapaxes(tensor[0], -1, -2)
        elif self.family == "depthwise":
            kernel = np.moveaxis(tensor[..., 0, :], 0, -2)
        elif self.family == "einsum":
            kernel = self.einsum.kernel(tensor[0])
        elif self.family in ("recurrent", "embedding"):
            kernel = tensor[0]
        else:
            moved = np.moveaxis(tensor, 0, -2)
            kernel = moved.reshape(*moved.shape[:-2], -1)
        return np.ascontiguousarray(kernel, np.float32)

    def weights(self, kernel: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """A kernel in the layer's own layout, by the names of the weights that hold it."""
        if self.family == "recurrent":
            return recurrent.kernels(self.op, kernel)
        if self.family == "embedding":
            return {embedding.TABLE: embedding.table(self.op, kernel)}
        return {"kernel": kernel}

    def matrix(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """A kernel tensor as the matrix (G, D, T) from a flattened patch to the response.

        For a transposed convolution it is (1, S, prod(kernel)·T).
        """
        if self.family == "transposed":
            return np.moveaxis(tensor, -2, 1).reshape(1, self.inputs, -1)
        return tensor.reshape(self.groups, self.patch, self.outputs)

    @property
    def bias(self) -> Array | None:
        """The bias (G·T,), or None where it cannot absorb the mean error of every output."""
        bias = self.op.weights.get("bias")
        if bias is None or self.family == "transposed":
            # The mean of a transposed convolution depends on the number of kernel taps that reach
            # an output position: no constant absorbs it.
            return None
        if self.family == "einsum":
            return self.einsum.flat_bias(np.asarray(bias, np.float64))
        return np.asarray(bias, np.float64)

    @cached_property
    def einsum(self) -> Einsum:
        """The equation of an EinsumDense."""
        return Einsum.of(self.op, self.source)

    # -- stages and their cost ---------------------------------------------------------------------

    def place(self, split: Split) -> Split:
        """The split with the axes of length 1 in one of the stages.

        That is the first stage, where a stride leaves the least to compute. In a transposed
        convolution, whose strides enlarge the map, it is the last stage that has a kernel.
        """
        narrow = tuple(axis for axis, length in enumerate(self.kernel) if length == 1)
        number = 0
        if self.family == "transposed":
            number = max((j for j, axes in enumerate(split) if axes), default=len(split) - 1)
        return tuple(
            tuple(sorted(axes + narrow)) if j == number else axes for j, axes in enumerate(split)
        )

    def sizes(self, split: Split) -> list[int]:
        """The number of kernel taps of each stage."""
        return [prod(self.kernel[axis] for axis in axes) for axes in split]

    def cost(self, split: Split, ranks: Ranks) -> Cost:
        """The cost: Σ_j G·r_{j-1}·k_j·r_j weights, each used at every position of its stage.

        Literature sheet, §4.1. A stage runs at the output length along the axes that it or an
        earlier stage takes, and at the input length along the others; a transposed stage runs at
        the length of its input. A recurrent layer also keeps its recurrent kernels and biases; the
        first stage of an embedding is a table, which takes no MACs.
        """
        widths = (self.inputs, *ranks, self.outputs)
        weights = [
            self.groups * widths[j] * size * widths[j + 1]
            for j, size in enumerate(self.sizes(split))
        ]
        macs = sum(w * p for w, p in zip(weights, self.positions(split), strict=True))
        if self.family == "embedding":
            tokens = self.op.weights[embedding.TABLE].shape[0]
            return Cost(tokens * widths[1] + sum(weights[1:]), macs)
        if self.family == "recurrent":
            replaced = self.inputs * self.outputs
            whole = ops.macs(self.op, (self.source,), ops.infer(self.op, (self.source,)))
            macs += whole - replaced * self.positions(split)[0]
            return Cost(sum(weights) + self.op.params - replaced, macs)
        bias = self.op.weights["bias"].size if "bias" in self.op.weights else 0
        return Cost(sum(weights) + bias, macs)

    def positions(self, split: Split) -> list[int]:
        """The number of positions at which each stage applies its kernel; none of a table."""
        if self.family in ("dense", "recurrent"):
            return [_fixed(self.op, self.source.shape[1:-1])] * len(split)
        if self.family == "embedding":
            return [0, *[_fixed(self.op, self.source.shape[1:])] * (len(split) - 1)]
        if self.family == "einsum":
            return [_fixed(self.op, self.einsum.kept_shape)] * len(split)
        geometry = conv_geometry(self.op, self.source)
        taken: set[int] = set()
        positions = []
        for axes in self.place(split):
            before = set(taken)
            taken |= set(axes)
            resized = before if self.family == "transposed" and axes else taken
            lengths = [
                geometry.out_shape[axis] if axis in resized else geometry.in_shape[axis]
                for axis in range(geometry.rank)
            ]
            positions.append(_fixed(self.op, lengths))
        return positions

    def unrunnable(self, placed: Split) -> str | None:
        """The reason why TensorFlow cannot run a stage of this split, as one clause, or None."""
        if self.family != "depthwise":
            return None
        return next(
            (reason for axes in placed if (reason := self.depthwise_limit(axes)) is not None), None
        )

    def depthwise_limit(self, axes: tuple[int, ...]) -> str | None:
        """The reason why a depthwise stage cannot take these axes, as one clause, or None."""
        strides = self.strides(axes)
        if len(set(strides)) > 1:
            return (
                "its stage would be a depthwise convolution with strides"
                f" {'x'.join(map(str, strides))}, which TensorFlow does not run"
            )
        return None

    def strides(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The strides of a stage that takes these axes."""
        return tuple(
            per_axis(self.op["strides"], axis) if axis in axes else 1
            for axis in range(len(self.kernel))
        )


def per_axis(value: Any, axis: int) -> int:
    """The size along one axis; ``value`` is one size for all axes, or one for each."""
    return int(value) if isinstance(value, int) else int(value[axis])


def _fixed(op: Op, lengths: Sequence[int | None]) -> int:
    """The product of the lengths; ModelError when one of them is not fixed."""
    if None in lengths:
        raise ModelError(
            f"layer '{op.name}': the size {tuple(lengths)} of its input is not fixed; re-save the"
            " model with a fixed Input shape"
        )
    return prod(length for length in lengths if length is not None)
