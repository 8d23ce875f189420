"""A graph as a TensorFlow function with a fixed batch of one, the input of both converters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrfc.errors import LrfcError, ModelError
from lrfc.ir import backend
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.system.overrides import Override
from lrfc.targets.quiet import quiet
from lrfc.targets.samples import Spec


def _run_eagerly(eager: bool) -> None:
    import tensorflow as tf

    tf.config.run_functions_eagerly(eager)


def _runs_eagerly() -> bool:
    import tensorflow as tf

    return bool(tf.config.functions_run_eagerly())


#: TensorFlow has one switch for the process.
_EAGER: Override[bool, bool] = Override(_runs_eagerly, _run_eagerly, _run_eagerly)


@dataclass(frozen=True)
class Traced:
    """A traced function.

    ``function``: takes the model's inputs in the model's order and returns the list of its outputs.
    ``inputs`` and ``outputs``: with their names in the file. ``variables``: the weights that the
    function reads.
    """

    name: str
    function: Any
    inputs: tuple[Spec, ...]
    outputs: tuple[str, ...]
    variables: tuple[Any, ...]

    def frozen(self) -> Traced:
        """The function with weights as constants, calls inlined, and unused ops removed."""
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        function = convert_variables_to_constants_v2(
            self.function, lower_control_flow=False, aggressive_inlining=True
        )
        return replace(self, function=function, variables=())

    def kinds(self) -> dict[str, set[str]]:
        """The kinds of TensorFlow ops in the function, each with the names of its ops."""
        graph = self.function.graph.as_graph_def()
        names: dict[str, set[str]] = {}
        for node in (
            *graph.node,
            *(node for function in graph.library.function for node in function.node_def),
        ):
            names.setdefault(node.op, set()).add(node.name)
        return names

    def places(self, kinds: Iterable[str]) -> str:
        """The TensorFlow ops of those kinds with the layers that they come from, for a message."""
        names = self.kinds()
        places = {
            f"{kind} (in '{plain(name, self.name)}')"
            for kind in kinds
            for name in names.get(kind, ())
        }
        return ", ".join(sorted(places)) or ", ".join(sorted(kinds))


def converted(
    graph: Graph, form: str, convert: Callable[[], bytes | bytearray]
) -> bytes | bytearray:
    """Return the result of ``convert``, which traces and converts the graph, without any output.

    ``form``: the format, for messages. ModelError when
    the converter fails, with all of its output in the error's notes.
    """
    with quiet() as output:
        try:
            return convert()
        except LrfcError as error:
            error.add_note(output())
            raise
        except Exception as error:  # the converters' own exceptions have no common base
            failure = ModelError(
                f"'{graph.name}' cannot be converted to {form}: {backend.reason(error)}"
            )
            failure.add_note(output())
            raise failure from error


def trace(graph: Graph) -> Traced:
    """Trace the graph's inference function.

    Inputs have the names of their ops, outputs those of the ops that compute them. ModelError when
    the model holds a lookup table.
    """
    import tensorflow as tf

    tree = backend.keras().tree
    model = keras_io.to_keras(graph)
    inputs, outputs = names(graph)
    specs = [
        Spec(name, (1, *tensor.shape[1:]), tensor.dtype)
        for name, tensor in zip(inputs, model.inputs, strict=True)
    ]

    def call(*tensors: Any) -> list[Any]:
        # Keras wraps a grouped convolution in a function compiled by XLA, which is opaque to the
        # converters; run eagerly, its ops are traced here.
        with _EAGER.to(True):
            results = tree.flatten(
                model(tree.pack_sequence_as(model.input, list(tensors)), training=False)
            )
        # An output that is an input, or occurs twice, needs a tensor of its own.
        return [tf.identity(y) for y in results]

    return traced(
        graph.name, call, specs, outputs, [variable.value for variable in model.variables]
    )


def traced(
    name: str,
    call: Callable[..., Any],
    inputs: Sequence[Spec],
    outputs: tuple[str, ...],
    variables: Sequence[Any],
) -> Traced:
    """Trace the call. ``variables``: all that it may read; ModelError when it reads others."""
    import tensorflow as tf

    function = tf.function(call, autograph=False).get_concrete_function(
        *(tf.TensorSpec(spec.shape, spec.dtype, spec.name) for spec in inputs)
    )
    known = {id(variable.handle) for variable in variables}
    if any(
        tensor.dtype == tf.resource and id(tensor) not in known
        for tensor in function.captured_inputs
    ):
        raise ModelError(
            f"'{name}' holds a lookup table or other state that no file can carry; take it out of"
            " the model"
        )
    return Traced(name, function, tuple(inputs), outputs, tuple(variables))


def names(graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the model's inputs and outputs in the file."""
    unique = _unique([*graph.inputs, *map(str, graph.outputs)])
    return unique[: len(graph.inputs)], unique[len(graph.inputs) :]


def plain(name: str, model: str) -> str:
    """The name of a TensorFlow op or tensor without the additions of Keras and the converters.

    These are the model's scope, Keras' call counts, and the numbers that a converter appends.
    """
    return re.sub(r"(__\d+|_\d+(?=/)|:0)+(?=$|/)", "", name).removeprefix(f"{model}/")


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """Unique names with only the characters that TensorFlow and ONNX allow."""
    taken: dict[str, None] = {}
    for name in names:
        allowed = unique = re.sub(r"^(?=[^A-Za-z0-9.])", "t", re.sub(r"[^A-Za-z0-9_.]", "_", name))
        number = 1
        while unique in taken:
            number += 1
            unique = f"{allowed}_{number}"
        taken[unique] = None
    return tuple(taken)
