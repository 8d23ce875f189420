"""Float .tflite files written without the converter, for plans that are only measured.

The converter takes a second for a small network and, where it has a process of its own, several for
a large one; this takes some hundredths. A file that is timed needs the operators that the converter
would write, and no more. Whether they are the same is tried on the original of a build, whose
operators and outputs, bit by bit, have to be those of the converter's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.ir.fold import drop_dropout
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.ir.ops import conv_geometry, spatial
from lrfc.system import files
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.tables import Tables


class UnknownOp(Exception):  # noqa: N818  not an error: the converter writes the file then
    """The graph has an op that is not written here."""


def write(graph: Graph, path: Path) -> bool:
    """Write the file of a graph, for a batch of one; False, without a file, for an unknown op."""
    try:
        content = _File(drop_dropout(graph)).content()
    except UnknownOp:
        return False
    files.write(path, content)
    return True


def operators(content: bytes | bytearray) -> list[tuple[Any, ...]]:
    """Each operator of a file: its code, and shapes and types of its operands and outputs, sorted.

    The converter orders branches by rules of its own.
    """
    model = flatfile.unpack(content)
    (graph,) = model.subgraphs
    codes = [code.builtinCode for code in model.operatorCodes]

    def tensors(numbers: Sequence[int]) -> tuple[Any, ...]:
        found = (graph.tensors[number] for number in numbers if number >= 0)
        return tuple((tuple(flatfile.numbers(tensor.shape)), tensor.type) for tensor in found)

    return sorted(
        (codes[op.opcodeIndex], tensors(op.inputs), tensors(op.outputs)) for op in graph.operators
    )


class _File:
    """The file of a graph, op by op."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._tables = graph, Tables("main")
        #: The number of each tensor that is written.
        self._numbers: dict[Ref, int] = {}

    def content(self) -> bytes:
        """The bytes of the file; UnknownOp."""
        for op in self._graph:
            if Ref(op.name) not in self._numbers:  # an activation may be in the op before it
                self._write(op)
        self._tables.outputs = [self._numbers[ref] for ref in self._graph.outputs]
        return self._tables.content()

    def _write(self, op: Op) -> None:
        """Write an op, with the ReLU that is its only reader where TFLite fuses that."""
        tensors = self._graph.tensors(op.name)
        if len(tensors) != 1 or tensors[0].dtype != "float32" or None in tensors[0].shape[1:]:
            raise UnknownOp
        result = self._tables.tensor(_whole(tensors[0].shape), "FLOAT32", 0, op.name)
        self._numbers[Ref(op.name)] = result
        sources = [self._numbers[ref] for ref in self._graph.operands(op.name)]
        reader = self._graph.only_consumer(op.name)
        relu = None if reader is None or not op.info.fuses_relu else _function(reader)
        if relu not in ("relu", "relu6"):
            relu = None
        elif reader is not None:
            self._numbers[Ref(reader.name)] = result
        known = op.origin is None or op.kind.startswith("ops.")
        inside = op.attrs.get("activation") if op.info.has_kernel else None
        if not known or inside not in (None, "linear"):
            raise UnknownOp
        self._operator(op, sources, result, relu)

    def _operator(self, op: Op, sources: list[int], result: int, relu: str | None) -> None:
        """Add the operator of an op. ``relu``: what is fused into it."""
        tables = self._tables
        fused = {"fusedActivationFunction": tables.fused(relu)}
        match op.kind:
            case "InputLayer":
                tables.inputs.append(result)
            case "Conv2D" | "DepthwiseConv2D":
                self._convolution(op, sources[0], result, fused)
            case "Dense":
                keep = len(self._graph.tensors(op.name)[0].shape) > 2
                kernel = np.ascontiguousarray(op.weights["kernel"].T)
                options = tables.options("FullyConnectedOptions", keepNumDims=keep, **fused)
                inputs = [sources[0], tables.constant(kernel, "FLOAT32")]
                inputs.append(
                    tables.constant(op.weights["bias"], "FLOAT32") if "bias" in op.weights else -1
                )
                tables.operator("FULLY_CONNECTED", inputs, result, options)
            case "Add" if len(sources) == 2:
                tables.operator("ADD", sources, result, tables.options("AddOptions", **fused))
            case "Concatenate":
                axis = int(op["axis"]) % len(self._graph.tensors(op.name)[0].shape)
                options = tables.options("ConcatenationOptions", axis=axis)
                tables.operator("CONCATENATION", sources, result, options)
            case "MaxPooling2D" | "AveragePooling2D":
                self._pooling(op, sources[0], result, fused)
            case "GlobalAveragePooling2D" if op["data_format"] == "channels_last":
                axes = tables.constant(np.asarray([1, 2], np.int32), "INT32")
                options = tables.options("ReducerOptions", keepDims=bool(op["keepdims"]))
                tables.operator("MEAN", [sources[0], axes], result, options)
            case "ZeroPadding2D" | "ops.Pad":
                self._padding(op, sources, result)
            case "Flatten" | "Reshape" if op.attrs.get("data_format") != "channels_first":
                shape = np.asarray(self._tables.tensors[result].shape, np.int32)
                inputs = [sources[0], tables.constant(shape, "INT32")]
                tables.operator("RESHAPE", inputs, result, tables.options("ReshapeOptions"))
            case "UpSampling2D" if _is_bilinear(op):
                size = np.asarray(tables.tensors[result].shape[1:3], np.int32)
                options = tables.options("ResizeBilinearOptions", halfPixelCenters=True)
                inputs = [sources[0], tables.constant(size, "INT32")]
                tables.operator("RESIZE_BILINEAR", inputs, result, options)
            case _:
                name = _OPERATORS.get(_function(op) or "")
                if name is None:
                    raise UnknownOp
                softmax = tables.options("SoftmaxOptions", beta=1.0) if name == "SOFTMAX" else None
                tables.operator(name, sources, result, softmax)

    def _convolution(self, op: Op, source: int, result: int, fused: dict[str, Any]) -> None:
        """A convolution, plain, grouped or depthwise."""
        at = conv_geometry(op, self._graph.input_tensors(op.name)[0])
        if at.channels_first:
            raise UnknownOp
        kernel, tables = op.weights["kernel"], self._tables
        if op.info.is_depthwise:
            kind, name = "DepthwiseConv2DOptions", "DEPTHWISE_CONV_2D"
            kernel = kernel.reshape(1, *at.kernel, at.outputs)
            fused = {**fused, "depthMultiplier": at.multiplier}
        else:
            kind, name = "Conv2DOptions", "CONV_2D"
            kernel = np.moveaxis(kernel, -1, 0)
        bias = op.weights.get("bias", np.zeros(at.outputs, np.float32))
        options = tables.window(kind, at.strides, at.dilation, same=at.padding == "same")
        inputs = [source, tables.constant(kernel, "FLOAT32"), tables.constant(bias, "FLOAT32")]
        tables.operator(name, inputs, result, _with(options, fused))

    def _pooling(self, op: Op, source: int, result: int, fused: dict[str, Any]) -> None:
        if op["data_format"] != "channels_last":
            raise UnknownOp
        size = spatial(op["pool_size"], 2)
        strides = size if op["strides"] is None else spatial(op["strides"], 2)
        options = self._tables.window("Pool2DOptions", strides, same=op["padding"] == "same")
        values = {**fused, "filterHeight": size[0], "filterWidth": size[1]}
        name = "MAX_POOL_2D" if op.kind.startswith("Max") else "AVERAGE_POOL_2D"
        self._tables.operator(name, [source], result, _with(options, values))

    def _padding(self, op: Op, sources: list[int], result: int) -> None:
        """Zeros around the spatial axes, or by axis as ``ops.pad`` tells."""
        if op.kind == "ops.Pad":
            given = {} if op.call is None else op.call[1]
            zeros = op.attrs["mode"] == "constant" and not given.get("constant_values")
            sides = op.attrs["pad_width"]
        else:
            zeros, padding = op["data_format"] == "channels_last", op["padding"]
            pairs = (padding, padding) if isinstance(padding, int) else padding
            sides = ((0, 0), *((n, n) if isinstance(n, int) else n for n in pairs), (0, 0))
        if not zeros or len(sources) != 1 or len(sides) != len(self._tables.tensors[result].shape):
            raise UnknownOp
        inputs = [*sources, self._tables.constant(np.asarray(sides, np.int32), "INT32")]
        self._tables.operator("PAD", inputs, result, self._tables.options("PadOptions"))


#: The operator of each function of one tensor.
_OPERATORS = {
    "relu": "RELU",
    "relu6": "RELU6",
    "sigmoid": "LOGISTIC",
    "softmax": "SOFTMAX",
    "tanh": "TANH",
}


def _function(op: Op) -> str | None:
    """The name of the function that an activation computes; None for any other op."""
    if op.kind == "Activation":
        name = op["activation"]
        return name if isinstance(name, str) else None
    if op.kind == "Softmax" and op["axis"] == -1 and op.call is None:
        return "softmax"
    if op.kind == "ReLU" and not op["negative_slope"] and not op["threshold"]:
        return {None: "relu", 6: "relu6"}.get(op["max_value"])
    return None


def _is_bilinear(op: Op) -> bool:
    """Whether a resizing is one operator: Keras repeats values by others."""
    smooth = op.attrs.get("interpolation") == "bilinear"
    return smooth and op.attrs.get("data_format") != "channels_first"


def _whole(shape: tuple[int | None, ...]) -> list[int]:
    """The shape of a batch of one."""
    return [1, *(int(length) for length in shape[1:] if length is not None)]


def _with(options: tuple[str, Any], values: dict[str, Any]) -> tuple[str, Any]:
    """The options, with more values."""
    for name, value in values.items():
        setattr(options[1], name, value)
    return options
