"""Rewrite of dilated transposed convolutions as plain convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op
from lrfc.ir.ops import conv_geometry


def without_dilated_transposed(graph: Graph) -> Graph:
    """Replace every dilated transposed convolution by a plain one.

    TensorFlow computes the former on some processors only, TFLite neither in 1-D nor in 2-D. Keras
    allows dilation only with a stride of 1. Such an op is a plain convolution with the kernel
    reversed, on an input that is padded with zeros: the weights are the same, and but for the zeros
    the multiplications are too. The graph must have its channels last (lrfc.ir.channels_last).
    """
    for op in graph:
        if _dilated(op):
            graph = graph.copy()
            graph.splice(op.name, _plain(graph, op))
    return graph


def _dilated(op: Op) -> bool:
    if op.origin is not None or not op.kind.startswith("Conv") or not op.kind.endswith("Transpose"):
        return False
    dilation = op["dilation_rate"]
    return bool(
        np.max(dilation) > 1 and np.max(op["strides"]) == 1 and op["data_format"] == "channels_last"
    )


def _plain(graph: Graph, op: Op) -> list[Op]:
    """The plain convolution, after a ZeroPadding where its own padding is not the right one.

    y[j] = Σ_t K[t] · x[j + before - t·d]: the convolution by the reversed K, with
    (extent - 1 - before) zeros in front. ``before`` is the front padding of the convolution whose
    gradient this op is: none if 'valid', the smaller half if 'same'.
    """
    at = conv_geometry(op, graph.input_tensors(op.name)[0])
    extents = [step * (length - 1) + 1 for step, length in zip(at.dilation, at.kernel, strict=True)]
    before = [0 if at.padding == "valid" else (extent - 1) // 2 for extent in extents]
    front = [extent - 1 - zeros for extent, zeros in zip(extents, before, strict=True)]
    expected = list(at.in_shape)
    if at.padding != "same":
        expected = [
            None if length is None else length + extent - 1
            for length, extent in zip(at.in_shape, extents, strict=True)
        ]
    if list(at.out_shape) != expected:
        # No gradient of a convolution has such an output_padding: TensorFlow refuses the op.
        return [op]
    symmetric = at.padding == "same" and front == before
    attrs = {name: value for name, value in op.attrs.items() if name != "output_padding"}
    conv = replace(
        op,
        kind=f"Conv{at.rank}D",
        attrs={**attrs, "padding": "same" if symmetric else "valid"},
        weights=_plain_weights(graph, op, at.rank),
    )
    if symmetric:
        return [conv]
    back = before if at.padding == "same" else front
    pairs = tuple(zip(front, back, strict=True))
    padding = {"padding": pairs[0] if at.rank == 1 else pairs}
    return [Op(graph.free_name(f"{op.name}__padding"), f"ZeroPadding{at.rank}D", padding), conv]


def _plain_weights(graph: Graph, op: Op, rank: int) -> Mapping[str, Array]:
    """The weights of the plain convolution: those of an earlier call of a shared layer, if any.

    A transposed kernel is (*K, O, I), a plain one (*K, I, O).
    """
    for call in graph.calls(op):
        if call.kind == f"Conv{rank}D":
            return call.weights
    flipped = np.flip(op.weights["kernel"], tuple(range(rank)))
    return {**op.weights, "kernel": np.ascontiguousarray(np.swapaxes(flipped, -1, -2))}
