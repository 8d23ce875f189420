"""Dilated transposed convolutions as the plain ones that they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.ir.ops import conv_geometry


def without_dilated_transposed(graph: Graph) -> Graph:
    """The graph with a plain convolution in the place of every dilated transposed one.

    TensorFlow computes the latter on some processors only, TFLite neither in 1-D nor in 2-D. Keras
    allows dilation with a stride of 1 alone, and there the convolution is a plain one, with its
    kernel turned round, of an input with zeros around it: the same weights, and but for the zeros
    the same multiplications. ``channels_first`` is taken to be gone (lrfc.ir.channels_last).
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
    """The convolution, behind a ZeroPadding where its own padding does not do.

    y[j] = Σ_t K[t] · x[j + before - t·d], which is the convolution by K reversed, with (reach - 1 -
    before) zeros in front. ``before`` is what the convolution pads of which this one is the
    gradient: nothing if 'valid', the smaller half if 'same'.
    """
    source = graph.input_tensors(op.name)[0]
    at = conv_geometry(op, source)
    reach = [step * (length - 1) + 1 for step, length in zip(at.dilation, at.kernel, strict=True)]
    before = [0 if at.padding == "valid" else (each - 1) // 2 for each in reach]
    front = [each - 1 - zeros for each, zeros in zip(reach, before, strict=True)]
    given = [
        None if n is None else n + each - 1 for n, each in zip(at.in_shape, reach, strict=True)
    ]
    if at.padding == "same":
        given = list(at.in_shape)
    if (
        list(at.out_shape) != given
    ):  # an output_padding that no gradient of a convolution has: TensorFlow refuses it, and says so
        return [op]
    # A transposed kernel is (*K, O, I), a plain one (*K, I, O).
    spatial = tuple(range(at.rank))
    kernel = np.ascontiguousarray(np.swapaxes(np.flip(op.weights["kernel"], spatial), -1, -2))
    taken = {name: value for name, value in op.attrs.items() if name != "output_padding"}
    twin = next(
        (call for call in graph.calls(op) if call.kind == f"Conv{at.rank}D"), None
    )  # an earlier call of the same layer
    weights = twin.weights if twin is not None else {**op.weights, "kernel": kernel}
    symmetric = at.padding == "same" and front == before
    conv = replace(
        op,
        kind=f"Conv{at.rank}D",
        attrs={**taken, "padding": "same" if symmetric else "valid"},
        weights=weights,
    )
    if symmetric:
        return [conv]
    back = before if at.padding == "same" else front
    pairs = tuple(zip(front, back, strict=True))
    name, number = f"{op.name}__padding", 0
    while name in graph:
        number += 1
        name = f"{op.name}__padding_{number}"
    return [
        Op(name, f"ZeroPadding{at.rank}D", {"padding": pairs[0] if at.rank == 1 else pairs}),
        conv,
    ]
