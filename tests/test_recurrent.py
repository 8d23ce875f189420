"""Recurrent layers: their input kernels factorized, or left alone with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrfc
from lrfc.costs.totals import totals
from lrfc.errors import ModelError
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.protocols import Artifact
from lrfc.search.candidates import selected
from lrfc.search.facts import DesignSpace
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.builds import built
from tests.compression import SIZE, state_of

SVD = METHODS["svd"]
STEPS, INPUTS = 5, 7


def network(call: Any, shape: tuple[int, ...] = (STEPS, INPUTS)) -> Graph:
    """The graph of a layer, or of what else ``call`` makes of the input."""
    import keras

    inputs = keras.Input(shape, name="x")
    return helpers.graph_of(helpers.random_weights(keras.Model(inputs, call(inputs), name="net")))


def factorized(graph: Graph, name: str, ranks: tuple[int, ...] | None = None) -> Graph:
    """The graph with a layer by factors; by default of full rank."""
    op, source = graph.op(name), graph.input_tensors(name)[0]
    factors = SVD.decompose(op, source)
    changed = graph.copy()
    changed.splice(name, factors.stages(ranks or SVD.full(op, source)))
    return changed


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "SimpleRNN"]),
    units=st.integers(1, 6),
    directions=st.sampled_from([None, "concat", "sum"]),
    sequences=st.booleans(),
    backwards=st.booleans(),
    bias=st.booleans(),
)
def test_factors_of_full_rank_give_the_same_sequence(
    kind: str, units: int, directions: str | None, sequences: bool, backwards: bool, bias: bool
) -> None:
    from keras import layers

    layer = getattr(layers, kind)(
        units,
        return_sequences=sequences,
        go_backwards=backwards and directions is None,
        use_bias=bias,
        **({"reset_after": bias} if kind == "GRU" else {}),
        name="memory",
    )
    if directions is not None:
        layer = layers.Bidirectional(layer, merge_mode=directions, name="memory")
    graph = network(layer)
    inputs = helpers.random_inputs(graph, 3)
    (one,), (two,) = (keras_io.predict(g, inputs) for g in (graph, factorized(graph, "memory")))
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("both", [False, True])
def test_costs_are_those_of_the_rewritten_network(kind: str, both: bool) -> None:
    from keras import layers

    layer = getattr(layers, kind)(6, name="memory")
    graph = network(layers.Bidirectional(layer, name="memory") if both else layer)
    for rank in (1, 4):
        cost = SVD.cost(graph.op("memory"), graph.input_tensors("memory")[0], (rank,))
        changed = factorized(graph, "memory", (rank,))
        assert (cost.params, cost.macs) == (changed.params, totals(changed)["macs"])


def test_states_that_are_read_are_still_given() -> None:
    from keras import layers

    def call(x: Any) -> Any:
        x, h, c = layers.LSTM(4, return_sequences=True, return_state=True, name="encoder")(x)
        return layers.LSTM(3, name="decoder")(layers.Concatenate(axis=1)([x, x * 2])), h, c

    graph = network(call)
    inputs = helpers.random_inputs(graph, 2)
    before, after = (keras_io.predict(g, inputs) for g in (graph, factorized(graph, "encoder")))
    assert len(after) == 3
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_layer_that_is_called_twice_is_factorized_once() -> None:
    from keras import layers

    memory = layers.GRU(4, name="memory")
    graph = network(lambda x: layers.Add(name="sum")([memory(x), memory(x * 2)]))
    state = state_of(graph)
    space = ExploreLayers(methods=("svd",), size=SIZE, sensitivity_images=16)(state)
    (layer,) = space.fact(DesignSpace).spaces
    assert len(layer.calls) == 2
    assert all(candidate.divergence > 0 for candidate in layer.candidates[1:])


def test_what_cannot_be_factorized_has_a_reason() -> None:
    from keras import layers

    def call(x: Any) -> Any:
        cells = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(3)]), name="cells")(x)
        cell = layers.StackedRNNCells([layers.LSTMCell(INPUTS), layers.LSTMCell(3)])
        both = layers.Bidirectional(layers.RNN(cell), name="both")(x)
        x, h, c = layers.LSTM(4, return_sequences=True, return_state=True, name="first")(x)
        started = layers.LSTM(4, name="started")(x, initial_state=[h, c])
        maps = layers.Reshape((STEPS, 2, 2, 1), name="maps")(x)
        maps = layers.ConvLSTM2D(2, 2, name="maps_over_time")(maps)
        return cells, both, started, layers.Flatten(name="flat")(maps)

    reasons = {op.name: reason for op, reason in selected(network(call), (), ())}
    other = "computes its steps by a cell that is no LSTM, GRU or SimpleRNN of Keras"
    assert reasons == {
        "cells": f"RNN {other}",
        "both": f"Bidirectional {other}",
        "first": None,
        "started": "it reads 3 tensors",
        "maps_over_time": f"ConvLSTM2D {other}",
    }


@pytest.mark.parametrize("target", [TFLite(), ONNX()], ids=["tflite", "onnx"])
def test_files_hold_the_factors(target: Any, tmp_path: Path) -> None:
    from keras import layers

    def call(x: Any) -> Any:
        x = layers.Bidirectional(layers.GRU(4, return_sequences=True), name="both")(x)
        return layers.LSTM(3, name="memory")(x)

    graph = network(call)
    for name in ("both", "memory"):
        graph = factorized(graph, name, (2,))
    inputs = helpers.random_inputs(graph, 3)
    (wanted,) = keras_io.predict(graph, inputs)
    (outputs,) = target.load(target.emit(graph, tmp_path / f"net{target.suffix}"))(inputs)
    np.testing.assert_allclose(outputs, wanted, atol=1e-5)


def test_a_network_without_a_layer_to_factorize_is_refused_with_the_reasons() -> None:
    import keras
    from keras import layers

    maps = keras.Input((STEPS, 4, 4, 2), name="maps")
    x = layers.Flatten()(layers.ConvLSTM2D(2, 2, name="memory")(maps))
    model = keras.Model(maps, layers.Softmax(name="classes")(x), name="net")
    with pytest.raises(ModelError, match="can be made smaller: memory: ConvLSTM2D computes"):
        lrfc.build(model, max_macs="50%")


def test_a_build_makes_recurrent_layers_smaller(tmp_path: Path) -> None:
    import keras
    from keras import layers

    rng = np.random.default_rng(0)
    # Spectra of few directions: so are those of speech.
    spectra = (rng.standard_normal((96, 6, 8)) @ rng.standard_normal((8, 24)) / 3).astype("float32")
    inputs = keras.Input((6, 24), name="spectra")
    x = layers.LSTM(12, name="memory")(inputs)
    model = keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="net")
    result = built(helpers.random_weights(model), tmp_path, data=spectra, max_macs="75%")
    before, after = result.manifest.before, result.manifest.after
    assert after.macs <= 0.75 * before.macs
    assert {layer.name: layer.method for layer in result.manifest.layers}["memory"] == "svd"
    compressed = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert [layer.name for layer in compressed.layers[1:3]] == ["memory__in", "memory"]
    (outputs,) = TFLite().load(Artifact(result.artifact, "tflite", "fp32"))((spectra[:8],))
    np.testing.assert_allclose(outputs, np.asarray(compressed(spectra[:8])), atol=1e-4)
