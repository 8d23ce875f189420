"""A graph as a TensorFlow function without variables, with a fixed batch of one: what both converters start from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.errors import LrfcError, ModelError
from lrfc.ir import backend, keras_io
from lrfc.ir.graph import Graph
from lrfc.targets.quiet import quiet


@dataclass(frozen=True)
class Frozen:
    """``function`` takes the model's inputs in the model's order and returns the list of its outputs; ``inputs`` and ``outputs`` name them in the file."""

    name: str
    function: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def places(self, kinds: Iterable[str]) -> str:
        """The TensorFlow ops of those kinds, each with the layer it comes from, for a message."""
        nodes = [node for node in self.function.graph.as_graph_def().node if node.op in kinds]
        return ", ".join(sorted({f"{node.op} (in '{plain(node.name, self.name)}')" for node in nodes})) or ", ".join(sorted(kinds))


def converted(graph: Graph, form: str, convert: Callable[[Frozen], bytes], start: Callable[[], Frozen] | None = None) -> bytes:
    """The bytes that the converter makes of the frozen graph, in silence; ModelError, with all the converter wrote in its notes, when it fails.

    ``start`` gives another function than the graph's own.
    """
    with quiet() as noise:
        try:
            return convert(freeze(graph) if start is None else start())
        except LrfcError as error:
            error.add_note(noise())
            raise
        except Exception as error:  # the converters raise whatever comes; all of it means the same to the user
            failure = ModelError(f"'{graph.name}' cannot be converted to {form}: {backend.reason(error)}")
            failure.add_note(noise())
            raise failure from error


def freeze(graph: Graph) -> Frozen:
    """The graph's inference function with every weight a constant.

    Variables are turned into constants before conversion, since the TFLite converter leaves READ_VARIABLE ops for those of a Keras 3 model.
    Inputs have the names of their ops, outputs those of the ops that give them. ModelError when the model holds a lookup table.
    """
    import tensorflow as tf

    tree = backend.keras().tree
    model = keras_io.to_keras(graph)
    inputs, outputs = names(graph)
    specs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name) for name, tensor in zip(inputs, model.inputs, strict=True)]

    def call(*tensors: Any) -> list[Any]:
        # Keras wraps a grouped convolution in a function compiled by XLA, which no converter sees into; run eagerly, its ops are traced here.
        eager = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            results = tree.flatten(model(tree.pack_sequence_as(model.input, list(tensors)), training=False))
        finally:
            tf.config.run_functions_eagerly(eager)
        return [tf.identity(y) for y in results]  # an output that is an input, or that is given twice, needs a tensor of its own

    return frozen(graph.name, call, specs, outputs)


def frozen(name: str, call: Callable[..., Any], specs: Sequence[Any], outputs: tuple[str, ...]) -> Frozen:
    """The function as a graph in which every variable is a constant. ``specs``: of its inputs, with the names that they have in the file."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(call, autograph=False).get_concrete_function(*specs)
    function = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    if len(function.inputs) != len(specs):
        raise ModelError(f"'{name}' holds a lookup table or other state that no file can carry; take it out of the model")
    return Frozen(name, function, tuple(spec.name for spec in specs), outputs)


def names(graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the model's inputs and outputs are called in the file."""
    found = _unique([*graph.inputs, *map(str, graph.outputs)])
    return found[: len(graph.inputs)], found[len(graph.inputs) :]


def plain(name: str, model: str) -> str:
    """The name of a TensorFlow op or tensor without the model's scope, Keras' call counts and the numbers that a converter appends."""
    return re.sub(r"(__\d+|_\d+(?=/)|:0)+(?=$|/)", "", name).removeprefix(f"{model}/")


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names with only the characters that TensorFlow and ONNX take, each made unique."""
    taken: dict[str, None] = {}
    for name in names:
        allowed = unique = re.sub(r"^(?=[^A-Za-z0-9.])", "t", re.sub(r"[^A-Za-z0-9_.]", "_", name))
        number = 1
        while unique in taken:
            number += 1
            unique = f"{allowed}_{number}"
        taken[unique] = None
    return tuple(taken)
