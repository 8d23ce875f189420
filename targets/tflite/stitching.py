"""Programmes of strips, written into the operators of a .tflite file."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.rows import Padded, Rows
from lrfc.targets.tflite.strips import Piece, Programme, Step
from lrfc.targets.tflite.tileable import Network


def stitched(model: Any, network: Network, programmes: Sequence[Programme]) -> Any:
    """A ``ModelT`` with programmes in the place of the regions that they compute.

    The programmes are in the order of their regions, which have no operator in common. Scales, zero
    points and weights stay those of the file, so that the outputs are the same bit by bit.
    ``network``: of the model.
    """
    model = copy(model)
    model.subgraphs = [copy(model.subgraphs[0])]
    stitcher = _Stitcher(model, network)
    graph, done = model.subgraphs[0], 0
    operators: list[Any] = []
    for programme in programmes:
        operators += [*graph.operators[done : programme.region.first], *stitcher.of(programme)]
        done = programme.region.end
    graph.operators = [*operators, *graph.operators[done:]]
    return model


class _Stitcher:
    """Makes the operators of programmes, and adds their tensors to the model."""

    def __init__(self, model: Any, network: Network) -> None:
        self._model, self._network = model, network
        self._schema, self._graph = flatfile.schema(), model.subgraphs[0]
        self._tensors = tuple(self._graph.tensors)
        self._graph.tensors = list(self._graph.tensors)
        self._model.buffers = list(self._model.buffers)
        self._constants: dict[tuple[tuple[int, ...], ...], int] = {}
        self._places: dict[Piece, int] = {}
        self._free: list[int] = []

    def of(self, programme: Programme) -> list[Any]:
        """The operators of a programme."""
        self._places.clear()
        # TensorFlow Lite Micro keeps memory for tensors that no operator uses, too.
        region = programme.region
        self._free += [op.result for op in self._network.operators[region.first : region.end - 1]]
        steps = [self._step(step) for step in programme.steps]
        options = self._schema.ConcatenationOptionsT()
        options.axis = 1
        parts = [self._place(part) for part in programme.parts]
        return [*steps, self._new("CONCATENATION", parts, programme.region.output, options)]

    def _step(self, step: Step) -> Any:
        result = self._places[step.result] = self._strip(step.result)
        if step.operator is None:
            (source,) = step.sources
            assert source is not None
            return self._slice(source, step.result.rows, result)
        op = copy(self._graph.operators[step.operator])
        op.inputs = [
            given if source is None else self._place(source)
            for given, source in zip(flatfile.numbers(op.inputs), step.sources, strict=True)
        ]
        op.outputs = [result]
        geometry = self._network.operators[step.operator].geometry
        if isinstance(geometry, Padded) and step.sources[0] is not None:
            sides = self._tensors[op.inputs[1]]
            widths = flatfile.integers(self._model, sides).reshape(-1, 2).tolist()
            widths[1] = list(geometry.padding(step.sources[0].rows))
            op.inputs[1] = self._constant(widths)
        return op

    def _slice(self, source: Piece, rows: Rows, result: int) -> Any:
        """An operator that cuts rows out of a piece."""
        first = (0, rows.first - source.rows.first, 0, 0)
        inputs = [
            self._place(source),
            self._constant([first]),
            self._constant([flatfile.numbers(self._graph.tensors[result].shape)]),
        ]
        return self._new("SLICE", inputs, result, self._schema.SliceOptionsT())

    def _new(self, name: str, inputs: list[int], output: int, options: Any) -> Any:
        op = self._schema.OperatorT()
        op.opcodeIndex = self._code(getattr(self._schema.BuiltinOperator, name))
        op.inputs, op.outputs = inputs, [output]
        kind = type(options).__name__.removesuffix("T")
        op.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
        op.builtinOptions = options
        return op

    def _code(self, builtin: int) -> int:
        """The number of an operator's entry in the table of codes, which may be a new one."""
        codes = self._model.operatorCodes
        for number, code in enumerate(codes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
                return number
        code = self._schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 2  # the first one with integers of 8 bits
        self._model.operatorCodes = [*codes, code]
        return len(codes)

    def _place(self, piece: Piece) -> int:
        """The number of the tensor of a piece."""
        return piece.tensor if piece.number is None else self._places[piece]

    def _strip(self, piece: Piece) -> int:
        """Add the tensor of a piece."""
        tensor = copy(self._tensors[piece.tensor])
        shape = flatfile.numbers(tensor.shape)
        shape[1] = piece.rows.height
        rows = f"{piece.rows.first}:{piece.rows.end}"
        tensor.shape, tensor.shapeSignature, tensor.buffer = shape, None, 0
        tensor.name = f"{flatfile.name(tensor)}[{rows}]"
        if self._free:
            self._graph.tensors[self._free[0]] = tensor
            return self._free.pop(0)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _constant(self, values: Sequence[Sequence[int]]) -> int:
        """A constant of integers; one row of values is a vector."""
        key = tuple(map(tuple, values))
        if key not in self._constants:
            array = np.asarray(values, "<i4")
            buffer, tensor = self._schema.BufferT(), self._schema.TensorT()
            buffer.data = array.reshape(-1).view(np.uint8)
            self._model.buffers.append(buffer)
            tensor.shape = list(array.shape if len(values) > 1 else array.shape[1:])
            tensor.type, tensor.buffer = self._schema.TensorType.INT32, len(self._model.buffers) - 1
            tensor.name = f"rows{len(self._model.buffers) - 1}"
            self._graph.tensors.append(tensor)
            self._constants[key] = len(self._graph.tensors) - 1
        return self._constants[key]
