"""Import of a Keras model into a graph."""

from __future__ import annotations

from typing import Any

from lrfc.errors import ModelError
from lrfc.ir.backend import keras
from lrfc.ir.graph import Graph
from lrfc.ir.keras import compiled as keras_compiled
from lrfc.ir.keras import inline as keras_inline
from lrfc.system.reader import shown


def from_keras(model: Any) -> Graph:
    """The graph of a Functional or Sequential model.

    Nested models are inlined, and their ops named by path (``backbone__conv``). Further calls of a
    layer are ``conv@1``, ``conv@2``; all calls share one key and the same arrays. All float dtypes
    become float32. ModelError when ``model`` is no Keras model, has no layer graph (subclassed), no
    input shape, an input of text, or quantized layers.
    """
    function = _functional(model)
    inliner = keras_inline.Inliner()
    sources = [
        inliner.record(tensor._keras_history.operation, "", (), {}, [])
        for tensor in function.inputs
    ]
    outputs = inliner.inline(function, sources, "", None)

    graph = Graph(model.name)
    for op, operands in inliner.ops(outputs):
        graph.add(op, operands)
    graph.outputs = tuple(inliner.ref(source) for source in outputs)
    graph.structure = (
        keras_inline.structure(function.input, len(sources)),
        keras_inline.structure(function.output, len(outputs)),
    )
    graph.compiled = keras_compiled.config_of(model)
    return graph


def _functional(model: Any) -> Any:
    """The Functional of a model; ModelError when it has none, or an input of text."""
    if not isinstance(model, keras().Model):
        raise ModelError(
            f"{shown(repr(model), 60)} ({type(model).__module__}.{type(model).__name__}) is no"
            " model of Keras 3: give one, or the path of a .keras or .h5 file"
        )
    function = keras_inline.functional(model)
    if function is None:
        if isinstance(model, keras().Sequential):
            raise ModelError(
                f"Sequential model '{model.name}' has no input shape: add keras.Input(shape=...) as"
                " its first layer, or call it once before saving"
            )
        raise ModelError(
            f"model '{model.name}' ({type(model).__name__}) is subclassed and has no layer graph:"
            " rebuild it with the functional API, keras.Model(inputs, outputs)"
        )
    for tensor in function.inputs:
        if str(tensor.dtype) == "string":
            raise ModelError(
                f"input '{tensor.name}' is of type string: give the model without the layers that"
                " read text"
            )
    return function
