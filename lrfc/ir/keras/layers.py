"""Single ops as Keras layers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lrfc.errors import ModelError
from lrfc.ir.backend import as_float32, keras, quiet, reason
from lrfc.ir.keras.creation import without_random_values
from lrfc.ir.op import Array, Op, Slot, Tensor


def variables_of(operation: Any) -> dict[str, Any]:
    """The layer's weight variables in Keras' order, by path relative to the layer."""
    variables: dict[str, Any] = {}
    for variable in getattr(operation, "weights", ()):
        path, prefix = variable.path, f"{operation.path}/"
        if path.startswith(prefix):
            name = path[len(prefix) :]
        else:
            name = path.rpartition(f"{operation.name}/")[2]
        variables[unique_name(name, variables)] = variable
    return variables


def unique_name(name: str, taken: Any) -> str:
    """The name, with a number appended where it is taken."""
    candidate, n = name, 1
    while candidate in taken:
        candidate, n = f"{name}_{n}", n + 1
    return candidate


def infer(op: Op, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The op's output tensors as inferred by Keras; ModelError when it rejects the inputs."""
    k = keras()
    with quiet(), as_float32(), trusted():
        layer = build_layer(op, layer_name(op.shared or op.name))
        results = call_layer(
            layer,
            op,
            [k.KerasTensor(tensor.shape, tensor.dtype) for tensor in inputs],
            symbolic=False,
        )
    return tuple(Tensor(tuple(result.shape), str(result.dtype)) for result in results)


def single(op: Op, batch: int = 256) -> Callable[[Sequence[Array]], tuple[Array, ...]]:
    """A function that computes one op with its weights, in inference mode.

    It maps the values of the operands, with the samples along axis 0, to those of the outputs, in
    batches of ``batch`` samples.
    """
    tensors, compute = keras().ops.convert_to_tensor, eager(op)

    def run(operands: Sequence[Array]) -> tuple[Array, ...]:
        parts = [
            [np.asarray(y) for y in compute([tensors(x[start : start + batch]) for x in operands])]
            for start in range(0, len(operands[0]), batch)
        ]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    return run


def eager(op: Op) -> Callable[[Sequence[Any]], list[Any]]:
    """A function that computes one op with its weights on TensorFlow tensors; see ``single``."""
    built: Any = None

    def run(operands: Sequence[Any]) -> list[Any]:
        nonlocal built
        with quiet(), as_float32(), trusted(), without_random_values(keras()):
            if built is None:
                layer = build_layer(op, layer_name(op.shared or op.name))
                call_layer(layer, op, [x[:1] for x in operands])  # creates the variables
                if op.weights:
                    set_weights(layer, op)
                built = layer
            return call_layer(built, op, list(operands))

    return run


def function(op: Op) -> Callable[[Sequence[Any]], Any]:
    """An op without weights as a function from TensorFlow tensors to its one output.

    The function can be called while another one is traced.
    """
    layer = build_layer(op, layer_name(op.name))

    def run(operands: Sequence[Any]) -> Any:
        (result,) = call_layer(layer, op, list(operands))
        return result

    return run


def layer_of(model: Any, op: Op) -> Any:
    """The layer of the op in a model that ``to_keras`` built."""
    return model.get_layer(layer_name(op.shared or op.name))


def build_layer(op: Op, name: str) -> Any:
    """The op's layer or keras.ops operation, not yet built."""
    k = keras()
    cls: Any = op.origin or getattr(k.layers, op.kind, None)
    if cls is None:
        raise ModelError(
            f"op '{op.name}' is of kind '{op.kind}', which is not in keras.layers, and has no class"
            " of its own"
        )
    parameters = inspect.signature(cls.__init__).parameters
    named = "name" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    config = copy.deepcopy(dict(op.attrs)) | ({"name": name} if named else {})
    try:
        layer = cls.from_config(config)
    except Exception as error:
        raise ModelError(
            f"layer '{op.name}' ({op.kind}) cannot be rebuilt from its configuration:"
            f" {reason(error)}"
        ) from error
    if not named:
        layer.name = name
    return layer


def call_layer(layer: Any, op: Op, operands: list[Any], *, symbolic: bool = True) -> list[Any]:
    """The layer's output tensors, on symbolic operands or on values.

    ``symbolic=False``: only their shapes and dtypes, where Keras infers them without weights.
    """
    tree = keras().tree
    if op.call is None:
        args, kwargs = (operands[0] if len(operands) == 1 else operands,), {}
    else:
        args, kwargs = tree.map_structure(
            lambda value: operands[value.port] if isinstance(value, Slot) else value,
            (op.call[0], dict(op.call[1])),
        )
    try:
        if symbolic or (op.origin is not None and isinstance(layer, keras().Layer)):
            return list(tree.flatten(layer(*args, **kwargs)))
        return list(tree.flatten(layer.compute_output_spec(*args, **kwargs)))
    except Exception as error:
        shapes = ", ".join(
            str(Tensor(tuple(operand.shape), str(operand.dtype))) for operand in operands
        )
        raise ModelError(
            f"layer '{op.name}' ({op.kind}) does not take {shapes}: {reason(error)}"
        ) from error


def set_weights(layer: Any, op: Op) -> None:
    """Assign the op's weights to a layer, by name.

    By order where the names differ: some layers name their inner layers differently in each
    instance.
    """
    variables = variables_of(layer)
    if variables.keys() != op.weights.keys():
        if [tuple(v.shape) for v in variables.values()] != [w.shape for w in op.weights.values()]:
            raise ModelError(
                f"layer '{op.name}' ({op.kind}) has the weights {', '.join(variables)} when"
                f" rebuilt, the graph holds {', '.join(op.weights)}"
            )
        variables = dict(zip(op.weights, variables.values(), strict=True))
    for name, value in op.weights.items():
        if tuple(variables[name].shape) != value.shape:
            raise ModelError(
                f"weight '{name}' of layer '{op.name}' has shape {value.shape}, the layer needs"
                f" {tuple(variables[name].shape)}"
            )
        variables[name].assign(value)
    if hasattr(layer, "finalize_state"):
        # Preprocessing layers derive values from their weights.
        layer.finalize_state()


def layer_name(name: str) -> str:
    """A layer name without '/', which Keras forbids, and '@', which TensorFlow forbids."""
    return name.replace("/", "_").replace("@", "__")


def trusted() -> Any:
    """A scope in which Lambda layers are rebuilt; the user allowed their code at loading."""
    from keras.src.saving.serialization_lib import SafeModeScope

    return SafeModeScope(safe_mode=False)
