"""A .tflite file that holds many int8 ops at once, written without a converter: what an NPU compiler takes for each can be read from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.costs.workload import Workload

_WINDOWED = frozenset({"conv", "depthwise", "pool"})
_PADDING = frozenset({"zeropadding1d", "zeropadding2d", "ops.pad"})
#: Channels of the tensors that inputs are made from.
_SEED = 4
#: The largest window that an NPU pools.
_POOL = 256


def can_hold(workload: Workload) -> bool:
    """Whether a probe can hold the op: a convolution or pooling of one or two axes, a matrix product, a padding, a sum of two tensors or a mean."""
    if workload.kind in ("add", "reduce"):
        return len(workload.inputs) < 3 and all(
            2 <= len(shape) <= 3 and len(shape) == len(workload.inputs[0])
            for shape in workload.inputs
        )
    if workload.kind == "dense":
        return workload.macs in (
            0,
            math.prod(workload.output) * workload.inputs[0][-1],
        )  # an einsum may sum over more than the last axis
    if workload.kind in _PADDING:
        return len(workload.output) == 3 and all(
            after >= before
            for after, before in zip(workload.output, workload.inputs[0], strict=True)
        )
    return (
        workload.kind in _WINDOWED
        and len(workload.kernel) in (1, 2)
        and len(workload.output) == len(workload.kernel) + 1
    )


def network(workloads: Sequence[Workload]) -> bytes:
    """A network in which op number i gives the tensor ``op<i>``.

    Each stands between two small ops, as it does in a real network, so that a compiler is free to
    choose the layout of what it reads and writes: a convolution makes its input (once for each
    shape), and its maxima are kept. A pooling, of which a workload does not tell, is one of
    maxima. Weights are drawn at random from a normal distribution and scaled to the full range of
    int8 per channel, as trained weights mostly lie, so that they compress alike.
    """
    file = _File()
    sources: dict[tuple[Any, ...], int] = {}
    for number, workload in enumerate(workloads):
        read = []
        for place, shape in enumerate(workload.inputs):
            key = (place, _image(shape, workload))
            if key not in sources:
                sources[key] = file.source(key[1], len(sources))
            read.append(sources[key])
        file.op(workload, read, _image(workload.output, workload), f"op{number}")
    return file.content()


def smallest() -> bytes:
    """A network of one convolution."""
    return network([Workload("conv", ((4, 4, 8),), (4, 4, 8), (1, 1), (1, 1), (1, 1))])


def is_float(content: bytes) -> bool:
    """Whether a .tflite file holds no integer activations or weights of 8 or 16 bits."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    integers = {schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16}
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    return not any(
        graph.Tensors(i).Type() in integers
        for graph in graphs
        for i in range(graph.TensorsLength())
    )


def _image(shape: tuple[int, ...], workload: Workload) -> tuple[int, ...]:
    """(H, W, C): a sequence is an image of height one; all but the last axis of a matrix product are rows."""
    if workload.kind == "dense":
        return (1, math.prod(shape[:-1]), shape[-1])
    return (1,) * (3 - len(shape)) + shape


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


@dataclass
class _File:
    """The tables of a .tflite file as they grow."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.buffers.append(schema.BufferT())  # the first one is empty by definition

    def source(self, shape: tuple[int, ...], number: int) -> int:
        """A tensor of that shape (H, W, C), made from an input of the network by a 1×1 convolution."""
        given = self._activation((*shape[:-1], _SEED), f"input{number}")
        self.inputs.append(given)
        made = self._activation(shape, f"source{number}")
        self._linear(
            "CONV_2D",
            given,
            made,
            (shape[-1], 1, 1, _SEED),
            self._window("Conv2DOptions", (1, 1), (1, 1), (1, 1), same=True),
            0,
        )
        return made

    def op(
        self, workload: Workload, sources: Sequence[int], shape: tuple[int, ...], name: str
    ) -> None:
        """The op itself, and something small made of its output."""
        made, source = self._activation(shape, name), sources[0]
        channels, width = shape[-1], workload.inputs[0][-1]
        if workload.kind in _PADDING:
            growth = [
                after - before
                for after, before in zip(shape, self.tensors[source].shape[1:], strict=True)
            ]
            sides = np.asarray([(0, 0), *((n // 2, n - n // 2) for n in growth)], np.int32)
            self._operator(
                "PAD",
                [source, self._constant(sides, "INT32")],
                made,
                ("PadOptions", self.schema.PadOptionsT()),
            )
        elif workload.kind == "add":
            added = self.schema.AddOptionsT()
            added.fusedActivationFunction = self._fused(workload.activation)
            self._operator("ADD", list(sources), made, ("AddOptions", added))
        elif workload.kind == "reduce":
            reducer = self.schema.ReducerOptionsT()
            reducer.keepDims = True
            self._operator(
                "MEAN",
                [source, self._constant(np.asarray([1, 2], np.int32), "INT32")],
                made,
                ("ReducerOptions", reducer),
            )
        elif workload.kind == "dense":
            options = self.schema.FullyConnectedOptionsT()
            options.keepNumDims = True
            options.fusedActivationFunction = self._fused(workload.activation)
            self._linear(
                "FULLY_CONNECTED",
                source,
                made,
                (channels, width),
                ("FullyConnectedOptions", options),
                0,
            )
        else:
            kernel, strides, dilation = (
                _pair(workload.kernel),
                _pair(workload.strides or (1, 1)),
                _pair(workload.dilation or (1, 1)),
            )
            size = tuple(self.tensors[source].shape[1:3])
            same = all(-(-n // s) == m for n, s, m in zip(size, strides, shape, strict=False))
            depthwise = workload.kind == "depthwise"
            kind = {"pool": "Pool2DOptions", "depthwise": "DepthwiseConv2DOptions"}.get(
                workload.kind, "Conv2DOptions"
            )
            window = self._window(kind, strides, dilation, kernel, same=same)
            window[1].fusedActivationFunction = self._fused(workload.activation)
            if workload.kind == "pool":
                window[1].filterHeight, window[1].filterWidth = kernel
                self._operator("MAX_POOL_2D", [source], made, window)
            elif depthwise:
                window[1].depthMultiplier = channels // width
                self._linear("DEPTHWISE_CONV_2D", source, made, (1, *kernel, channels), window, 3)
            else:
                self._linear(
                    "CONV_2D",
                    source,
                    made,
                    (channels, *kernel, width // workload.groups),
                    window,
                    0,
                )
        self._keep(made, name)

    def content(self) -> bytes:
        """The file."""
        import flatbuffers

        schema = self.schema
        graph = schema.SubGraphT()
        graph.tensors, graph.inputs, graph.outputs, graph.operators, graph.name = (
            self.tensors,
            self.inputs,
            self.outputs,
            self.operators,
            "probe",
        )
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.description = (
            3,
            [graph],
            self.buffers,
            "lrfc probe",
        )
        model.operatorCodes = [self._code(code) for code in self.codes]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _code(self, builtin: int) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 3
        return code

    def _linear(
        self,
        operator: str,
        source: int,
        made: int,
        shape: tuple[int, ...],
        options: tuple[str, Any],
        axis: int,
    ) -> None:
        channels = shape[axis]
        weights = np.moveaxis(self.random.standard_normal(shape), axis, 0).reshape(channels, -1)
        weights = np.round(127 * weights / np.abs(weights).max(axis=1, keepdims=True))
        rest = tuple(n for i, n in enumerate(shape) if i != axis)
        kernel = np.moveaxis(weights.reshape(channels, *rest), 0, axis).astype(np.int8)
        bias = self.random.integers(-1000, 1000, channels).astype(np.int32)
        scales = np.full(channels, 0.005, np.float32)
        constants = [
            self._constant(kernel, "INT8", scales, axis),
            self._constant(bias, "INT32", scales * np.float32(0.02), 0),
        ]
        self._operator(operator, [source, *constants], made, options)

    def _keep(self, source: int, name: str) -> None:
        """A small output of the network that depends on all of the tensor: its maxima."""
        height, width, channels = self.tensors[source].shape[1:]
        size = (min(height, _POOL), min(width, _POOL))
        options = self.schema.Pool2DOptionsT()
        options.padding = self.schema.Padding.VALID
        options.filterHeight, options.filterWidth = options.strideH, options.strideW = size
        kept = self._activation((height // size[0], width // size[1], channels), f"{name}/kept")
        self._operator("MAX_POOL_2D", [source], kept, ("Pool2DOptions", options))
        self.outputs.append(kept)

    def _operator(
        self, name: str, inputs: list[int], output: int, options: tuple[str, Any]
    ) -> None:
        builtin = getattr(self.schema.BuiltinOperator, name)
        if builtin not in self.codes:
            self.codes.append(builtin)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = (
            self.codes.index(builtin),
            inputs,
            [output],
        )
        operator.builtinOptionsType, operator.builtinOptions = (
            getattr(self.schema.BuiltinOptions, options[0]),
            options[1],
        )
        self.operators.append(operator)

    def _window(
        self,
        kind: str,
        strides: tuple[int, int],
        dilation: tuple[int, int],
        kernel: tuple[int, int],
        *,
        same: bool,
    ) -> tuple[str, Any]:
        options = getattr(self.schema, f"{kind}T")()
        padding = self.schema.Padding
        options.padding = padding.SAME if same or kernel == (1, 1) else padding.VALID
        options.strideH, options.strideW = strides
        options.dilationHFactor, options.dilationWFactor = dilation
        return kind, options

    def _fused(self, activation: str | None) -> Any:
        kinds = self.schema.ActivationFunctionType
        return {"relu": kinds.RELU, "relu6": kinds.RELU6}.get(activation or "", kinds.NONE)

    def _activation(self, shape: tuple[int, ...], name: str) -> int:
        return self._tensor((1, *shape), "INT8", 0, name, np.asarray([0.02], np.float32), 0)

    def _constant(
        self,
        values: NDArray[Any],
        kind: str,
        scales: NDArray[np.float32] | None = None,
        axis: int = 0,
    ) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.buffers.append(buffer)
        return self._tensor(
            values.shape, kind, len(self.buffers) - 1, f"constant{len(self.buffers)}", scales, axis
        )

    def _tensor(
        self,
        shape: tuple[int, ...],
        kind: str,
        buffer: int,
        name: str,
        scales: NDArray[np.float32] | None,
        axis: int,
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer, tensor.name = (
            list(shape),
            getattr(self.schema.TensorType, kind),
            buffer,
            name,
        )
        if scales is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint, quantization.quantizedDimension = (
                scales,
                np.zeros(len(scales), np.int64),
                axis,
            )
            tensor.quantization = quantization
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def batches(workloads: Sequence[Workload], ops: int, weights: int) -> Iterator[Sequence[Workload]]:
    """The workloads in parts of at most so many ops and, unless one op alone has more, weights; those that read the same shape together."""
    part: list[Workload] = []
    total = 0
    for each in sorted(workloads, key=lambda s: (s.inputs, s.output, s.kernel, str(s))):
        if part and (len(part) == ops or total + each.params > weights):
            yield part
            part, total = [], 0
        part.append(each)
        total += each.params
    if part:
        yield part
