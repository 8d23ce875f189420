"""Execution of graphs and Keras models on data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfc.errors import ModelError, UsageError
from lrfc.ir.backend import keras, quiet
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.ir.keras import inline as keras_inline
from lrfc.ir.keras import reuse
from lrfc.ir.keras.export import to_keras
from lrfc.ir.op import Array, Ref
from lrfc.system import memory

if TYPE_CHECKING:
    from lrfc.ir.batch import Batch

#: Bytes of activations that one call may take: of the inputs and outputs of its largest op.
ACTIVATIONS = 512 << 20


def compiled(graph_or_model: Any) -> Callable[[Batch], Batch]:
    """A function from a batch of any size to the outputs of a graph or model, in inference mode.

    The outputs are in the order of ``graph.outputs``. The function is traced once. A batch whose
    activations take more than ACTIVATIONS is computed in parts.
    """
    import tensorflow as tf

    k = keras()
    model = to_keras(graph_or_model) if isinstance(graph_or_model, Graph) else graph_or_model
    function = keras_inline.functional(model)
    if function is None:
        raise ModelError(f"model '{model.name}' has no layer graph, so it cannot be run")
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in function.inputs]

    def flat_call(*flat: Any) -> Any:
        return k.tree.flatten(
            model(k.tree.pack_sequence_as(function.input, list(flat)), training=False)
        )

    with quiet():
        call = tf.function(flat_call, autograph=False).get_concrete_function(*specs)
    fixed = specs[0].shape[0]
    size = fixed or max(1, memory.share(ACTIVATIONS) // max(1, _sample_bytes(call)))

    def run(batch: Batch) -> Batch:
        _check_shapes(model, function.inputs, specs, batch)
        arrays = [
            tf.constant(np.asarray(x, dtype=spec.dtype.as_numpy_dtype))
            for x, spec in zip(batch, specs, strict=True)
        ]
        with quiet():
            if fixed is None and len(arrays[0]) <= size:
                return tuple(np.asarray(y) for y in call(*arrays))
            parts = [
                _run_fixed(call, [x[start : start + size] for x in arrays], fixed)
                for start in range(0, len(arrays[0]), size)
            ]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    return run


def outputs_at(graph: Graph, refs: Iterable[Ref]) -> Callable[[Batch], Batch]:
    """A function from a batch to the tensors at ``refs``, in their order; see ``compiled``.

    It is kept for as long as the graph exists, unless its weights are large.
    """
    wanted = tuple(refs)

    def build() -> Callable[[Batch], Batch]:
        return compiled(graph.with_outputs(wanted))

    if sum(array.nbytes for op in graph for array in op.weights.values()) > reuse.LARGEST:
        return build()
    return _AT.get(graph, (), wanted, build)


#: The functions of ``outputs_at``: those of the original serve every plan of a build.
_AT: GraphCache[Callable[[Batch], Batch]] = GraphCache()


def predict(graph_or_model: Any, batch: Batch, batch_size: int = 128) -> Batch:
    """The outputs of a graph, model or ``compiled`` function for all samples of ``batch``.

    A graph runs on the model of an earlier one where only the weights are others.
    """

    def all_samples(run: Callable[[Batch], Batch]) -> Batch:
        parts = [
            run(tuple(x[start : start + batch_size] for x in batch))
            for start in range(0, len(batch[0]), batch_size)
        ]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    if isinstance(graph_or_model, Graph):
        return reuse.run_with(graph_or_model, _built, all_samples)
    run = graph_or_model if inspect.isfunction(graph_or_model) else compiled(graph_or_model)
    return all_samples(run)


def _built(graph: Graph) -> tuple[Any, Callable[[Batch], Batch]]:
    """The model of a graph, and its function."""
    model = to_keras(graph)
    return model, compiled(model)


def call(model: Any, batch: Sequence[Any], *, training: bool = False) -> Any:
    """The model's outputs, in its own nesting, for one array or tensor per input."""
    arrays = [
        keras().ops.convert_to_tensor(x, tensor.dtype)
        for x, tensor in zip(batch, model.inputs, strict=True)
    ]
    return model(
        keras().tree.pack_sequence_as(keras_inline.functional(model).input, arrays),
        training=training,
    )


def _check_shapes(model: Any, inputs: Sequence[Any], specs: Sequence[Any], batch: Batch) -> None:
    """Raise UsageError when a batch does not fit the inputs of a model."""
    if len(batch) != len(specs):
        raise UsageError(
            f"model '{model.name}' has {len(specs)} inputs, the data have {len(batch)} arrays"
        )
    for tensor, spec, x in zip(inputs, specs, batch, strict=True):
        if not spec.shape[1:].is_compatible_with(x.shape[1:]):
            raise UsageError(
                f"input '{tensor.name}' takes samples of shape {tuple(spec.shape[1:])}, the data"
                f" have {tuple(x.shape[1:])}"
            )


def _run_fixed(call: Callable[..., Any], arrays: list[Array], size: int | None) -> list[Array]:
    """Call a model of fixed batch size: pad by repeating the last sample, and cut the outputs.

    ``size``: None for a model without one.
    """
    if size is None:
        return [np.asarray(y) for y in call(*arrays)]
    count = len(arrays[0])
    padded = [np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)]) for x in arrays]
    return [np.asarray(y)[:count] for y in call(*padded)]


def _sample_bytes(function: Any) -> int:
    """Bytes of the largest inputs and outputs of an op of a TensorFlow function, for one sample."""
    largest = 0
    for op in function.graph.get_operations():
        tensors = {id(tensor): tensor for tensor in (*op.inputs, *op.outputs)}.values()
        size = sum(
            int(tensor.dtype.size) * math.prod(n or 1 for n in tensor.shape[1:])
            for tensor in tensors
            if tensor.shape.rank and tensor.shape[0] is None
        )
        largest = max(largest, size)
    return largest
