"""Small int8 .tflite files for tests, written without a converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrfc.targets.tflite import flatfile, probe


class File(probe._File):
    """A network that is written operator by operator; each returns the number of its output.

    Activations have the shape (1, H, W, C), and scales and zero points of their own.
    """

    def input(self, height: int, width: int, channels: int) -> int:
        """An input of the network."""
        self.inputs.append(self._activation((height, width, channels), f"x{len(self.inputs)}"))
        return self.inputs[-1]

    def conv(
        self,
        source: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        same: bool = True,
        depthwise: bool = False,
    ) -> int:
        """A convolution with a square kernel and random weights; ``channels`` of its output."""
        height, width, depth = self._shape(source)
        size = (_outputs(n, kernel, stride, same=same) for n in (height, width))
        result = self._result((*size, channels))
        kind = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
        window = self.window(kind, (stride,) * 2, same=same)
        if depthwise:
            window[1].depthMultiplier = channels // depth
            shape: tuple[int, ...] = (1, kernel, kernel, channels)
            self._linear("DEPTHWISE_CONV_2D", source, result, shape, window, 3)
        else:
            shape = (channels, kernel, kernel, depth)
            self._linear("CONV_2D", source, result, shape, window, 0)
        return result

    def pool(
        self, source: int, kernel: int, stride: int, *, same: bool = True, kind: str = "MAX"
    ) -> int:
        """A pooling; ``kind``: MAX or AVERAGE."""
        height, width, channels = self._shape(source)
        size = (_outputs(n, kernel, stride, same=same) for n in (height, width))
        result = self._activation((*size, channels), f"pool{len(self.tensors)}")
        self.tensors[result].quantization = self.tensors[source].quantization
        window = self.window("Pool2DOptions", (stride,) * 2, same=same)
        window[1].filterHeight = window[1].filterWidth = kernel
        self.operator(f"{kind}_POOL_2D", [source], result, window)
        return result

    def add(self, first: int, second: int) -> int:
        """The sum of two activations."""
        scales = (self.tensors[number].quantization.scale[0] for number in (first, second))
        result = self._result(self._shape(first), sum(scales))
        options = ("AddOptions", self.schema.AddOptionsT())
        self.operator("ADD", [first, second], result, options)
        return result

    def logistic(self, source: int) -> int:
        """The logistic function of an activation."""
        result = self._result(self._shape(source), scale=1 / 256, zero_point=-128)
        self.operator("LOGISTIC", [source], result, ("NONE", None))
        return result

    def pad(self, source: int, top: int, bottom: int, sides: int) -> int:
        """An activation with padding at its edges."""
        height, width, channels = self._shape(source)
        widths = np.asarray([(0, 0), (top, bottom), (sides, sides), (0, 0)], np.int32)
        shape = (height + top + bottom, width + 2 * sides, channels)
        result = self._activation(shape, f"pad{len(self.tensors)}")
        self.tensors[result].quantization = self.tensors[source].quantization
        inputs = [source, self.constant(widths, "INT32")]
        self.operator("PAD", inputs, result, ("PadOptions", self.schema.PadOptionsT()))
        return result

    def written(self, *outputs: int) -> bytes:
        """The bytes of the file of the network with these outputs."""
        self.outputs = list(outputs)
        return self.content()

    def _result(
        self, shape: Sequence[int], scale: float | None = None, zero_point: int | None = None
    ) -> int:
        number = self._activation(tuple(shape), f"y{len(self.tensors)}")
        quantization = self.tensors[number].quantization
        quantization.scale = np.asarray([scale or 1], np.float32)
        shift = self.random.integers(-20, 20) if zero_point is None else zero_point
        quantization.zeroPoint = np.asarray([shift], np.int64)
        return number

    def _linear(self, *given: Any) -> None:
        super()._linear(*given)
        op = self.operators[-1]
        source, weights, bias = (self.tensors[number] for number in op.inputs)
        scale = source.quantization.scale
        bias.quantization.scale = weights.quantization.scale * scale
        terms = np.prod(weights.shape) / self.tensors[op.outputs[0]].shape[-1]
        wide = scale * np.float32(0.3 * np.sqrt(terms))  # most outputs do not saturate
        self.tensors[op.outputs[0]].quantization.scale = wide

    def _shape(self, tensor: int) -> tuple[int, int, int]:
        _, height, width, channels = self.tensors[tensor].shape
        return height, width, channels


def _outputs(size: int, kernel: int, stride: int, *, same: bool) -> int:
    return -(-size // stride) if same else (size - kernel) // stride + 1


def by_reference(content: bytes, inputs: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
    """The integers of the first output by LiteRT's reference kernels, for each input."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF
    runtime = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    runtime.allocate_tensors()
    results = []
    for values in inputs:
        runtime.set_tensor(runtime.get_input_details()[0]["index"], values)
        runtime.invoke()
        results.append(runtime.get_tensor(runtime.get_output_details()[0]["index"]).copy())
    return results


def by_micro(content: bytes, inputs: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
    """The same by TensorFlow Lite Micro, which has to be installed."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=1 << 20)
    results = []
    for values in inputs:
        interpreter.set_input(values, 0)
        interpreter.invoke()
        results.append(interpreter.get_output(0).copy())
    return results


def samples(content: bytes, count: int = 2) -> list[Any]:
    """Random inputs for a file with one input."""
    graph = flatfile.unpack(content).subgraphs[0]
    shape = flatfile.numbers(graph.tensors[graph.inputs[0]].shape)
    random = np.random.default_rng(1)
    return [random.integers(-128, 128, shape).astype(np.int8) for _ in range(count)]
