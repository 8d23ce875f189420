"""A graph as a TensorFlow function with a fixed batch of one: what both converters start from."""

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


def _run_eagerly(wanted: bool) -> None:
    import tensorflow as tf

    tf.config.run_functions_eagerly(wanted)


def _runs_eagerly() -> bool:
    import tensorflow as tf

    return bool(tf.config.functions_run_eagerly())


#: TensorFlow's switch is one for the process.
_EAGER: Override[bool, bool] = Override(_runs_eagerly, _run_eagerly, _run_eagerly)


@dataclass(frozen=True)
class Traced:
    """``function`` takes the model's inputs in the model's order and returns the list of its outputs.

    ``inputs`` have the names that they have in the file; ``outputs`` names the outputs there.
    ``variables``: the weights that it reads.
    """

    name: str
    function: Any
    inputs: tuple[Spec, ...]
    outputs: tuple[str, ...]
    variables: tuple[Any, ...]

    def frozen(self) -> Traced:
        """With every weight a constant of the function, calls inlined, and what gives no output pruned."""
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        function = convert_variables_to_constants_v2(
            self.function, lower_control_flow=False, aggressive_inlining=True
        )
        return replace(self, function=function, variables=())

    def kinds(self) -> dict[str, set[str]]:
        """The kinds of TensorFlow's ops in it, each with the names of its ops."""
        graph = self.function.graph.as_graph_def()
        found: dict[str, set[str]] = {}
        for node in (
            *graph.node,
            *(node for function in graph.library.function for node in function.node_def),
        ):
            found.setdefault(node.op, set()).add(node.name)
        return found

    def places(self, kinds: Iterable[str]) -> str:
        """The TensorFlow ops of those kinds, each with the layer it comes from, for a message."""
        found = self.kinds()
        named = {
            f"{kind} (in '{plain(name, self.name)}')"
            for kind in kinds
            for name in found.get(kind, ())
        }
        return ", ".join(sorted(named)) or ", ".join(sorted(kinds))


def converted(
    graph: Graph,
    form: str,
    convert: Callable[[Traced], bytes],
    start: Callable[[], Traced] | None = None,
) -> bytes:
    """The bytes that the converter makes of the traced graph, in silence; ModelError, with all the converter wrote in its notes, when it fails.

    ``start`` gives another function than the graph's own.
    """
    with quiet() as noise:
        try:
            return convert(trace(graph) if start is None else start())
        except LrfcError as error:
            error.add_note(noise())
            raise
        except (
            Exception
        ) as error:  # the converters raise whatever comes; all of it means the same to the user
            failure = ModelError(
                f"'{graph.name}' cannot be converted to {form}: {backend.reason(error)}"
            )
            failure.add_note(noise())
            raise failure from error


def trace(graph: Graph) -> Traced:
    """The graph's inference function.

    Inputs have the names of their ops, outputs those of the ops that give them. ModelError when the
    model holds a lookup table.
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
        # Keras wraps a grouped convolution in a function compiled by XLA, which no converter sees
        # into; run eagerly, its ops are traced here.
        with _EAGER.to(True):
            results = tree.flatten(
                model(tree.pack_sequence_as(model.input, list(tensors)), training=False)
            )
        return [
            tf.identity(y) for y in results
        ]  # an output that is an input, or that is given twice, needs a tensor of its own

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
    """The call as a function, see Traced; ``variables``: all that it may read."""
    import tensorflow as tf

    function = tf.function(call, autograph=False).get_concrete_function(
        *(tf.TensorSpec(spec.shape, spec.dtype, spec.name) for spec in inputs)
    )
    known = {id(variable.handle) for variable in variables}
    if any(
        held.dtype == tf.resource and id(held) not in known for held in function.captured_inputs
    ):
        raise ModelError(
            f"'{name}' holds a lookup table or other state that no file can carry; take it out of"
            " the model"
        )
    return Traced(name, function, tuple(inputs), outputs, tuple(variables))


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
