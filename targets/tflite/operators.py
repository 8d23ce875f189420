"""The operators of a .tflite file as workloads that a cost profile prices, and its precision."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lrfc.config.precision import Name
from lrfc.costs.workload import Workload
from lrfc.errors import DeviceError
from lrfc.system.reader import contents, shown
from lrfc.targets.imports import need

#: The most bytes of a file, whose offsets have 32 bits.
LARGEST = (1 << 31) - 1
#: The most axes of a tensor.
AXES = 8
#: Operators that move no values.
_VIEWS = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
#: Operators with one step for each value of the output → the kind of their workload; empty: the
#: name in lower case.
_BY_VALUE = {
    **dict.fromkeys(
        (
            "ABS",
            "CAST",
            "CEIL",
            "CONCATENATION",
            "COS",
            "DEQUANTIZE",
            "DIV",
            "ELU",
            "EXP",
            "FLOOR",
            "GATHER",
            "GELU",
            "HARD_SWISH",
            "LEAKY_RELU",
            "L2_NORMALIZATION",
            "LOG",
            "LOGISTIC",
            "LOG_SOFTMAX",
            "MIRROR_PAD",
            "NEG",
            "PACK",
            "PAD",
            "PADV2",
            "POW",
            "PRELU",
            "QUANTIZE",
            "RELU",
            "RELU6",
            "RELU_N1_TO_1",
            "RESIZE_BILINEAR",
            "RESIZE_NEAREST_NEIGHBOR",
            "ROUND",
            "RSQRT",
            "SELECT",
            "SELECT_V2",
            "SIN",
            "SLICE",
            "SOFTMAX",
            "SPACE_TO_DEPTH",
            "DEPTH_TO_SPACE",
            "SPLIT",
            "SPLIT_V",
            "SQRT",
            "SQUARE",
            "SQUARED_DIFFERENCE",
            "STRIDED_SLICE",
            "TANH",
            "TILE",
            "TRANSPOSE",
            "UNPACK",
            "BATCH_TO_SPACE_ND",
            "SPACE_TO_BATCH_ND",
        ),
        "",
    ),
    "ADD": "add",
    "SUB": "subtract",
    "MUL": "multiply",
    "MAXIMUM": "maximum",
    "MINIMUM": "minimum",
}
_REDUCTIONS = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")


class Operators(NamedTuple):
    """The workloads of a file, in order, and the precision of its layers.

    Without conversions of its inputs and outputs, as in a build.
    """

    precision: Name
    workloads: tuple[Workload, ...]


def read(path: Path) -> Operators:
    """Read the operators of a file.

    DeviceError when it cannot be read, and when a cost profile cannot price an operator.
    """
    schema = need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    content = contents(path, limit=LARGEST, error=DeviceError)
    if content[4:8] != b"TFL3":
        raise DeviceError(f"{shown(path)} is not a .tflite file: emit one with lrfc build")
    try:
        file = _File(schema, bytearray(content))
        return Operators(file.precision(), tuple(file.workloads(path)))
    # The errors of the flatbuffer's accessors on damaged offsets.
    except (
        struct.error,
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise DeviceError(
            f"{shown(path)} is truncated or damaged: emit it again with lrfc build"
            f" ({type(error).__name__})"
        ) from error


class _File:
    """The first subgraph of a file."""

    def __init__(self, schema: Any, content: bytearray) -> None:
        self._schema = schema
        self._model = schema.Model.GetRootAs(content)
        self._graph = self._model.Subgraphs(0)
        self._names = {
            value: name
            for name, value in vars(schema.BuiltinOperator).items()
            if not name.startswith("_")
        }
        self._activations = {
            value: name.lower()
            for name, value in vars(schema.ActivationFunctionType).items()
            if not name.startswith("_")
        }
        self._operators = [
            self._graph.Operators(number) for number in range(self._graph.OperatorsLength())
        ]
        self._borders = {
            *self._graph.InputsAsNumpy().tolist(),
            *self._graph.OutputsAsNumpy().tolist(),
        }

    def precision(self) -> Name:
        """The precision of the layers; without any, that of the first operator's output."""
        types = self._schema.TensorType
        kinds = [
            (self._type(op.Inputs(1)), self._type(op.Outputs(0)))
            for op in self._operators
            if self._name(op) in _LAYERS
        ]
        weights, activations = {kind for kind, _ in kinds}, {kind for _, kind in kinds}
        if not kinds:
            activations = {self._type(op.Outputs(0)) for op in self._operators[:1]}
        if types.INT16 in activations:
            return "int16x8"
        if types.INT8 in activations or types.UINT8 in activations:
            return "int8"
        if types.INT8 in weights:
            return "dynamic"
        halves = any(
            self._type(op.Inputs(0)) == types.FLOAT16 for op in self._operators if op.InputsLength()
        )
        return "fp16" if halves else "fp32"

    def workloads(self, path: Path) -> Iterator[Workload]:
        """The workload of each operator that computes or moves values."""
        for op in self._operators:
            name = self._name(op)
            if name in _VIEWS or self._converts(op, name):
                continue
            if name not in (*_LAYERS, *_POOLS, *_REDUCTIONS, *_BY_VALUE):
                raise DeviceError(
                    f"{shown(path)}: no time can be computed for its operator {name}: a cost"
                    " profile prices convolutions, fully connected layers, pooling, and operators"
                    " of one step a value"
                )
            yield self._workload(op, name)

    def _converts(self, op: Any, name: str) -> bool:
        """Whether the operator converts an input or output of the file, or float16 weights."""
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            return False
        halves = self._type(op.Inputs(0)) == self._schema.TensorType.FLOAT16
        return halves or bool({op.Inputs(0), op.Outputs(0)} & self._borders)

    def _workload(self, op: Any, name: str) -> Workload:
        """The workload of an operator."""
        output = self._shape(op.Outputs(0))
        if name in _LAYERS:
            return self._layer(op, name, output)
        if name in _POOLS:
            options = self._options(op, self._schema.Pool2DOptions)
            kernel = options.FilterHeight(), options.FilterWidth()
            strides = options.StrideH(), options.StrideW()
            return Workload("pool", (self._shape(op.Inputs(0)),), output, kernel, strides)
        if name in _REDUCTIONS:
            return Workload("reduce", (self._shape(op.Inputs(0)),), output)
        inputs = tuple(
            self._shape(op.Inputs(number))
            for number in range(op.InputsLength())
            if op.Inputs(number) >= 0
        )
        return Workload(_BY_VALUE[name] or name.lower(), inputs, output)

    def _layer(self, op: Any, name: str, output: tuple[int, ...]) -> Workload:
        """The workload of an operator with weights."""
        weights = self._shape(op.Inputs(1), batch=False)
        source = self._shape(op.Inputs(2 if name == "TRANSPOSE_CONV" else 0))
        bias = 3 if name == "TRANSPOSE_CONV" else 2
        params = prod(weights)
        if op.InputsLength() > bias and op.Inputs(bias) >= 0:
            params += prod(self._shape(op.Inputs(bias), batch=False))
        kind, options_of = _LAYERS[name]
        options = self._options(op, getattr(self._schema, options_of))
        activation = self._activations[options.FusedActivationFunction()]
        fused = None if activation == "none" else activation
        if name == "FULLY_CONNECTED":
            return Workload(
                kind,
                (source,),
                output,
                activation=fused,
                params=params,
                macs=prod(output) * weights[-1],
            )
        window, width = (
            (weights[:3], weights[3]) if name == "CONV_3D" else (weights[1:-1], weights[-1])
        )
        axes = "DHW" if name == "CONV_3D" else "HW"
        strides = tuple(getattr(options, f"Stride{axis}")() for axis in axes)
        dilation = (
            (1, 1)
            if name == "TRANSPOSE_CONV"
            else tuple(getattr(options, f"Dilation{axis}Factor")() for axis in axes)
        )
        groups = source[-1] if kind == "depthwise" else source[-1] // width
        if not groups:
            raise ValueError(f"a convolution of {source[-1]} channels by kernels of {width}")
        positions = prod((source if kind == "transposed" else output)[:-1])
        return Workload(
            kind,
            (source,),
            output,
            window,
            strides,
            dilation,
            groups,
            activation=fused,
            params=params,
            macs=positions * prod(weights),
        )

    def _name(self, op: Any) -> str:
        """The name of an operator."""
        code = self._model.OperatorCodes(op.OpcodeIndex())
        # Old files have only the second one.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = str(self._names[number])
        return name if name != "CUSTOM" else f"CUSTOM ({shown(code.CustomCode().decode(), 60)})"

    def _type(self, tensor: int) -> int:
        """The code of a tensor's dtype."""
        return int(self._graph.Tensors(tensor).Type())

    def _shape(self, tensor: int, *, batch: bool = True) -> tuple[int, ...]:
        """The shape of a tensor; without the first axis where that is the ``batch``."""
        shape = self._graph.Tensors(tensor).ShapeAsNumpy()
        sizes = () if isinstance(shape, int) else tuple(shape.tolist())  # 0 means a scalar
        if len(sizes) > AXES or not all(0 < size <= LARGEST for size in sizes):
            raise ValueError(f"a tensor of shape {sizes}")
        return sizes[1:] if batch else sizes

    def _options(self, op: Any, kind: Any) -> Any:
        """The options of an operator. ``kind``: their class in the schema."""
        table, options = op.BuiltinOptions(), kind()
        options.Init(table.Bytes, table.Pos)
        return options


#: Operators with weights → the kind of their workload, and the type of their options.
_LAYERS = {
    "CONV_2D": ("conv", "Conv2DOptions"),
    "CONV_3D": ("conv", "Conv3DOptions"),
    "DEPTHWISE_CONV_2D": ("depthwise", "DepthwiseConv2DOptions"),
    "TRANSPOSE_CONV": ("transposed", "TransposeConvOptions"),
    "FULLY_CONNECTED": ("dense", "FullyConnectedOptions"),
}
_POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
