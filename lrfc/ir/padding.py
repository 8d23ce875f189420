"""Zero padding behind the pointwise convolution that reads it."""

from __future__ import annotations

from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Tensor


def pad_later(graph: Graph) -> Graph:
    """Move zero padding behind the pointwise convolution without bias that reads it.

    Given::

        pad = ZeroPadding2D(x) padding=1 -> (?, 10, 10, 64)
        conv__in = Conv2D(pad) filters=8 kernel_size=1 use_bias=False -> (?, 10, 10, 8)
        conv = Conv2D(conv__in) filters=64 kernel_size=3 -> (?, 8, 8, 64)

    Result (the same outputs)::

        conv__in = Conv2D(x) filters=8 kernel_size=1 use_bias=False -> (?, 8, 8, 8)
        pad = ZeroPadding2D(conv__in) padding=1 -> (?, 10, 10, 8)
        conv = Conv2D(pad) filters=64 kernel_size=3 -> (?, 8, 8, 64)

    The padding is of fewer channels, the pointwise convolution computes fewer positions, and a
    compiler can fuse the padding into the next convolution, as it was before the layer was
    factorized.
    """
    graph = graph.copy()
    for op in graph:
        reader = graph.only_consumer(op.name) if is_padding(op) else None
        if reader is None or not keeps_zeros(reader, graph.input_tensors(reader.name)[0]):
            continue
        if len(graph.calls(reader)) > 1 or any(out.op == reader.name for out in graph.outputs):
            continue
        (source,) = graph.operands(op.name)
        before = f"{reader.name}\0"  # frees the name
        graph.rename(reader.name, before)
        graph.rename(op.name, f"{op.name}\0")
        narrow = graph.add(reader, (source,), before=before)
        padded = graph.add(op, (narrow,), before=before)
        graph.substitute(Ref(before), padded)
        graph.remove(before)
        graph.remove(f"{op.name}\0")
    return graph


def is_padding(op: Op) -> bool:
    """Whether the op pads images, signals or volumes with zeros."""
    return op.info.family == "padding"


def keeps_zeros(op: Op, source: Tensor) -> bool:
    """Whether the op computes each position from that position alone, and 0 from zeros."""
    if op.info.family != "conv" or "bias" in op.weights:
        return False
    if op["activation"] not in (None, "linear"):
        return False
    conv = ops.conv_geometry(op, source)
    return {*conv.kernel, *conv.strides} == {1}
