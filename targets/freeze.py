"""A graph as a TensorFlow function without variables, with a fixed batch of one: what both converters start from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lrfc.ir import backend, keras_io
from lrfc.ir.graph import Graph


@dataclass(frozen=True)
class Frozen:
    """``function`` takes the model's inputs in the model's order and returns the list of its outputs; ``inputs`` and ``outputs`` name them in the file."""

    function: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def freeze(graph: Graph) -> Frozen:
    """The graph's inference function with every weight a constant.

    Variables are turned into constants before conversion, since the TFLite converter leaves READ_VARIABLE ops for those of a Keras 3 model.
    Inputs have the names of their ops, outputs those of the ops that give them.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tree = backend.keras().tree
    model = keras_io.to_keras(graph)
    names = _plain([*graph.inputs, *map(str, graph.outputs)])
    inputs, outputs = names[: len(graph.inputs)], names[len(graph.inputs) :]
    specs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name) for name, tensor in zip(inputs, model.inputs, strict=True)]

    def call(*tensors: Any) -> list[Any]:
        # An output that is an input, or that is given twice, needs a tensor of its own.
        return [tf.identity(y) for y in tree.flatten(model(tree.pack_sequence_as(model.input, list(tensors)), training=False))]

    return Frozen(convert_variables_to_constants_v2(tf.function(call).get_concrete_function(*specs)), inputs, outputs)


def _plain(names: Iterable[str]) -> tuple[str, ...]:
    """The names with only the characters that TensorFlow and ONNX take, each made unique."""
    taken: dict[str, None] = {}
    for name in names:
        plain = unique = re.sub(r"^(?=[^A-Za-z0-9.])", "t", re.sub(r"[^A-Za-z0-9_.]", "_", name))
        number = 1
        while unique in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken[unique] = None
    return tuple(taken)
