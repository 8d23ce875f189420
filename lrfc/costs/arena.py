"""The activation arena of a graph: the memory of the tensors between its ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lrfc.costs.placement import Buffer, plan
from lrfc.errors import ModelError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Tensor


@dataclass(frozen=True)
class Arena:
    """The activation memory of one inference, for one sample.

    ``timeline``: bytes alive while each op runs, in execution order; ``peak_bytes`` is its maximum,
    a lower bound of every plan, and ``at_op`` the first op that reaches it.
    """

    peak_bytes: int
    at_op: str
    timeline: Mapping[str, int]
    buffers: tuple[Buffer, ...]

    def planned_bytes(self, alignment: int = 16) -> int:
        """The bytes that a plan takes; see ``lrfc.costs.placement.plan``.

        ``alignment``: of every buffer, in bytes: 16 in TFLite Micro, 64 in TFLite.
        """
        offsets = plan(self.buffers, alignment)
        return max((offsets[buffer.name] + buffer.size for buffer in self.buffers), default=0)


def arena(graph: Graph, itemsize: int = 4) -> Arena:
    """The arena of a graph in its execution order; ModelError when a shape is not fixed.

    ``itemsize``: bytes per float value (4, or 1 for int8); integers have their own size. The inputs
    and outputs of an op are alive while it runs; model inputs from the start, model outputs to the
    end. As in TFLite, no buffer is needed for reshapes and dropout, for a BatchNorm behind a
    convolution or Dense layer, and for a ReLU (also ReLU6) behind those, an addition or a pooling.
    Any other activation, also one in a layer's argument, runs as an op of its own. Nothing else is
    computed in place, and temporaries inside an op (im2col, recurrent states, attention scores) are
    not counted.
    """
    buffers = _buffers(graph, itemsize)
    steps = np.zeros(2 * len(graph) + 2, np.int64)
    for buffer in buffers:
        steps[buffer.first] += buffer.size
        steps[buffer.last + 1] -= buffer.size
    alive = np.cumsum(steps)[: 2 * len(graph)].reshape(-1, 2).max(axis=1)
    timeline = {op.name: int(size) for op, size in zip(graph, alive, strict=True)}
    at_op = max(timeline, key=timeline.__getitem__)
    return Arena(timeline[at_op], at_op, timeline, buffers)


def _buffers(graph: Graph, itemsize: int) -> tuple[Buffer, ...]:
    """All buffers with their lifetimes.

    Op number i runs at step 2i, its activation, if it is not fused, at step 2i + 1.
    """
    owner: dict[Ref, Ref] = {}  # the output whose buffer an output shares, or itself
    first: dict[Ref, int] = {}
    last: dict[Ref, int] = {}
    scratch: list[Buffer] = []
    for i, op in enumerate(graph):
        operands = graph.operands(op.name)
        for ref in operands:
            last[owner[ref]] = 2 * i
        shares = in_place(graph, op)
        for number, tensor in enumerate(graph.tensors(op.name)):
            ref = Ref(op.name, number)
            owner[ref] = owner[operands[0]] if shares else ref
            if shares:
                continue
            separate = own_activation(op)
            first[ref] = last[ref] = 0 if op.kind == "InputLayer" else 2 * i + separate
            if separate:
                scratch.append(
                    Buffer(
                        f"{ref} before its activation",
                        _bytes(tensor, itemsize, op),
                        2 * i,
                        2 * i + 1,
                    )
                )
    for ref in graph.outputs:
        last[owner[ref]] = 2 * len(graph) - 1
    whole = tuple(
        Buffer(
            str(ref), _bytes(graph.tensor(ref), itemsize, graph.op(ref.op)), first[ref], last[ref]
        )
        for ref in first
    )
    return (*whole, *scratch)


def _bytes(tensor: Tensor, itemsize: int, op: Op) -> int:
    if None in tensor.shape[1:]:
        raise ModelError(
            f"layer '{op.name}': the output shape {tensor} is not fixed, so its memory is unknown;"
            " re-save the model with a fixed Input shape"
        )
    return tensor.size * (itemsize if "float" in tensor.dtype else np.dtype(tensor.dtype).itemsize)


def is_view(op: Op) -> bool:
    """Whether the op only renames or reshapes its input, so that no runtime copies it."""
    return op.info.view or (op.kind == "Activation" and op["activation"] in (None, "linear"))


def in_place(graph: Graph, op: Op) -> bool:
    """Whether the op's output shares the buffer of its input."""
    operands = graph.operands(op.name)
    if len(operands) != 1:
        return False
    if is_view(op):
        return True
    source = graph.op(operands[0].op)
    if graph.only_consumer(source.name) is None:
        return False
    if op.kind == "BatchNormalization":
        return _linear(graph, source)
    return _relu(op) and _fuses_relu(graph, source)


def _linear(graph: Graph, op: Op) -> bool:
    """Whether a BatchNorm behind this op can be folded into it, or into the one in front."""
    if op.kind == "BatchNormalization":
        return in_place(graph, op)
    return op.info.is_linear and op["activation"] in (None, "linear")


def _fuses_relu(graph: Graph, op: Op) -> bool:
    if op.kind == "BatchNormalization":
        return True  # folded, or a multiplication and an addition
    return op.info.fuses_relu and (not op.info.is_linear or op["activation"] in (None, "linear"))


def _relu(op: Op) -> bool:
    if op.kind == "ReLU":
        return op["max_value"] in (None, 6) and not op["negative_slope"] and not op["threshold"]
    return op.kind == "Activation" and op["activation"] in ("relu", "relu6")


def own_activation(op: Op) -> bool:
    """Whether the layer's activation argument runs as an op of its own."""
    return op.info.has_kernel and op["activation"] not in (None, "linear", "relu", "relu6")
