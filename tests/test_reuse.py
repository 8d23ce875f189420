"""Graphs of one structure run on one compiled model, each with its own weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import reuse, run
from tests import helpers


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that a model is built of, from an empty store."""
    graphs: list[Graph] = []
    original = run.to_keras

    def to_keras(graph: Graph) -> Any:
        graphs.append(graph)
        return original(graph)

    monkeypatch.setattr(run, "to_keras", to_keras)
    monkeypatch.setattr(reuse, "_known", [])
    return graphs


def scaled(graph: Graph, factor: float) -> Graph:
    """The graph with all weights multiplied."""
    weights = {
        op.name: {name: factor * array for name, array in op.weights.items()}
        for op in graph.layers()
        if op.weights
    }
    return graph.with_weights(weights)


def expected(graph: Graph, batch: tuple[Any, ...]) -> np.ndarray:
    return keras_io.compiled(keras_io.to_keras(graph))(batch)[0]


@pytest.mark.parametrize("build", [helpers.residual, helpers.shared_conv, helpers.dense_net])
def test_other_weights_need_no_other_model(build: Any, built: list[Graph]) -> None:
    graph = helpers.graph_of(build())
    batch = helpers.random_inputs(graph, 8)
    other = scaled(graph, 1.5)
    for network in (graph, other, graph, other):
        assert np.array_equal(keras_io.predict(network, batch)[0], expected(network, batch))
    assert [len(network) for network in built] == [len(graph)]
    assert not np.allclose(expected(graph, batch), expected(other, batch))


def test_another_structure_has_its_own_model(built: list[Graph]) -> None:
    graph = helpers.graph_of(helpers.residual())
    batch = helpers.random_inputs(graph, 8)
    inner = graph.with_outputs(graph.operands("relu1"))
    whole = keras_io.predict(graph, batch)[0]
    assert keras_io.predict(inner, batch)[0].shape != whole.shape
    assert len(built) == 2


def test_a_layer_that_derives_values_from_its_weights_is_built_again(built: list[Graph]) -> None:
    import keras

    norm = keras.layers.Normalization(name="norm")
    norm.adapt(np.array([[1.0], [3.0]], np.float32))
    image = keras.Input((1,), name="x")
    graph = keras_io.from_keras(keras.Model(image, norm(image), name="net"))
    batch = (np.ones((2, 1), np.float32),)
    other = graph.with_weights(
        {"norm": {n: w + 1 if n == "mean" else w for n, w in graph.op("norm").weights.items()}}
    )
    first, second = (keras_io.predict(network, batch)[0] for network in (graph, other))
    assert np.allclose(first - second, 1)
    assert len(built) == 2


def test_after_an_error_the_weights_are_assigned_again(built: list[Graph]) -> None:
    graph = helpers.graph_of(helpers.residual())
    batch = helpers.random_inputs(graph, 8)
    other = scaled(graph, 1.5)
    keras_io.predict(graph, batch)
    with pytest.raises(ValueError, match="stop"):
        reuse.run_with(other, run._built, stopped)
    assert np.array_equal(keras_io.predict(graph, batch)[0], expected(graph, batch))
    assert len(built) == 2


def stopped(function: Any) -> Any:
    raise ValueError("stop")
