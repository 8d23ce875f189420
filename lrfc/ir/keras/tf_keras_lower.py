"""From a graph to a tf_keras model, which tools that have not followed to Keras 3 take, and its weights back."""

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

#: Of a Keras 3 configuration, what tf_keras has under another name.
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}, "ELU": {}}


@dataclass(frozen=True)
class Lowered:
    """``model``: the tf_keras model, outputs as a list.

    ``layers``: op → the name of its layer. ``custom``: classes of ours that it is made of.
    """

    model: Any
    layers: Mapping[str, str]
    custom: Mapping[str, Any]


def unlowered(graph: Graph) -> tuple[str, ...]:
    """The ops that have no counterpart in tf_keras: layers that it has not, and layers with weights that are custom or called with arguments."""
    import tf_keras

    return tuple(
        op.name
        for op in graph
        if op.kind != "InputLayer"
        and not _is_function(graph, op)
        and (op.origin is not None or op.call is not None or not hasattr(tf_keras.layers, op.kind))
    )


def lower(graph: Graph) -> Lowered:
    """The graph in tf_keras, with its weights.

    Calls of a shared layer are calls of one layer. ModelError names what cannot be carried over.
    """
    import tf_keras

    missing = unlowered(graph)
    if missing:
        raise ModelError(f"{', '.join(missing)}: tf_keras has no such layer")
    names = _names(graph)
    own, conv1d = _function_layer(), _conv1d()
    layers: dict[str, Any] = {}
    tensors: dict[Ref, Any] = {}
    with quiet():
        for op in graph:
            if op.kind == "InputLayer":
                tensor = graph.tensors(op.name)[0]
                tensors[Ref(op.name)] = tf_keras.Input(
                    tensor.shape[1:], dtype=tensor.dtype, name=names[op.name]
                )
                continue
            key = op.shared or op.name
            try:
                first = key not in layers
                if first:
                    cls = conv1d if op.kind == "Conv1D" else getattr(tf_keras.layers, op.kind, None)
                    layers[key] = (
                        own.of(op, names[op.name])
                        if _is_function(graph, op)
                        else _layer(cls, op, names[op.name])
                    )
                operands = [tensors[ref] for ref in graph.operands(op.name)]
                given = layers[key](operands[0] if len(operands) == 1 else operands)
                if first and op.weights:
                    layers[key].set_weights(list(op.weights.values()))
            except (TypeError, ValueError, NotImplementedError) as error:
                raise ModelError(
                    f"{op.name} ({op.kind}) cannot be carried over to tf_keras: {reason(error)}"
                ) from error
            for number, each in enumerate(given if isinstance(given, list | tuple) else [given]):
                tensors[Ref(op.name, number)] = each
        model = tf_keras.Model(
            [tensors[Ref(name)] for name in graph.inputs],
            [tensors[ref] for ref in graph.outputs],
            name=_plain(graph.name),
        )
    return Lowered(
        model,
        {op.name: names[next(iter(graph.calls(op))).name] for op in graph},
        {"Function": own, "FlatConv": conv1d},
    )


def raised(graph: Graph, weights: Mapping[str, Mapping[str, Array]]) -> Graph:
    """The graph with weights of tf_keras: op → the arrays by tf_keras' names, of which those that are there replace the graph's."""
    updated = {}
    for op in graph.layers():
        found = weights.get(op.name, {})
        if found:
            renamed = {"depthwise_kernel": "kernel"} if op.info.is_depthwise else {}
            own = {renamed.get(name, name): np.asarray(array) for name, array in found.items()}
            updated[op.name] = {name: own.get(name, weight) for name, weight in op.weights.items()}
    return graph.with_weights(updated)


def _names(graph: Graph) -> dict[str, str]:
    """A layer name for each op: its own, as far as TensorFlow takes it."""
    taken: dict[str, str] = {}
    for op in graph:
        base = name = _plain(op.name)
        number = 1
        while name in taken.values():
            number += 1
            name = f"{base}_{number}"
        taken[op.name] = name
    return taken


def _is_function(graph: Graph, op: Op) -> bool:
    """Whether the op is a function of keras.ops, or another one without weights, that can be called as it is."""
    return op.origin is not None and not op.weights and len(graph.tensors(op.name)) == 1


def _function_layer() -> Any:
    """A class of tf_keras layers that call ops of a graph; each lowering has one of its own, which knows its ops."""
    import tf_keras

    class Function(tf_keras.layers.Layer):  # type: ignore[misc]
        """One op. Its configuration names it, so that the layer can be copied."""

        ops: ClassVar[dict[str, Callable[[Sequence[Any]], Any]]] = {}

        @classmethod
        def of(cls, op: Op, name: str) -> Any:
            cls.ops[name] = function(op)
            return cls(name=name)

        def call(self, inputs: Any) -> Any:
            return self.ops[self.name](inputs if isinstance(inputs, list | tuple) else [inputs])

    return Function


def _plain(name: str) -> str:
    return re.sub(r"^(?=[^A-Za-z0-9.])", "t", re.sub(r"[^A-Za-z0-9_.]", "_", name))


def _conv1d() -> Any:
    """A class of Conv1D that is computed along one of two axes, as in TFLite."""
    import tensorflow as tf
    import tf_keras

    class FlatConv(tf_keras.layers.Conv1D):  # type: ignore[misc]
        """A kernel (K, I, O), or (1, K, I, O) as rounding with a scale per channel gives it."""

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
    takes = inspect.signature(cls.__init__).parameters
    renamed = _RENAMED.get(op.kind, {})
    config = {renamed.get(key, key): value for key, value in op.attrs.items()}
    skipped = ("_initializer", "_regularizer", "_constraint")
    kept = {
        key: value
        for key, value in config.items()
        if key in takes and not key.endswith(skipped) and key not in ("name", "dtype", "trainable")
    }
    return cls(**kept, name=name)
