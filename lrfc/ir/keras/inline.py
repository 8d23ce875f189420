"""The calls that a Keras model makes, in execution order, with nested models inlined."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrfc.errors import ModelError
from lrfc.ir.backend import keras, reason
from lrfc.ir.keras.layers import unique_name, variables_of
from lrfc.ir.op import Array, Op, Ref, Slot

#: One output of a recorded call: (index of the call, index of the output).
_Source = tuple[int, int]


@dataclass(frozen=True)
class _Call:
    """One call of an operation on outputs of earlier calls."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: list[_Source]


class Inliner:
    """Walks a model in execution order, through nested models, and records the calls of what is not a model."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.keys: dict[int, str] = {}
        self.names: list[str] = []

    def record(
        self,
        operation: Any,
        prefix: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        operands: list[_Source],
    ) -> _Source:
        """Note a call and name it; gives its first output."""
        taken = {*self.names, *self.keys.values()}
        if id(operation) not in self.keys:
            self.keys[id(operation)] = name = unique_name(prefix + operation.name, taken)
        else:
            name = unique_name(
                f"{self.keys[id(operation)]}@{sum(call.operation is operation for call in self.calls)}",
                taken,
            )
        self.names.append(name)
        self.calls.append(_Call(operation, args, kwargs, operands))
        return len(self.calls) - 1, 0

    def inline(
        self, function: Any, inputs: Sequence[_Source], prefix: str, training: bool | None
    ) -> list[_Source]:
        """Record the calls inside a model that reads ``inputs``; ``training`` is the argument it was called with.

        Gives its outputs.
        """
        known = {id(tensor): source for tensor, source in zip(function.inputs, inputs, strict=True)}
        for node in _nodes(function):
            if node.is_input or any(id(tensor) not in known for tensor in node.input_tensors):
                continue  # the same rule by which Keras skips what cannot be computed
            operands = [known[id(tensor)] for tensor in node.input_tensors]
            args, kwargs = _slots(node, training)
            nested = _nested(node)
            if nested is None:
                call, _ = self.record(node.operation, prefix, args, kwargs, operands)
                outputs = [(call, i) for i in range(len(node.outputs))]
            else:
                inner = f"{prefix}{node.operation.name}__"
                order = {
                    id(tensor): source
                    for tensor, source in zip(node.input_tensors, operands, strict=True)
                }
                given = [
                    self._fit(tensor, order[id(tensor)], expected, inner)
                    for tensor, expected in zip(
                        nested, functional(node.operation).inputs, strict=True
                    )
                ]
                outputs = self.inline(
                    functional(node.operation), given, inner, kwargs.get("training", training)
                )
            known.update(
                {id(tensor): source for tensor, source in zip(node.outputs, outputs, strict=True)}
            )
        return [known[id(tensor)] for tensor in function.outputs]

    def _fit(self, tensor: Any, source: _Source, expected: Any, prefix: str) -> _Source:
        """What a nested model does to its input before use: match the dtype, add or drop a last axis of length 1."""
        k = keras()
        probe = k.KerasTensor(tensor.shape, tensor.dtype)
        if tensor.dtype != expected.dtype and not (
            "float" in tensor.dtype and "float" in expected.dtype
        ):
            probe = k.ops.cast(probe, expected.dtype)
            source = self.record(probe._keras_history.operation, prefix, (Slot(0),), {}, [source])
        if len(tensor.shape) == len(expected.shape) + 1:
            operation = k.ops.squeeze(probe, axis=-1)._keras_history.operation
            source = self.record(operation, prefix, (Slot(0),), {}, [source])
        elif len(tensor.shape) == len(expected.shape) - 1:
            operation = k.ops.expand_dims(probe, axis=-1)._keras_history.operation
            source = self.record(operation, prefix, (Slot(0),), {}, [source])
        return source

    def ref(self, source: _Source) -> Ref:
        """The graph's name of a recorded output."""
        return Ref(self.names[source[0]], source[1])

    def ops(self, outputs: Sequence[_Source]) -> Iterator[tuple[Op, tuple[Ref, ...]]]:
        """The inputs and the recorded calls that ``outputs`` depend on, as ops with their operands."""
        needed = {call for call, _ in outputs}
        for i in reversed(range(len(self.calls))):
            if i in needed:
                needed |= {call for call, _ in self.calls[i].operands}
        counts = Counter(id(self.calls[i].operation) for i in needed)
        weights: dict[int, dict[str, Array]] = {}
        for i, (name, call) in enumerate(zip(self.names, self.calls, strict=True)):
            if i not in needed and not isinstance(call.operation, keras().layers.InputLayer):
                continue  # an output of a nested model that nobody reads
            key = id(call.operation)
            if key not in weights:
                weights[key] = _weights(call.operation)
            kind, origin = _kind(call.operation)
            shared = self.keys[key] if counts[key] > 1 else None
            op = Op(
                name,
                kind,
                _attrs(call.operation, origin),
                weights[key],
                shared,
                _usual(call),
                origin,
            )
            yield op, tuple(self.ref(source) for source in call.operands)


def functional(model: Any) -> Any:
    """The Functional behind a model; None when there is none (subclassed, or Sequential without an input shape)."""
    k = keras()
    from keras.src.models.functional import Functional

    if isinstance(model, k.Sequential):
        return model._functional if type(model).call is k.Sequential.call else None
    return model if isinstance(model, Functional) and type(model).call is Functional.call else None


def _nodes(function: Any) -> Iterator[Any]:
    """The calls in a Functional, in the order in which Keras executes them."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def _nested(node: Any) -> list[Any] | None:
    """The operands of a call of a nested model, in the order of its inputs; None when the call is not one that can be inlined."""
    function = functional(node.operation)
    if function is None:
        return None
    args, kwargs = node.arguments.args, dict(node.arguments.kwargs)
    given, tree = args[0] if args else kwargs.get("inputs"), keras().tree
    # Keras passes the masks of the operands on; the layers inside find them again on the tensors.
    # Another mask is the user's own.
    masks = [getattr(tensor, "_keras_mask", None) for tensor in tree.flatten(given)]
    if len(args) > 1 or (
        kwargs.get("mask") is not None
        and [id(mask) for mask in tree.flatten(kwargs["mask"])] != [id(mask) for mask in masks]
    ):
        return None
    if isinstance(given, dict) and not isinstance(function.input, dict):
        given = [given.get(tensor.name) for tensor in function.inputs]
    flat = tree.flatten(given)
    if len(flat) != len(function.inputs) or any(
        not isinstance(tensor, keras().KerasTensor) for tensor in flat
    ):
        return None
    return list(flat)


def _slots(node: Any, training: bool | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with a Slot for each operand.

    ``training`` of an enclosing model wins, as it does in Keras.
    """
    k = keras()
    ports = iter(range(len(node.input_tensors)))

    def plain(value: Any) -> Any:
        if isinstance(value, k.KerasTensor):
            return Slot(next(ports))
        if isinstance(value, k.Variable) or k.ops.is_tensor(value):
            array = k.ops.convert_to_numpy(value)
            array.flags.writeable = False
            return array
        return value

    given = (node.arguments.args, node.arguments.kwargs)
    args, kwargs = k.tree.pack_sequence_as(given, [plain(value) for value in k.tree.flatten(given)])
    if isinstance(node.operation, k.Layer):
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if not (value is None and name in ("training", "mask"))
        }
        if training is not None and _minds_training(node.operation):
            kwargs["training"] = training
    return tuple(args), dict(kwargs)


def _minds_training(layer: Any) -> bool:
    """Whether the layer, or one inside it, computes differently in training."""
    return (
        "training" in inspect.signature(layer.call).parameters
        or len(list(layer._flatten_layers())) > 1
    )


def _usual(call: _Call) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """Op.call of a recorded call: None for the usual forms."""
    count = len(call.operands)
    slots = [Slot(port) for port in range(count)]
    if call.kwargs or len(call.args) > 1:
        usual = False
    elif count == 1:
        usual = isinstance(call.args[0], Slot)
    else:
        usual = count == 0 or (isinstance(call.args[0], list) and call.args[0] == slots)
    return None if usual else (call.args, call.kwargs)


def _kind(operation: Any) -> tuple[str, type | None]:
    k, cls = keras(), type(operation)
    if not isinstance(operation, k.Layer):
        return f"ops.{cls.__name__}", cls
    namesake = getattr(k.layers, cls.__name__, None)
    if namesake is cls:
        return cls.__name__, None
    return (
        cls.__name__ if namesake is None else f"{cls.__module__}.{cls.__name__}"
    ), cls  # a custom Conv2D is not a Conv2D


def _attrs(operation: Any, origin: type | None) -> dict[str, Any]:
    k = keras()
    layers = list(operation._flatten_layers()) if isinstance(operation, k.Layer) else []
    for layer in layers:
        if layer.dtype_policy.quantization_mode is not None:
            raise ModelError(
                f"layer '{layer.name}' is quantized ({layer.dtype_policy.name}): give the float"
                " model it was made from"
            )
    try:
        config = dict(operation.get_config())
    except NotImplementedError as error:
        raise ModelError(
            f"layer '{operation.name}' ({type(operation).__name__}) has no usable get_config(),"
            f" which a rebuild needs: {reason(error)}"
        ) from error
    config.pop("name", None)
    if not layers:
        return config
    if (
        hasattr(operation, "get_vocabulary") and config.get("vocabulary") is None
    ):  # a learned one is neither in the configuration nor in the weights
        config["vocabulary"] = operation.get_vocabulary(include_special_tokens=False)
    if isinstance(operation, k.layers.InputLayer):
        return {key: _tuples(value) for key, value in config.items()}
    config = _without_float_dtype(config)
    if origin is None:
        config = {key: _tuples(value) for key, value in config.items()}
    return config


def _without_float_dtype(value: Any) -> Any:
    """A layer's configuration without the float dtype policies, at any depth (wrapped layers have their own)."""
    if isinstance(value, list):
        return [_without_float_dtype(item) for item in value]
    if not isinstance(value, dict) or value.get("class_name") in ("__numpy__", "__tensor__"):
        return value
    kept = {key: _without_float_dtype(item) for key, item in value.items() if key != "dtype"}
    if "dtype" in value:
        dtype = value["dtype"]
        if isinstance(dtype, dict) and "name" in dtype.get("config", {}):
            dtype = dtype["config"]["name"]
        if not (isinstance(dtype, str) and "float" in dtype):
            kept["dtype"] = dtype
    return kept


def _tuples(value: Any) -> Any:
    """Lists of numbers (or of lists of them) as tuples."""
    if isinstance(value, list | tuple):
        items = tuple(_tuples(item) for item in value)
        return (
            items
            if all(item is None or isinstance(item, int | float | tuple) for item in items)
            else value
        )
    return value


def _weights(operation: Any) -> dict[str, Array]:
    """The layer's weights by variable path relative to the layer, read-only; floats as float32."""
    weights: dict[str, Array] = {}
    for name, variable in variables_of(operation).items():
        array = np.array(variable)
        if np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        array.flags.writeable = False
        weights[name] = array
    return weights


def structure(packed: Any, count: int) -> Any:
    """How Keras packs inputs or outputs: None for a list and for a single tensor."""
    if isinstance(packed, keras().KerasTensor) or (
        isinstance(packed, list) and len(keras().tree.flatten(packed)) == len(packed)
    ):
        return None
    return keras().tree.pack_sequence_as(packed, [Slot(i) for i in range(count)])
