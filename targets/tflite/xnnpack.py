"""The workspace of XNNPACK, the library by which LiteRT runs .tflite files on processors.

LiteRT reports no memory. This is XNNPACK's own rule, for files that it runs as a whole. Weights are
not in the workspace, nor are the inputs and outputs of a file, which LiteRT holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from lrfc.costs import placement
from lrfc.costs.placement import Buffer
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import fixed

#: Operators that may write their output over an input of its size.
OVERWRITING = frozenset(
    {
        "ADD",
        "ELU",
        "HARD_SWISH",
        "LEAKY_RELU",
        "LOGISTIC",
        "MUL",
        "RELU",
        "RELU6",
        "RESHAPE",
        "SOFTMAX",
        "SUB",
        "TANH",
    }
)
#: Operators of either list that XNNPACK runs in float only.
IN_FLOAT = frozenset({"ELU", "HARD_SWISH", "LEAKY_RELU", "TRANSPOSE_CONV"})
#: Further operators, each with an output of its own.
OTHERS = frozenset(
    {
        "AVERAGE_POOL_2D",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "DEQUANTIZE",
        "FULLY_CONNECTED",
        "MAX_POOL_2D",
        "MEAN",
        "PAD",
        "QUANTIZE",
        "RESIZE_BILINEAR",
        "SPLIT",
        "STRIDED_SLICE",
        "TRANSPOSE",
        "TRANSPOSE_CONV",
    }
)
#: Bytes to which the size of each tensor is rounded up, and those behind the last one.
ALIGNMENT, EXTRA = 64, 32


class _Node(NamedTuple):
    """An operator, with the numbers of the activations that it reads, and of those it writes."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    op: Any


def workspace_bytes(model: Any) -> int | None:
    """The bytes of XNNPACK's workspace for a ``ModelT``; None where its rule is not known.

    It is known for float and int8 activations, and the operators of OVERWRITING and OTHERS. A
    tensor is alive from the operator that writes it to the last that reads it. An output is written
    over the first input of its size that no other operator reads. Padding is done by a convolution
    behind it that has none of its own or strides of one, and is not pointwise. Tensors are placed
    as LiteRT's own (``lrfc.costs.placement.litert``).
    """
    nodes = None if fixed(model) is None else _nodes(model)
    if nodes is None:
        return None
    buffers = _buffers(model, nodes)
    places = placement.litert(buffers)
    return max((places[b.name] + b.size + EXTRA for b in buffers), default=0)


def _nodes(model: Any) -> list[_Node] | None:
    """The operators as XNNPACK runs them; None where it does not run all of them."""
    graph, nodes = model.subgraphs[0], []
    constants = {n for n, t in enumerate(graph.tensors) if flatfile.is_constant(model, t)}
    for op in graph.operators:
        kind = flatfile.operator(model, op)
        sources = [number for number in flatfile.numbers(op.inputs) if number >= 0]
        inputs = tuple(number for number in sources if number not in constants)
        outputs = tuple(flatfile.numbers(op.outputs))
        if not inputs:  # weights in half precision, which are constants to XNNPACK
            constants.update(outputs)
            continue
        if kind not in _kinds(graph, sources, inputs):
            return None
        nodes.append(_Node(kind, inputs, outputs, op))
    return list(_padded(graph, nodes))


def _kinds(graph: Any, sources: list[int], inputs: tuple[int, ...]) -> frozenset[str]:
    """The operators that XNNPACK runs on such activations, and weights among the sources."""
    types = flatfile.schema().TensorType
    kinds = {graph.tensors[number].type for number in inputs}
    if kinds == {types.INT8}:
        return (OVERWRITING | OTHERS) - IN_FLOAT
    mixed = types.INT8 in {graph.tensors[number].type for number in sources}
    return OVERWRITING | OTHERS if kinds == {types.FLOAT32} and not mixed else frozenset()


def _padded(graph: Any, nodes: list[_Node]) -> Iterator[_Node]:
    """The operators, where convolutions do the padding in front of them."""
    readers = Counter(number for node in nodes for number in node.inputs)
    sources = {node.outputs[0]: node.inputs[0] for node in nodes if node.kind == "PAD"}
    merged = {
        node.inputs[0]
        for node in nodes
        if node.inputs[0] in sources and readers[node.inputs[0]] == 1 and _pads(graph, node)
    }
    for node in nodes:
        if node.inputs[0] in merged:
            yield node._replace(inputs=(sources[node.inputs[0]],))
        elif node.outputs[0] not in merged:
            yield node


def _pads(graph: Any, node: _Node) -> bool:
    """Whether an operator is a convolution that can do further padding of its input."""
    if node.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return False
    options = node.op.builtinOptions
    kernel = flatfile.numbers(graph.tensors[int(node.op.inputs[1])].shape)[1:3]
    fixed_edges = options.padding == flatfile.schema().Padding.VALID
    return kernel != [1, 1] and (fixed_edges or (options.strideH, options.strideW) == (1, 1))


def _buffers(model: Any, nodes: list[_Node]) -> list[Buffer]:
    """The buffers of the workspace, in the order of the file's tensors."""
    graph = model.subgraphs[0]
    outside = {*flatfile.numbers(graph.inputs), *flatfile.numbers(graph.outputs)}
    sizes = [_rounded(tensor) for tensor in graph.tensors]
    readers = Counter(number for node in nodes for number in {*node.inputs})
    buffers: dict[int, Buffer] = {}
    roots: dict[int, int] = {}  # by tensor, the one whose buffer it has

    def used(root: int, step: int) -> None:
        buffer = buffers.get(root, Buffer(str(root), sizes[root], step, step))
        buffers[root] = replace(buffer, last=step)

    for step, node in enumerate(nodes):
        for number in node.inputs:
            # A fully connected operator reads matrices; of an input of the file that is a copy.
            if number in roots or node.kind == "FULLY_CONNECTED":
                used(roots.get(number, number), step)
        for number in node.outputs:
            if number not in outside:
                free = (
                    roots[source]
                    for source in node.inputs
                    if node.kind in OVERWRITING
                    and source in roots
                    and readers[source] == 1
                    and sizes[source] == sizes[number]
                )
                roots[number] = next(free, number)
                used(roots[number], step)
    return [buffers[number] for number in sorted(buffers)]


def _rounded(tensor: Any) -> int:
    return -(-flatfile.tensor_bytes(tensor) // ALIGNMENT) * ALIGNMENT
