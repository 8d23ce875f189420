"""Export of a graph to a Keras model, and of the model's weights back to the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lrfc.ir.backend import as_float32, keras, quiet
from lrfc.ir.graph import Graph
from lrfc.ir.keras.creation import without_random_values
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
    with quiet(), as_float32(), trusted(), without_random_values(k):
        for op in graph:
            key = op.shared or op.name
            if op.kind == "InputLayer":
                results = [build_layer(op, layer_name(key)).output]
            else:
                if key not in layers:
                    layers[key] = build_layer(op, layer_name(key))
                operands = [tensors[ref] for ref in graph.operands(op.name)]
                results = call_layer(layers[key], op, operands)
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
    """The graph with the weights of a model that ``to_keras`` built from it."""
    weights = {}
    for op in graph.layers():
        if op.weights:
            variables = variables_of(layer_of(model, op)).values()
            weights[op.name] = dict(zip(op.weights, map(np.asarray, variables), strict=True))
    return graph.with_weights(weights)


def _pack(structure: Any, tensors: list[Any]) -> Any:
    """The tensors in the model's own nesting: see ``Graph.structure``."""
    if structure is None:
        return tensors[0] if len(tensors) == 1 else tensors
    return keras().tree.map_structure(lambda slot: tensors[slot.port], structure)
