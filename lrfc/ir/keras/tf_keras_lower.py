"""Export of a graph to tf_keras, for tools without support of Keras 3, and of its weights back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lrfc.errors import ModelError
from lrfc.ir.backend import quiet, reason
from lrfc.ir.graph import Graph
from lrfc.ir.keras.layers import function
from lrfc.ir.op import Array, Op, Ref

#: By kind: the names in tf_keras of attributes that Keras 3 has renamed.
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}, "ELU": {}}


@dataclass(frozen=True)
class Lowered:
    """A graph in tf_keras.

    ``model``: the tf_keras model, with its outputs as a list. ``layers``: by op, the name of its
    layer. ``custom``: the classes of lrfc in the model, by name.
    """

    model: Any
    layers: Mapping[str, str]
    custom: Mapping[str, Any]


def unlowered(graph: Graph) -> tuple[str, ...]:
    """Names of the ops without a counterpart in tf_keras.

    They are layers that tf_keras lacks, and custom layers and calls with arguments, unless the op
    has no weights and can be called as a function.
    """
    import tf_keras

    return tuple(
        op.name
        for op in graph
        if op.kind != "InputLayer"
        and not _is_function(graph, op)
        and (op.origin is not None or op.call is not None or not hasattr(tf_keras.layers, op.kind))
    )


def lower(graph: Graph) -> Lowered:
    """Build the graph in tf_keras, with its weights.

    Calls of a shared layer are calls of one layer. ModelError names an op that cannot be built.
    """
    missing = unlowered(graph)
    if missing:
        raise ModelError(f"{', '.join(missing)}: tf_keras has no such layer")
    lowering = _Lowering(graph)
    with quiet():
        model = lowering.model()
    names = {op.name: lowering.names[next(iter(graph.calls(op))).name] for op in graph}
    custom = {"Function": lowering.function_layer, "FlatConv": lowering.conv1d}
    return Lowered(model, names, custom)


class _Lowering:
    """The lowering of one graph, op by op."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.names = graph, _names(graph)
        self.function_layer, self.conv1d = _function_layer(), _conv1d()
        self.layers: dict[str, Any] = {}
        self.tensors: dict[Ref, Any] = {}

    def model(self) -> Any:
        """The tf_keras model."""
        import tf_keras

        for op in self.graph:
            try:
                results = [self.input(op)] if op.kind == "InputLayer" else self.call(op)
            except (TypeError, ValueError, NotImplementedError) as error:
                raise ModelError(
                    f"{op.name} ({op.kind}) cannot be carried over to tf_keras: {reason(error)}"
                ) from error
            for output, result in enumerate(results):
                self.tensors[Ref(op.name, output)] = result
        return tf_keras.Model(
            [self.tensors[Ref(name)] for name in self.graph.inputs],
            [self.tensors[ref] for ref in self.graph.outputs],
            name=_legal(self.graph.name),
        )

    def input(self, op: Op) -> Any:
        """The tensor of an InputLayer."""
        import tf_keras

        tensor = self.graph.tensors(op.name)[0]
        return tf_keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=self.names[op.name])

    def call(self, op: Op) -> list[Any]:
        """The output tensors of an op; the first call of a layer builds it."""
        key = op.shared or op.name
        first = key not in self.layers
        if first:
            self.layers[key] = self.layer(op)
        operands = [self.tensors[ref] for ref in self.graph.operands(op.name)]
        result = self.layers[key](operands[0] if len(operands) == 1 else operands)
        if first and op.weights:
            self.layers[key].set_weights(list(op.weights.values()))
        return list(result) if isinstance(result, list | tuple) else [result]

    def layer(self, op: Op) -> Any:
        """The layer of an op, without weights."""
        import tf_keras

        name = self.names[op.name]
        if _is_function(self.graph, op):
            return self.function_layer.of(op, name)
        cls = self.conv1d if op.kind == "Conv1D" else getattr(tf_keras.layers, op.kind, None)
        return _layer(cls, op, name)


def raised(graph: Graph, weights: Mapping[str, Mapping[str, Array]]) -> Graph:
    """The graph with weights from tf_keras.

    ``weights``: by op, some or all of its arrays by their names in tf_keras.
    """
    updated = {}
    for op in graph.layers():
        arrays = weights.get(op.name, {})
        if arrays:
            renamed = {"depthwise_kernel": "kernel"} if op.info.is_depthwise else {}
            new = {renamed.get(name, name): np.asarray(array) for name, array in arrays.items()}
            updated[op.name] = {name: new.get(name, weight) for name, weight in op.weights.items()}
    return graph.with_weights(updated)


def _names(graph: Graph) -> dict[str, str]:
    """A layer name for each op: the op's own, with the characters that TensorFlow accepts."""
    names: dict[str, str] = {}
    for op in graph:
        base = name = _legal(op.name)
        number = 1
        while name in names.values():
            number += 1
            name = f"{base}_{number}"
        names[op.name] = name
    return names


def _is_function(graph: Graph, op: Op) -> bool:
    """Whether the op can be called as a function: of keras.ops or custom, and without weights."""
    return op.origin is not None and not op.weights and len(graph.tensors(op.name)) == 1


def _function_layer() -> Any:
    """A new class of tf_keras layers that call ops of one graph."""
    import tf_keras

    class Function(tf_keras.layers.Layer):  # type: ignore[misc]
        """A layer that calls one op, found by the layer's name, so that the layer can be copied."""

        ops: ClassVar[dict[str, Callable[[Sequence[Any]], Any]]] = {}

        @classmethod
        def of(cls, op: Op, name: str) -> Any:
            cls.ops[name] = function(op)
            return cls(name=name)

        def call(self, inputs: Any) -> Any:
            return self.ops[self.name](inputs if isinstance(inputs, list | tuple) else [inputs])

    return Function


def _legal(name: str) -> str:
    """The name with the characters that TensorFlow accepts."""
    return re.sub(r"^(?=[^A-Za-z0-9.])", "t", re.sub(r"[^A-Za-z0-9_.]", "_", name))


def _conv1d() -> Any:
    """A class of Conv1D layers that convolve along one of two spatial axes, as TFLite does."""
    import tensorflow as tf
    import tf_keras

    class FlatConv(tf_keras.layers.Conv1D):  # type: ignore[misc]
        """A Conv1D with a kernel (K, I, O), or (1, K, I, O) as rounding per channel returns it."""

        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            result = tf.nn.convolution(
                tf.expand_dims(inputs, -3),
                kernel if len(kernel.shape) == 4 else tf.expand_dims(kernel, 0),
                strides=[1, *self.strides],
                padding="VALID" if self.padding == "causal" else self.padding.upper(),
                dilations=[1, *self.dilation_rate],
            )
            return tf.squeeze(result, -3)

    return FlatConv


def _layer(cls: Any, op: Op, name: str) -> Any:
    """A tf_keras layer with the op's configuration, as far as its class has those parameters."""
    parameters = inspect.signature(cls.__init__).parameters
    renamed = _RENAMED.get(op.kind, {})
    config = {renamed.get(key, key): value for key, value in op.attrs.items()}
    training_only = ("_initializer", "_regularizer", "_constraint")
    arguments = {
        key: value
        for key, value in config.items()
        if key in parameters
        and not key.endswith(training_only)
        and key not in ("name", "dtype", "trainable")
    }
    return cls(**arguments, name=name)
