"""Layers are created without random weights, in this thread alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.ir.backend import keras
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.ir.keras.creation import without_random_values
from tests import helpers


@pytest.fixture
def no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras draws no random weights from here on."""

    def draw(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("random weights")

    for name in ("GlorotUniform", "Orthogonal", "RandomUniform"):
        monkeypatch.setattr(getattr(keras().initializers, name), "__call__", draw)


def recurrent() -> Any:
    layers = keras().layers
    return keras().Sequential(
        [
            keras().Input((6, 4)),
            layers.LSTM(5, return_sequences=True),
            layers.Conv1D(3, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def test_models_are_rebuilt_and_loaded_without_random_weights(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = recurrent()
    path = tmp_path / "model.keras"
    model.save(path)
    graph = helpers.graph_of(model)
    batch = helpers.random_inputs(graph)
    expected = np.asarray(model(batch[0]))
    request.getfixturevalue("no_draws")
    for again in (keras_io.to_keras(graph), keras_load.load(path)):
        np.testing.assert_array_equal(np.asarray(again(batch[0])), expected)


def test_values_that_are_not_random_stay() -> None:
    layers = keras().layers
    with without_random_values(keras()):
        dense = layers.Dense(2, bias_initializer="ones")
        norm = layers.BatchNormalization()
        dense.build((None, 3))
        norm.build((None, 3))
    assert not np.any(dense.kernel)
    assert np.all(np.asarray(dense.bias) == 1)
    assert np.all(np.asarray(norm.gamma) == 1)


def test_layers_of_other_threads_have_random_weights() -> None:
    layers = keras().layers
    dense = layers.Dense(2)
    with without_random_values(keras()):
        thread = threading.Thread(target=dense.build, args=((None, 3),))
        thread.start()
        thread.join()
    assert np.any(dense.kernel)
    dense = layers.Dense(2)
    dense.build((None, 3))
    assert np.any(dense.kernel)
