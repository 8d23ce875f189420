"""Keras models to graphs and back: import, export, shape inference by Keras, saving, running."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfc.errors import ModelError, UsageError
from lrfc.ir import keras_inline
from lrfc.ir.backend import as_float32, keras, quiet, reason
from lrfc.ir.graph import Array, Graph, Op, Ref, Slot, Tensor

if TYPE_CHECKING:
    from lrfc.state import Batch


def from_keras(model: Any) -> Graph:
    """The graph of a Functional or Sequential model.

    Nested models are inlined, their ops are named by path (``backbone__conv``); further calls of a layer are ``conv@1``, ``conv@2``, and all calls
    share one key and the same arrays. Everything float is taken as float32. ModelError for a model without a layer graph (subclassed), without an
    input shape, or with quantized layers.
    """
    function = keras_inline.functional(model)
    if function is None:
        if isinstance(model, keras().Sequential):
            raise ModelError(
                f"Sequential model '{model.name}' has no input shape: add keras.Input(shape=...) as its first layer, or call it once before saving"
            )
        raise ModelError(
            f"model '{model.name}' ({type(model).__name__}) is subclassed and has no layer graph: rebuild it with the functional API, keras.Model(inputs, outputs)"
        )
    inliner = keras_inline.Inliner()
    sources = [inliner.record(tensor._keras_history.operation, "", (), {}, []) for tensor in function.inputs]
    outputs = inliner.inline(function, sources, "", None)

    graph = Graph(model.name)
    for op, operands in inliner.ops():
        graph.add(op, operands)
    graph.outputs = tuple(inliner.ref(source) for source in outputs)
    graph.structure = (keras_inline.structure(function.input, len(sources)), keras_inline.structure(function.output, len(outputs)))
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
            _pack(graph.structure[0], [tensors[Ref(name)] for name in graph.inputs]),
            _pack(graph.structure[1], [tensors[ref] for ref in graph.outputs]),
            name=graph.name,
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
    function = keras_inline.functional(model)
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
    return model(keras().tree.pack_sequence_as(keras_inline.functional(model).input, arrays), training=training)


def layer(op: Op) -> Any:
    """The Keras layer of a weightless op, to be called on arrays."""
    with quiet(), as_float32(), _trusted():
        return _build(op, _layer_name(op.name))


def absorb(graph: Graph, model: Any) -> Graph:
    """The graph with the weights of the model that ``to_keras`` made from it."""
    trained = {}
    for op in graph.layers():
        if op.weights:
            variables = keras_inline.variables(model.get_layer(_layer_name(op.shared or op.name)))
            trained[op.name] = dict(zip(op.weights, (np.asarray(v) for v in variables.values()), strict=True))
    return graph.with_weights(trained)


def _run_fixed(call: Callable[..., Any], arrays: list[Array], size: int) -> list[Array]:
    """One call of a model whose batch size is fixed: the samples are padded by repeating the last, and the surplus is cut off."""
    count = len(arrays[0])
    padded = [np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)]) for x in arrays]
    return [np.asarray(y)[:count] for y in call(*padded)]


# -- graph to Keras model ------------------------------------------------------------------------------------------------------------


def _build(op: Op, name: str) -> Any:
    """The op's layer or keras.ops operation, not yet built."""
    k = keras()
    cls: Any = op.origin or getattr(k.layers, op.kind, None)
    if cls is None:
        raise ModelError(f"op '{op.name}' is of kind '{op.kind}', which is not in keras.layers, and has no class of its own")
    parameters = inspect.signature(cls.__init__).parameters
    named = "name" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    config = copy.deepcopy(dict(op.attrs)) | ({"name": name} if named else {})
    try:
        layer = cls.from_config(config)
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
    variables = keras_inline.variables(layer)
    if variables.keys() != op.weights.keys():
        if [tuple(v.shape) for v in variables.values()] != [w.shape for w in op.weights.values()]:
            raise ModelError(
                f"layer '{op.name}' ({op.kind}) has the weights {', '.join(variables)} when rebuilt, the graph holds {', '.join(op.weights)}"
            )
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
