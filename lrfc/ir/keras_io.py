"""Keras models to graphs and back: import, export, shape inference by Keras, saving, running."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfc.errors import ModelError, UsageError
from lrfc.ir.backend import as_float32, keras, quiet, reason
from lrfc.ir.graph import Array, Graph, Op, Ref, Slot, Tensor

if TYPE_CHECKING:
    from lrfc.state import Batch

#: One output of a recorded call: (index of the call, index of the output).
_Source = tuple[int, int]


def from_keras(model: Any) -> Graph:
    """The graph of a Functional or Sequential model.

    Nested models are inlined, their ops are named by path (``backbone__conv``); further calls of a layer are ``conv@1``, ``conv@2``, and all calls
    share one key and the same arrays. Everything float is taken as float32. ModelError for a model without a layer graph (subclassed), without an
    input shape, or with quantized layers.
    """
    function = _function(model)
    if function is None:
        if isinstance(model, keras().Sequential):
            raise ModelError(f"Sequential model '{model.name}' has no input shape: add keras.Input(shape=...) as its first layer, or call it once before saving")
        raise ModelError(
            f"model '{model.name}' ({type(model).__name__}) is subclassed and has no layer graph: rebuild it with the functional API, keras.Model(inputs, outputs)"
        )
    inliner = _Inliner()
    sources = [inliner.record(tensor._keras_history.operation, "", (), {}, []) for tensor in function.inputs]
    outputs = inliner.inline(function, sources, "", None)

    graph = Graph(model.name)
    for op, operands in inliner.ops():
        graph.add(op, operands)
    graph.outputs = tuple(inliner.ref(source) for source in outputs)
    graph.structure = (_structure(function.input, len(sources)), _structure(function.output, len(outputs)))
    return graph


def to_keras(graph: Graph) -> Any:
    """A plain functional Keras model that computes the graph, with its layer names and weights. Calls of a shared layer are calls of one layer."""
    k = keras()
    layers: dict[str, Any] = {}
    tensors: dict[Ref, Any] = {}
    with quiet(), as_float32(), _trusted():
        for op in graph:
            key = op.shared or op.name
            if op.kind == "InputLayer":
                results = [_build(op, _layer_name(key)).output]
            else:
                layer = layers[key] if key in layers else layers.setdefault(key, _build(op, _layer_name(key)))
                results = _call(layer, op, [tensors[ref] for ref in graph.operands(op.name)])
            tensors.update({Ref(op.name, i): result for i, result in enumerate(results)})
        model = k.Model(
            _pack(graph.structure[0], [tensors[Ref(name)] for name in graph.inputs]), _pack(graph.structure[1], [tensors[ref] for ref in graph.outputs]), name=graph.name
        )
        for op in graph.layers():
            if op.weights:
                _set_weights(layers[op.shared or op.name], op)
    return model


def infer(op: Op, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The op's output tensors, asked of Keras. ModelError when the layer refuses these inputs."""
    k = keras()
    with quiet(), as_float32(), _trusted():
        layer = _build(op, _layer_name(op.shared or op.name))
        results = _call(layer, op, [k.KerasTensor(tensor.shape, tensor.dtype) for tensor in inputs], symbolic=False)
    return tuple(Tensor(tuple(result.shape), str(result.dtype)) for result in results)


def save(graph: Graph, path: Path | str) -> None:
    """Write the graph as a plain ``.keras`` file, which Keras loads without lrfc."""
    model = to_keras(graph)
    with quiet():
        model.save(path)


def compiled(graph_or_model: Any) -> Callable[[Batch], Batch]:
    """A function from one batch (any number of samples) to the outputs in the order of ``graph.outputs``, in inference mode. It is traced once."""
    import tensorflow as tf

    k = keras()
    model = to_keras(graph_or_model) if isinstance(graph_or_model, Graph) else graph_or_model
    function = _function(model)
    if function is None:
        raise ModelError(f"model '{model.name}' has no layer graph, so it cannot be run")
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in function.inputs]

    def flat_call(*flat: Any) -> Any:
        return k.tree.flatten(model(k.tree.pack_sequence_as(function.input, list(flat)), training=False))

    with quiet():
        call = tf.function(flat_call, autograph=False).get_concrete_function(*specs)
    fixed = specs[0].shape[0]

    def run(batch: Batch) -> Batch:
        if len(batch) != len(specs):
            raise UsageError(f"model '{model.name}' has {len(specs)} inputs, the data have {len(batch)} arrays")
        for tensor, spec, x in zip(function.inputs, specs, batch, strict=True):
            if not spec.shape[1:].is_compatible_with(x.shape[1:]):
                raise UsageError(f"input '{tensor.name}' takes samples of shape {tuple(spec.shape[1:])}, the data have {tuple(x.shape[1:])}")
        arrays = [tf.constant(np.asarray(x, dtype=spec.dtype.as_numpy_dtype)) for x, spec in zip(batch, specs, strict=True)]
        with quiet():
            if fixed is None:
                return tuple(np.asarray(y) for y in call(*arrays))
            parts = [_run_fixed(call, [x[start : start + fixed] for x in arrays], fixed) for start in range(0, len(arrays[0]), fixed)]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    return run


def predict(graph_or_model: Any, batch: Batch, batch_size: int = 256) -> Batch:
    """The outputs of a graph, a model or a ``compiled`` one for all samples of ``batch``, in the order of ``graph.outputs``."""
    run = graph_or_model if inspect.isfunction(graph_or_model) else compiled(graph_or_model)
    parts = [run(tuple(x[start : start + batch_size] for x in batch)) for start in range(0, len(batch[0]), batch_size)]
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def call(model: Any, batch: Sequence[Any], *, training: bool = False) -> Any:
    """The model's outputs, packed as the model packs them, for one array or tensor per input."""
    arrays = [keras().ops.convert_to_tensor(x, tensor.dtype) for x, tensor in zip(batch, model.inputs, strict=True)]
    return model(keras().tree.pack_sequence_as(_function(model).input, arrays), training=training)


def layer(op: Op) -> Any:
    """The Keras layer of a weightless op, to be called on arrays."""
    with quiet(), as_float32(), _trusted():
        return _build(op, _layer_name(op.name))


def absorb(graph: Graph, model: Any) -> Graph:
    """The graph with the weights of the model that ``to_keras`` made from it."""
    trained = {}
    for op in graph.layers():
        if op.weights:
            variables = _variables(model.get_layer(_layer_name(op.shared or op.name)))
            trained[op.name] = dict(zip(op.weights, (np.asarray(v) for v in variables.values()), strict=True))
    return graph.with_weights(trained)


def _run_fixed(call: Callable[..., Any], arrays: list[Array], size: int) -> list[Array]:
    """One call of a model whose batch size is fixed: the samples are padded by repeating the last, and the surplus is cut off."""
    count = len(arrays[0])
    padded = [np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)]) for x in arrays]
    return [np.asarray(y)[:count] for y in call(*padded)]


# -- Keras model to graph ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """One call of an operation on outputs of earlier calls."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: list[_Source]


class _Inliner:
    """Walks a model in execution order, through nested models, and records the calls of what is not a model."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.keys: dict[int, str] = {}
        self.names: list[str] = []

    def record(self, operation: Any, prefix: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], operands: list[_Source]) -> _Source:
        """Note a call and name it; gives its first output."""
        taken = {*self.names, *self.keys.values()}
        if id(operation) not in self.keys:
            self.keys[id(operation)] = name = _unique(prefix + operation.name, taken)
        else:
            name = _unique(f"{self.keys[id(operation)]}@{sum(call.operation is operation for call in self.calls)}", taken)
        self.names.append(name)
        self.calls.append(_Call(operation, args, kwargs, operands))
        return len(self.calls) - 1, 0

    def inline(self, function: Any, inputs: Sequence[_Source], prefix: str, training: bool | None) -> list[_Source]:
        """Record the calls inside a model that reads ``inputs``; ``training`` is the argument it was called with. Gives its outputs."""
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
                order = {id(tensor): source for tensor, source in zip(node.input_tensors, operands, strict=True)}
                given = [self._fit(tensor, order[id(tensor)], expected, inner) for tensor, expected in zip(nested, _function(node.operation).inputs, strict=True)]
                outputs = self.inline(_function(node.operation), given, inner, kwargs.get("training", training))
            known.update({id(tensor): source for tensor, source in zip(node.outputs, outputs, strict=True)})
        return [known[id(tensor)] for tensor in function.outputs]

    def _fit(self, tensor: Any, source: _Source, expected: Any, prefix: str) -> _Source:
        """What a nested model does to its input before use: match the dtype, add or drop a last axis of length 1."""
        k = keras()
        probe = k.KerasTensor(tensor.shape, tensor.dtype)
        if tensor.dtype != expected.dtype and not ("float" in tensor.dtype and "float" in expected.dtype):
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

    def ops(self) -> Iterator[tuple[Op, tuple[Ref, ...]]]:
        """The recorded calls as ops with their operands."""
        counts: dict[int, int] = {}
        for call in self.calls:
            counts[id(call.operation)] = counts.get(id(call.operation), 0) + 1
        weights: dict[int, dict[str, Array]] = {}
        for name, call in zip(self.names, self.calls, strict=True):
            key = id(call.operation)
            if key not in weights:
                weights[key] = _weights(call.operation)
            kind, origin = _kind(call.operation)
            shared = self.keys[key] if counts[key] > 1 else None
            op = Op(name, kind, _attrs(call.operation, origin), weights[key], shared, _usual(call), origin)
            yield op, tuple(self.ref(source) for source in call.operands)


def _function(model: Any) -> Any:
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
    function = _function(node.operation)
    if function is None:
        return None
    args, kwargs = node.arguments.args, dict(node.arguments.kwargs)
    if kwargs.get("mask") is not None or len(args) > 1:
        return None
    given = args[0] if args else kwargs.get("inputs")
    tree = keras().tree
    if isinstance(given, dict) and not isinstance(function.input, dict):
        given = [given.get(tensor.name) for tensor in function.inputs]
    flat = tree.flatten(given)
    if len(flat) != len(function.inputs) or any(not isinstance(tensor, keras().KerasTensor) for tensor in flat):
        return None
    return list(flat)


def _slots(node: Any, training: bool | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with a Slot for each operand. ``training`` of an enclosing model wins, as it does in Keras."""
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
        kwargs = {name: value for name, value in kwargs.items() if not (value is None and name in ("training", "mask"))}
        if training is not None and _minds_training(node.operation):
            kwargs["training"] = training
    return tuple(args), dict(kwargs)


def _minds_training(layer: Any) -> bool:
    """Whether the layer, or one inside it, computes differently in training."""
    return "training" in inspect.signature(layer.call).parameters or len(list(layer._flatten_layers())) > 1


def _usual(call: _Call) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """Op.call of a recorded call: None for the usual forms."""
    count = len(call.operands)
    slots = [Slot(port) for port in range(count)]
    usual = not call.kwargs and (call.args == (Slot(0),) if count == 1 else count == 0 or (len(call.args) == 1 and isinstance(call.args[0], list) and call.args[0] == slots))
    return None if usual else (call.args, call.kwargs)


def _kind(operation: Any) -> tuple[str, type | None]:
    k, cls = keras(), type(operation)
    if not isinstance(operation, k.Layer):
        return f"ops.{cls.__name__}", cls
    namesake = getattr(k.layers, cls.__name__, None)
    if namesake is cls:
        return cls.__name__, None
    return (cls.__name__ if namesake is None else f"{cls.__module__}.{cls.__name__}"), cls  # a custom Conv2D is not a Conv2D


def _attrs(operation: Any, origin: type | None) -> dict[str, Any]:
    k = keras()
    layers = list(operation._flatten_layers()) if isinstance(operation, k.Layer) else []
    for layer in layers:
        if layer.dtype_policy.quantization_mode is not None:
            raise ModelError(f"layer '{layer.name}' is quantized ({layer.dtype_policy.name}): give the float model it was made from")
    try:
        config = dict(operation.get_config())
    except NotImplementedError as error:
        raise ModelError(f"layer '{operation.name}' ({type(operation).__name__}) has no usable get_config(), which a rebuild needs: {reason(error)}") from error
    config.pop("name", None)
    if not layers:
        return config
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
        return items if all(item is None or isinstance(item, int | float | tuple) for item in items) else value
    return value


def _weights(operation: Any) -> dict[str, Array]:
    """The layer's weights by variable path relative to the layer, read-only; floats as float32."""
    weights: dict[str, Array] = {}
    for name, variable in _variables(operation).items():
        array = np.array(variable)
        if np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        array.flags.writeable = False
        weights[name] = array
    return weights


def _variables(operation: Any) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for variable in getattr(operation, "weights", ()):
        path, own = variable.path, f"{operation.path}/"
        name = path[len(own) :] if path.startswith(own) else path.rpartition(f"{operation.name}/")[2]
        variables[_unique(name, variables)] = variable
    return variables


def _structure(structure: Any, count: int) -> Any:
    """How Keras packs inputs or outputs: None for a list and for a single tensor."""
    if isinstance(structure, keras().KerasTensor) or (isinstance(structure, list) and len(keras().tree.flatten(structure)) == len(structure)):
        return None
    return keras().tree.pack_sequence_as(structure, [Slot(i) for i in range(count)])


def _unique(name: str, taken: Any) -> str:
    candidate, n = name, 1
    while candidate in taken:
        candidate, n = f"{name}_{n}", n + 1
    return candidate


# -- graph to Keras model ------------------------------------------------------------------------------------------------------------


def _build(op: Op, name: str) -> Any:
    """The op's layer or keras.ops operation, not yet built."""
    k = keras()
    cls = op.origin or getattr(k.layers, op.kind, None)
    if cls is None:
        raise ModelError(f"op '{op.name}' is of kind '{op.kind}', which is not in keras.layers, and has no class of its own")
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    named = "name" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    config = copy.deepcopy(dict(op.attrs)) | ({"name": name} if named else {})
    try:
        layer = cls.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:
        raise ModelError(f"layer '{op.name}' ({op.kind}) cannot be rebuilt from its configuration: {reason(error)}") from error
    if not named:
        layer.name = name
    return layer


def _call(layer: Any, op: Op, operands: list[Any], *, symbolic: bool = True) -> list[Any]:
    """The layer's output tensors on symbolic operands. ``symbolic=False`` asks for their shapes only, where Keras can tell without weights."""
    tree = keras().tree
    if op.call is None:
        args, kwargs = (operands[0] if len(operands) == 1 else operands,), {}
    else:
        given = (op.call[0], dict(op.call[1]))
        args, kwargs = tree.map_structure(lambda value: operands[value.port] if isinstance(value, Slot) else value, given)
    try:
        if symbolic or (op.origin is not None and isinstance(layer, keras().Layer)):
            return list(tree.flatten(layer(*args, **kwargs)))
        return list(tree.flatten(layer.compute_output_spec(*args, **kwargs)))
    except Exception as error:
        shapes = ", ".join(str(Tensor(tuple(operand.shape), str(operand.dtype))) for operand in operands)
        raise ModelError(f"layer '{op.name}' ({op.kind}) does not take {shapes}: {reason(error)}") from error


def _set_weights(layer: Any, op: Op) -> None:
    """Assign by name; by order where the layer names its inner layers anew each time it is made."""
    variables = _variables(layer)
    if variables.keys() != op.weights.keys():
        if [tuple(v.shape) for v in variables.values()] != [w.shape for w in op.weights.values()]:
            raise ModelError(f"layer '{op.name}' ({op.kind}) has the weights {', '.join(variables)} when rebuilt, the graph holds {', '.join(op.weights)}")
        variables = dict(zip(op.weights, variables.values(), strict=True))
    for name, value in op.weights.items():
        if tuple(variables[name].shape) != value.shape:
            raise ModelError(f"weight '{name}' of layer '{op.name}' has shape {value.shape}, the layer needs {tuple(variables[name].shape)}")
        variables[name].assign(value)
    if hasattr(layer, "finalize_state"):  # preprocessing layers compute from their weights what they use
        layer.finalize_state()


def _pack(structure: Any, tensors: list[Any]) -> Any:
    if structure is None:
        return tensors[0] if len(tensors) == 1 else tensors
    return keras().tree.map_structure(lambda slot: tensors[slot.port], structure)


def _layer_name(name: str) -> str:
    """Keras forbids '/' in layer names, TensorFlow '@'."""
    return name.replace("/", "_").replace("@", "__")


def _trusted() -> Any:
    """A scope in which Lambda code is rebuilt: it is the code of a model that was already loaded, by the user's leave."""
    from keras.src.saving.serialization_lib import SafeModeScope

    return SafeModeScope(safe_mode=False)
