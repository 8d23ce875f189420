"""Probe networks: .tflite files with many int8 ops, written without a converter.

The compiler of an NPU reports the cycles of each op.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrfc.costs.workload import Workload
from lrfc.targets.tflite.tables import Tables

_WINDOWED = frozenset({"conv", "depthwise", "pool"})
_PADDING = frozenset({"zeropadding1d", "zeropadding2d", "ops.pad"})
#: Channels of the network's inputs.
_SEED = 4
#: The largest pooling window of an NPU.
_POOL = 256


def can_hold(workload: Workload) -> bool:
    """Whether a probe can hold the op.

    It can hold convolutions and pooling over one or two axes, matrix products, paddings, sums of
    two tensors, and means.
    """
    if workload.kind in ("add", "reduce"):
        return len(workload.inputs) < 3 and all(
            2 <= len(shape) <= 3 and len(shape) == len(workload.inputs[0])
            for shape in workload.inputs
        )
    if workload.kind == "dense":
        # An einsum may sum over more than the last axis.
        return workload.macs in (0, math.prod(workload.output) * workload.inputs[0][-1])
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
    """A network in which the i-th op computes the tensor ``op<i>``.

    Each op is between two small ones, as in a real network, so that a compiler is free to choose
    the layout of its inputs and its output: a convolution computes the input (once for each shape),
    and a max-pooling reads the output. A pooling, whose kind a workload does not tell, is
    max-pooling. Weights are drawn from a normal distribution and scaled to the full range of int8
    per channel, so that they compress like trained ones.
    """
    file = _File()
    sources: dict[tuple[Any, ...], int] = {}
    for number, workload in enumerate(workloads):
        inputs = []
        for position, shape in enumerate(workload.inputs):
            key = (position, _image(shape, workload))
            if key not in sources:
                sources[key] = file.source(key[1], len(sources))
            inputs.append(sources[key])
        file.op(workload, inputs, _image(workload.output, workload), f"op{number}")
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
    """The shape as (H, W, C).

    A sequence is an image of height one. All but the last axis of a matrix product form the width.
    """
    if workload.kind == "dense":
        return (1, math.prod(shape[:-1]), shape[-1])
    return (1,) * (3 - len(shape)) + shape


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    """The values for two axes; a single one is for the second axis."""
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


@dataclass
class _File(Tables):
    """The tables of a probe network."""

    name: str = "probe"
    version: int = 3
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def source(self, shape: tuple[int, ...], number: int) -> int:
        """A tensor (H, W, C) that a 1×1 convolution computes from an input of the network."""
        source = self._activation((*shape[:-1], _SEED), f"input{number}")
        self.inputs.append(source)
        result = self._activation(shape, f"source{number}")
        self._linear(
            "CONV_2D",
            source,
            result,
            (shape[-1], 1, 1, _SEED),
            self.window("Conv2DOptions", (1, 1), same=True),
            0,
        )
        return result

    def op(
        self, workload: Workload, sources: Sequence[int], shape: tuple[int, ...], name: str
    ) -> None:
        """Add the op, and a small op that reads its output.

        ``sources``: its input tensors. ``shape``: (H, W, C) of its output. ``name``: of the output.
        """
        result, source = self._activation(shape, name), sources[0]
        match workload.kind:
            case kind if kind in _PADDING:
                self._pad(source, result, shape)
            case "add":
                fused = self.fused(workload.activation)
                options = self.options("AddOptions", fusedActivationFunction=fused)
                self.operator("ADD", sources, result, options)
            case "reduce":
                axes = self.constant(np.asarray([1, 2], np.int32), "INT32")
                options = self.options("ReducerOptions", keepDims=True)
                self.operator("MEAN", [source, axes], result, options)
            case "dense":
                fused = self.fused(workload.activation)
                options = self.options(
                    "FullyConnectedOptions", keepNumDims=True, fusedActivationFunction=fused
                )
                weights = (shape[-1], workload.inputs[0][-1])
                self._linear("FULLY_CONNECTED", source, result, weights, options, 0)
            case _:
                self._windowed(workload, source, result, shape)
        self._reduce(result, name)

    def _pad(self, source: int, result: int, shape: tuple[int, ...]) -> None:
        """Pad ``source`` to ``shape``, as evenly as possible."""
        before = self.tensors[source].shape[1:]
        growth = [after - size for after, size in zip(shape, before, strict=True)]
        sides = np.asarray([(0, 0), *((n // 2, n - n // 2) for n in growth)], np.int32)
        inputs = [source, self.constant(sides, "INT32")]
        self.operator("PAD", inputs, result, self.options("PadOptions"))

    def _windowed(
        self, workload: Workload, source: int, result: int, shape: tuple[int, ...]
    ) -> None:
        """A convolution or pooling."""
        channels, width = shape[-1], workload.inputs[0][-1]
        kernel, strides = _pair(workload.kernel), _pair(workload.strides or (1, 1))
        dilation = _pair(workload.dilation or (1, 1))
        size = tuple(self.tensors[source].shape[1:3])
        same = all(-(-n // s) == m for n, s, m in zip(size, strides, shape, strict=False))
        kinds = {"pool": "Pool2DOptions", "depthwise": "DepthwiseConv2DOptions"}
        kind = kinds.get(workload.kind, "Conv2DOptions")
        same |= kernel == (1, 1)
        window = self.window(kind, strides, dilation, same=same)
        window[1].fusedActivationFunction = self.fused(workload.activation)
        if workload.kind == "pool":
            window[1].filterHeight, window[1].filterWidth = kernel
            self.operator("MAX_POOL_2D", [source], result, window)
        elif workload.kind == "depthwise":
            window[1].depthMultiplier = channels // width
            weights: tuple[int, ...] = (1, *kernel, channels)
            self._linear("DEPTHWISE_CONV_2D", source, result, weights, window, 3)
        else:
            weights = (channels, *kernel, width // workload.groups)
            self._linear("CONV_2D", source, result, weights, window, 0)

    def _linear(
        self,
        operator: str,
        source: int,
        result: int,
        shape: tuple[int, ...],
        options: tuple[str, Any],
        axis: int,
    ) -> None:
        """Add an operator with random weights of that shape and a bias.

        ``axis``: of the output channels in the weights.
        """
        channels = shape[axis]
        weights = np.moveaxis(self.random.standard_normal(shape), axis, 0).reshape(channels, -1)
        weights = np.round(127 * weights / np.abs(weights).max(axis=1, keepdims=True))
        rest = tuple(n for i, n in enumerate(shape) if i != axis)
        kernel = np.moveaxis(weights.reshape(channels, *rest), 0, axis).astype(np.int8)
        bias = self.random.integers(-1000, 1000, channels).astype(np.int32)
        scales = np.full(channels, 0.005, np.float32)
        constants = [
            self.constant(kernel, "INT8", scales, axis),
            self.constant(bias, "INT32", scales * np.float32(0.02), 0),
        ]
        self.operator(operator, [source, *constants], result, options)

    def _reduce(self, source: int, name: str) -> None:
        """Add a small output of the network that depends on the whole tensor: its maxima."""
        height, width, channels = self.tensors[source].shape[1:]
        size = (min(height, _POOL), min(width, _POOL))
        options = self.window("Pool2DOptions", size, same=False)
        options[1].filterHeight, options[1].filterWidth = size
        result = self._activation((height // size[0], width // size[1], channels), f"{name}/kept")
        self.operator("MAX_POOL_2D", [source], result, options)
        self.outputs.append(result)

    def _activation(self, shape: tuple[int, ...], name: str) -> int:
        """Add an int8 tensor for activations, and return its number."""
        return self.tensor((1, *shape), "INT8", 0, name, np.asarray([0.02], np.float32), 0)


def batches(workloads: Sequence[Workload], ops: int, weights: int) -> Iterator[Sequence[Workload]]:
    """The workloads in parts of at most ``ops`` ops and ``weights`` weights.

    A single op may have more weights. Ops with inputs of the same shape are in one part.
    """
    part: list[Workload] = []
    total = 0
    for workload in sorted(workloads, key=lambda w: (w.inputs, w.output, w.kernel, str(w))):
        if part and (len(part) == ops or total + workload.params > weights):
            yield part
            part, total = [], 0
        part.append(workload)
        total += workload.params
    if part:
        yield part
