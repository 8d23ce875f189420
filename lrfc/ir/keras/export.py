"""From a graph to a Keras model, and single ops as Keras layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lrfc.ir.backend import as_float32, keras, quiet
from lrfc.ir.graph import Graph
from lrfc.ir.keras.layers import (
    build_layer,
    call_layer,
    layer_name,
    layer_of,
    set_weights,
    trusted,
    variables_of,
)
from lrfc.ir.op import Ref


def to_keras(graph: Graph) -> Any:
    """A plain functional Keras model that computes the graph, with its layer names and weights.

    Calls of a shared layer are calls of one layer.
    """
    k = keras()
    layers: dict[str, Any] = {}
    tensors: dict[Ref, Any] = {}
    with quiet(), as_float32(), trusted():
        for op in graph:
            key = op.shared or op.name
            if op.kind == "InputLayer":
                results = [build_layer(op, layer_name(key)).output]
            else:
                layer = (
                    layers[key]
                    if key in layers
                    else layers.setdefault(key, build_layer(op, layer_name(key)))
                )
                results = call_layer(layer, op, [tensors[ref] for ref in graph.operands(op.name)])
            tensors.update({Ref(op.name, i): result for i, result in enumerate(results)})
        model = k.Model(
            _pack(graph.structure[0], [tensors[Ref(name)] for name in graph.inputs]),
            _pack(graph.structure[1], [tensors[ref] for ref in graph.outputs]),
            name=graph.name,
        )
        for op in graph.layers():
            if op.weights:
                set_weights(layers[op.shared or op.name], op)
    return model


def save(graph: Graph, path: Path | str) -> None:
    """Write the graph as a plain ``.keras`` file, which Keras loads without lrfc."""
    model = to_keras(graph)
    with quiet():
        model.save(path)


def absorb(graph: Graph, model: Any) -> Graph:
    """The graph with the weights of the model that ``to_keras`` made from it."""
    trained = {}
    for op in graph.layers():
        if op.weights:
            variables = variables_of(layer_of(model, op))
            trained[op.name] = dict(
                zip(op.weights, (np.asarray(v) for v in variables.values()), strict=True)
            )
    return graph.with_weights(trained)


def _pack(structure: Any, tensors: list[Any]) -> Any:
    if structure is None:
        return tensors[0] if len(tensors) == 1 else tensors
    return keras().tree.map_structure(lambda slot: tensors[slot.port], structure)
