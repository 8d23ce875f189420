"""Keras models that are read and rebuilt, for tests: what stays the same, and how to compare."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from tests import helpers

#: A round trip may change the order of sums, nothing else.
EXACT = 1e-6


def run(model: Any, batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The outputs of the model, computed eagerly."""
    import keras

    return tuple(np.asarray(y) for y in keras.tree.flatten(keras_io.call(model, batch)))


def round_trip(model: Any) -> Graph:
    """The graph of the model, once the rebuilt model has the same outputs and the same ops."""
    graph = helpers.graph_of(model)
    rebuilt = keras_io.to_keras(graph)
    batch = helpers.random_inputs(graph)
    assert helpers.difference(run(model, batch), run(rebuilt, batch)) <= EXACT
    again = helpers.graph_of(rebuilt)
    assert described(again) == described(graph)
    assert again.params == graph.params == model.count_params()
    return graph


def described(graph: Graph) -> list[str]:
    """The ops without their names, sorted: Keras may reorder calls that are independent."""
    lines = [line.partition(" = ")[2] for line in str(graph).splitlines()[1:-1]]
    return sorted(
        re.sub(r"\(.*?\)| shared=\S+", "", line, count=2).partition(" ->")[0]
        + line.rpartition("->")[2]
        for line in lines
    )


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph]
