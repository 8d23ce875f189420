"""Record of the calls in a Keras model, in execution order, with nested models inlined."""

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
    """Recorder of a model's layer calls, in execution order, through nested models."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        #: By identity of the operation: the name of its first call, which is the key of the layer.
        self.keys: dict[int, str] = {}
        #: The name of each call.
        self.names: list[str] = []

    def record(
        self,
        operation: Any,
        prefix: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        operands: list[_Source],
    ) -> _Source:
        """Record and name a call; return its first output."""
        taken = {*self.names, *self.keys.values()}
        if id(operation) not in self.keys:
            self.keys[id(operation)] = name = unique_name(prefix + operation.name, taken)
        else:
            number = sum(call.operation is operation for call in self.calls)
            name = unique_name(f"{self.keys[id(operation)]}@{number}", taken)
        self.names.append(name)
        self.calls.append(_Call(operation, args, kwargs, operands))
        return len(self.calls) - 1, 0

    def inline(
        self, function: Any, inputs: Sequence[_Source], prefix: str, training: bool | None
    ) -> list[_Source]:
        """Record the calls inside a model on ``inputs`` and return its outputs.

        ``training``: the argument that the model was called with.
        """
        sources = dict(zip(map(id, function.inputs), inputs, strict=True))
        for node in _nodes(function):
            if node.is_input or any(id(tensor) not in sources for tensor in node.input_tensors):
                continue  # Keras too skips a call whose operands are not computed
            operands = [sources[id(tensor)] for tensor in node.input_tensors]
            args, kwargs = _slots(node, training)
            nested = _nested(node)
            if nested is None:
                call, _ = self.record(node.operation, prefix, args, kwargs, operands)
                outputs = [(call, i) for i in range(len(node.outputs))]
            else:
                inner = functional(node.operation)
                path = f"{prefix}{node.operation.name}__"
                adapted = [
                    self._adapt(tensor, sources[id(tensor)], expected, path)
                    for tensor, expected in zip(nested, inner.inputs, strict=True)
                ]
                outputs = self.inline(inner, adapted, path, kwargs.get("training", training))
            sources.update(zip(map(id, node.outputs), outputs, strict=True))
        return [sources[id(tensor)] for tensor in function.outputs]

    def _adapt(self, tensor: Any, source: _Source, expected: Any, prefix: str) -> _Source:
        """Record the conversions of a nested model's input, and return the converted tensor.

        Keras casts the input and adds or drops a last axis of length 1 where the model needs that.
        """
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
        """The reference to a recorded output in the graph."""
        return Ref(self.names[source[0]], source[1])

    def ops(self, outputs: Sequence[_Source]) -> Iterator[tuple[Op, tuple[Ref, ...]]]:
        """The inputs, and the calls that ``outputs`` depend on, as ops with their operands."""
        needed = {call for call, _ in outputs}
        for i in reversed(range(len(self.calls))):
            if i in needed:
                needed |= {call for call, _ in self.calls[i].operands}
        counts = Counter(id(self.calls[i].operation) for i in needed)
        weights: dict[int, dict[str, Array]] = {}
        for i, (name, call) in enumerate(zip(self.names, self.calls, strict=True)):
            if i not in needed and not isinstance(call.operation, keras().layers.InputLayer):
                continue  # only for an output of a nested model that nobody reads
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
                _op_call(call),
                origin,
            )
            yield op, tuple(self.ref(source) for source in call.operands)


def functional(model: Any) -> Any:
    """The Functional of a model; None when it is subclassed, or Sequential without input shape."""
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
    """The operands of a call of a nested model, in the order of its inputs.

    None for a call of another layer, and for one that cannot be inlined.
    """
    function = functional(node.operation)
    if function is None:
        return None
    args, kwargs = node.arguments.args, dict(node.arguments.kwargs)
    inputs, tree = args[0] if args else kwargs.get("inputs"), keras().tree
    # Keras passes on the masks of the operands, which the layers inside read from the tensors. A
    # different mask was passed by the user.
    masks = [getattr(tensor, "_keras_mask", None) for tensor in tree.flatten(inputs)]
    if len(args) > 1 or (
        kwargs.get("mask") is not None
        and [id(mask) for mask in tree.flatten(kwargs["mask"])] != [id(mask) for mask in masks]
    ):
        return None
    if isinstance(inputs, dict) and not isinstance(function.input, dict):
        inputs = [inputs.get(tensor.name) for tensor in function.inputs]
    flat = tree.flatten(inputs)
    if len(flat) != len(function.inputs) or any(
        not isinstance(tensor, keras().KerasTensor) for tensor in flat
    ):
        return None
    return list(flat)


def _slots(node: Any, training: bool | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with a Slot for each operand.

    ``training``: the argument of an enclosing model, which has precedence as in Keras.
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

    arguments = (node.arguments.args, node.arguments.kwargs)
    args, kwargs = k.tree.pack_sequence_as(
        arguments, [plain(value) for value in k.tree.flatten(arguments)]
    )
    if isinstance(node.operation, k.Layer):
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if not (value is None and name in ("training", "mask"))
        }
        if training is not None and _depends_on_training(node.operation):
            kwargs["training"] = training
    return tuple(args), dict(kwargs)


def _depends_on_training(layer: Any) -> bool:
    """Whether the layer, or one inside it, may compute something else in training."""
    return (
        "training" in inspect.signature(layer.call).parameters
        or len(list(layer._flatten_layers())) > 1
    )


def _op_call(call: _Call) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """The ``Op.call`` of a recorded call, which is None for the usual form."""
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
    """Kind and origin of an op; a custom layer with the name of a Keras layer has its full path.

    A layer of Keras has the name that Keras exports, which may not be that of its class.
    """
    k, cls = keras(), type(operation)
    if not isinstance(operation, k.Layer):
        return f"ops.{cls.__name__}", cls
    namesake = getattr(k.layers, cls.__name__, None)
    if namesake is cls:
        return cls.__name__, None
    exported = next((name for name, layer in vars(k.layers).items() if layer is cls), None)
    if exported is not None:
        return exported, None
    return cls.__name__ if namesake is None else f"{cls.__module__}.{cls.__name__}", cls


def _attrs(operation: Any, origin: type | None) -> dict[str, Any]:
    """The attributes of an op: see ``Op``."""
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
    if hasattr(operation, "get_vocabulary") and config.get("vocabulary") is None:
        # A learned vocabulary is neither in the configuration nor in the weights.
        config["vocabulary"] = operation.get_vocabulary(include_special_tokens=False)
    if isinstance(operation, k.layers.InputLayer):
        return {key: _tuples(value) for key, value in config.items()}
    config = _without_float_dtype(config)
    if origin is None:
        config = {key: _tuples(value) for key, value in config.items()}
    return config


def _without_float_dtype(value: Any) -> Any:
    """A layer's configuration without float dtype policies, nor those of the layers it wraps."""
    if isinstance(value, list):
        return [_without_float_dtype(item) for item in value]
    if not isinstance(value, dict) or value.get("class_name") in ("__numpy__", "__tensor__"):
        return value
    config = {key: _without_float_dtype(item) for key, item in value.items() if key != "dtype"}
    if "dtype" in value:
        dtype = value["dtype"]
        if isinstance(dtype, dict) and "name" in dtype.get("config", {}):
            dtype = dtype["config"]["name"]
        if not (isinstance(dtype, str) and "float" in dtype):
            config["dtype"] = dtype
    return config


def _tuples(value: Any) -> Any:
    """Convert lists of numbers, and lists of such lists, to tuples, and arrays of one to numbers.

    Files in the legacy HDF5 format may hold such arrays, such as the 6 of a ReLU6.
    """
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        return value.item()
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
    """Keras' nesting of inputs or outputs; None for a list or a single tensor."""
    if isinstance(packed, keras().KerasTensor) or (
        isinstance(packed, list) and len(keras().tree.flatten(packed)) == len(packed)
    ):
        return None
    return keras().tree.pack_sequence_as(packed, [Slot(i) for i in range(count)])
