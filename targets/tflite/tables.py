"""The tables of a .tflite file as they grow: tensors, buffers, operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.targets.tflite import flatfile


@dataclass
class Tables:
    """The parts of a file that is written without the converter; tensors go by their numbers.

    ``name``: of the network. ``version``: of its operators.
    """

    name: str
    version: int = 1
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schema = flatfile.schema()
        self.buffers.append(self.schema.BufferT())  # the first one is empty by definition

    def content(self) -> bytes:
        """The bytes of the file."""
        schema = self.schema
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = self.name, self.tensors, self.operators
        graph.inputs, graph.outputs = self.inputs, self.outputs
        model = schema.ModelT()
        model.version, model.description = 3, f"lrfc {self.name}"
        model.subgraphs, model.buffers = [graph], self.buffers
        model.operatorCodes = [self._code(code) for code in self.codes]
        return flatfile.pack(model)

    def _code(self, builtin: int) -> Any:
        """An entry of the table of operator codes."""
        code = self.schema.OperatorCodeT()
        # The older field has 7 bits.
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version = self.version
        return code

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        output: int,
        options: tuple[str, Any] | None = None,
    ) -> None:
        """Add an operator. ``options``: the name of their type, and the options."""
        builtin = getattr(self.schema.BuiltinOperator, name)
        if builtin not in self.codes:
            self.codes.append(builtin)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.index(builtin)
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options[0])
            operator.builtinOptions = options[1]
        self.operators.append(operator)

    def options(self, kind: str, **values: Any) -> tuple[str, Any]:
        """Options of a type, for ``operator``."""
        options = getattr(self.schema, f"{kind}T")()
        for name, value in values.items():
            setattr(options, name, value)
        return kind, options

    def window(
        self,
        kind: str,
        strides: Sequence[int],
        dilation: Sequence[int] = (1, 1),
        *,
        same: bool,
    ) -> tuple[str, Any]:
        """The options of a convolution or pooling, with the name of their type."""
        padding = self.schema.Padding
        values = {"padding": padding.SAME if same else padding.VALID}
        values["strideH"], values["strideW"] = strides
        if kind != "Pool2DOptions":
            values["dilationHFactor"], values["dilationWFactor"] = dilation
        return self.options(kind, **values)

    def fused(self, activation: str | None) -> Any:
        """The code of a fused activation; NONE for those that cannot be fused."""
        kinds = self.schema.ActivationFunctionType
        return {"relu": kinds.RELU, "relu6": kinds.RELU6}.get(activation or "", kinds.NONE)

    def constant(
        self,
        values: NDArray[Any],
        kind: str,
        scales: NDArray[np.float32] | None = None,
        axis: int = 0,
    ) -> int:
        """Add a constant tensor, and return its number."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.buffers.append(buffer)
        return self.tensor(
            values.shape, kind, len(self.buffers) - 1, f"constant{len(self.buffers)}", scales, axis
        )

    def tensor(
        self,
        shape: Sequence[int],
        kind: str,
        buffer: int,
        name: str,
        scales: NDArray[np.float32] | None = None,
        axis: int = 0,
    ) -> int:
        """Add a tensor, and return its number."""
        tensor = self.schema.TensorT()
        tensor.shape, tensor.name, tensor.buffer = list(shape), name, buffer
        tensor.type = getattr(self.schema.TensorType, kind)
        if scales is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale, quantization.quantizedDimension = scales, axis
            quantization.zeroPoint = np.zeros(len(scales), np.int64)
            tensor.quantization = quantization
        self.tensors.append(tensor)
        return len(self.tensors) - 1
