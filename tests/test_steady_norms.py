"""Layer normalisation in a form that integers of 8 bits can hold."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from lrfc.ir.keras import io as keras_io
from lrfc.ir.steady_norms import with_steady_norms
from lrfc.targets.catalog import target
from lrfc.targets.tflite import target as tflite
from tests.helpers import graph_of, random_weights


def network(**options):
    """A normalisation between two layers."""
    inputs = keras.Input((6, 12), name="steps")
    x = layers.LayerNormalization(name="norm", **options)(inputs)
    return graph_of(random_weights(keras.Model(inputs, layers.Dense(5, name="head")(x))))


def positions(sizes=(0, 1e-4, 0.03, 0.3, 3, 30), samples=40):
    """Inputs whose positions differ in size; some are constant."""
    rng = np.random.default_rng(0)
    sizes = np.array(sizes, np.float32)[:, None]
    offsets = rng.normal(size=(samples, 6, 1))
    return ((rng.normal(size=(samples, 6, 12)) * sizes + offsets).astype(np.float32),)


@pytest.mark.parametrize(
    "options", [{}, {"center": False}, {"scale": False}, {"epsilon": 1e-6}, {"axis": [2]}]
)
def test_the_formula_is_exact(options):
    graph = network(**options)
    steady = with_steady_norms(graph, positions())
    assert {op.kind for op in steady} == {
        *(
            "InputLayer",
            "Dense",
            "ops.Mean",
            "ops.Subtract",
            "ops.Absolute",
            "ops.Add",
            "ops.Divide",
        ),
        *("ops.Multiply", "ops.Negative", "ops.Rsqrt"),
    }
    assert "norm" in steady
    steady.check()
    (before,), (after,) = (keras_io.predict(g, positions()) for g in (graph, steady))
    assert np.abs(before - after).max() < 1e-3 * np.abs(before).max()


@pytest.mark.parametrize("options", [{"axis": [1]}, {"axis": [1, 2]}])
def test_other_normalisations_stay(options):
    graph = network(**options)
    assert [op.kind for op in with_steady_norms(graph, positions())] == [op.kind for op in graph]


def test_positions_of_many_sizes_are_normalised_in_8_bits(tmp_path, monkeypatch):
    graph, inputs = network(), positions((2, 4, 8, 16, 32, 64))
    form = target("tflite", "int8")
    (wanted,) = keras_io.predict(graph, inputs)

    def errors():
        (found,) = form.load(form.emit(graph, tmp_path / "file.tflite", inputs))(inputs)
        return np.sqrt(np.square(found - wanted).mean((0, 2)) / np.square(wanted).mean((0, 2)))

    steady = errors()
    monkeypatch.setattr(tflite, "with_steady_norms", lambda graph, samples: graph)
    plain = errors()
    assert (steady < 0.75 * plain).all()
    assert (steady[3:] < 0.1).all()
