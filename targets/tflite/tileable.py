"""The operators of a .tflite file that can be computed in strips of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import ALIGNMENT
from lrfc.targets.tflite.rows import Geometry, Padded, Same, Window

#: Operators with one value of the output for each of the input, or of the inputs.
_BY_VALUE = frozenset(
    "ABS ADD DEQUANTIZE ELU HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MINIMUM MUL PRELU QUANTIZE RELU"
    " RELU6 RELU_N1_TO_1 SQUARED_DIFFERENCE SUB TANH".split()
)
_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
_POOLS = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D"})
_PADS = frozenset({"PAD", "PADV2"})
#: Operators with weights, and so with MACs.
_WEIGHTED = _CONVOLUTIONS | {"FULLY_CONNECTED", "TRANSPOSE_CONV"}


@dataclass(frozen=True)
class Operator:
    """An operator of a file.

    ``geometry``: None for one that reads more than some rows. ``sources``: the tensors that it
    reads by rows, a number for each input; None for one that it reads as a whole, such as weights.
    ``reads``: all its tensors that are no constants. ``result``: its output. ``macs``: of all rows.
    """

    geometry: Geometry | None
    sources: tuple[int | None, ...]
    reads: frozenset[int]
    result: int
    macs: int

    @cached_property
    def by_rows(self) -> frozenset[int]:
        """The tensors that it reads by rows."""
        return frozenset(tensor for tensor in self.sources if tensor is not None)


@dataclass(frozen=True)
class Network:
    """The operators of a file, and the tensors that are its ``outputs``.

    ``whole``: bytes and rows of each tensor that operators compute or read by rows.
    """

    operators: tuple[Operator, ...]
    outputs: frozenset[int]
    whole: Mapping[int, tuple[int, int]]

    @property
    def macs(self) -> int:
        """The MACs of all operators."""
        return self.macs_of(0, len(self.operators))

    def macs_of(self, first: int, end: int) -> int:
        """The MACs of the operators from number ``first`` up to ``end``, exclusive."""
        return sum(op.macs for op in self.operators[first:end])

    def rows(self, tensor: int) -> int:
        """The number of rows of a tensor."""
        return self.whole[tensor][1]

    def bytes(self, tensor: int, rows: int) -> int:
        """The bytes that so many rows of a tensor take in the arena."""
        size, height = self.whole[tensor]
        return -(-(size // height * rows) // ALIGNMENT) * ALIGNMENT


def network(model: Any) -> Network:
    """The operators of the first subgraph of a ``ModelT``, which has tensors of fixed size only."""
    tensors = model.subgraphs[0].tensors
    found = tuple(_operator(model, op) for op in model.subgraphs[0].operators)
    strips = {n for op in found if op.geometry is not None for n in (*op.by_rows, op.result)}
    sizes = {n: (flatfile.tensor_bytes(tensors[n]), int(tensors[n].shape[1])) for n in strips}
    return Network(found, frozenset(flatfile.numbers(model.subgraphs[0].outputs)), sizes)


def _operator(model: Any, op: Any) -> Operator:
    tensors = model.subgraphs[0].tensors
    inputs, outputs = flatfile.numbers(op.inputs), flatfile.numbers(op.outputs)
    reads = [n for n in inputs if n >= 0 and not flatfile.is_constant(model, tensors[n])]
    shape = flatfile.numbers(tensors[outputs[0]].shape) if len(outputs) == 1 else []
    geometry: Geometry | None = None
    sources: tuple[int | None, ...] = ()
    if len(shape) == 4 and shape[0] == 1:
        given = [tensors[number] if number >= 0 else None for number in inputs]
        found = _geometry(model, op, given, shape)
        rows = [_by_rows(t, n in reads, found) for t, n in zip(given, inputs, strict=True)]
        if found is not None and None not in rows and any(rows):
            geometry = found
            sources = tuple(n if strip else None for n, strip in zip(inputs, rows, strict=True))
    return Operator(geometry, sources, frozenset(reads), outputs[0], _macs(model, op))


def _by_rows(tensor: Any, computed: bool, geometry: Geometry | None) -> bool | None:
    """Whether an operator reads an input by rows; None where it reads it in another way.

    ``tensor``: None for an optional input that is not there. ``computed``: whether it is not a
    constant.
    """
    if not isinstance(geometry, Same) or tensor is None:
        return computed
    shape = flatfile.numbers(tensor.shape)
    if len(shape) < 3 or shape[-3] == 1:
        return False  # the same values for each row
    return True if computed and len(shape) == 4 and shape[0] == 1 else None


def _geometry(model: Any, op: Any, inputs: Sequence[Any], shape: Sequence[int]) -> Geometry | None:
    """How the operator reads its first input by rows, where it does; ``shape``: of its output."""
    name, options = flatfile.operator(model, op), op.builtinOptions
    if name in _BY_VALUE:
        return Same()
    if name == "CONCATENATION":
        return Same() if options.axis % len(shape) == 3 else None
    constant = [tensor is None or flatfile.is_constant(model, tensor) for tensor in inputs]
    if constant[:1] != [False] or not all(constant[1:]) or len(inputs[0].shape) != 4:
        return None
    height = int(inputs[0].shape[1])
    if name in _PADS:
        sides = flatfile.integers(model, inputs[1]).reshape(-1, 2)
        return Padded(height, int(sides[1, 0]), int(sides[1, 1])) if len(sides) == 4 else None
    if name in _CONVOLUTIONS:
        size = (int(inputs[1].shape[1]) - 1) * options.dilationHFactor + 1
    elif name in _POOLS:
        size = options.filterHeight
    else:
        return None
    same = options.padding == flatfile.schema().Padding.SAME
    return Window(height, size, options.strideH, same)


def _macs(model: Any, op: Any) -> int:
    name = flatfile.operator(model, op)
    if name not in _WEIGHTED:
        return 0
    tensors = model.subgraphs[0].tensors
    weights = flatfile.numbers(tensors[op.inputs[1]].shape)
    if name == "TRANSPOSE_CONV":
        return math.prod(flatfile.numbers(tensors[op.inputs[2]].shape)[:-1]) * math.prod(weights)
    output = flatfile.numbers(tensors[op.outputs[0]].shape)
    return math.prod(output) * math.prod(weights) // output[-1]
