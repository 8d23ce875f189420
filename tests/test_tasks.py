"""Builds of models that are no classifiers: regression, two inputs and outputs, segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.data.dataset import Split
from lrfc.data.load import load_data
from lrfc.engine.package import Result
from lrfc.ir.batch import Batch
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.metrics.metric import metric
from lrfc.protocols import Artifact
from lrfc.targets.tflite.target import TFLite
from tests import fake_runner, helpers
from tests.fake_runner import FakeRunner

SAMPLES = 400


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and a host that times nothing."""
    monkeypatch.chdir(tmp_path)
    fake_runner.install(monkeypatch, FakeRunner())


def regression() -> tuple[Any, dict[str, np.ndarray]]:
    """Two values from 24 features close to a subspace of 6 dimensions."""
    model = helpers.dense_net(features=24, widths=(48, 48), classes=2)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((SAMPLES, 6)) @ rng.standard_normal(
        (6, 24)
    ) + 0.05 * rng.standard_normal((SAMPLES, 24))
    return model, {"x": x.astype(np.float32)}


def two_and_two() -> tuple[Any, dict[str, np.ndarray]]:
    """An image and a vector in, a class and a value out."""
    import keras
    from keras import layers

    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((12,), name="vector")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv0")(image)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Concatenate(name="join")(
        [
            layers.GlobalAveragePooling2D(name="pool")(x),
            layers.Dense(24, activation="relu", name="embed")(vector),
        ]
    )
    outputs = [
        layers.Dense(3, activation="softmax", name="label")(x),
        layers.Dense(1, name="value")(x),
    ]
    model = helpers.random_weights(keras.Model([image, vector], outputs, name="two_and_two"))
    return model, {
        "image": smooth(8),
        "vector": np.random.default_rng(2).standard_normal((SAMPLES, 12)).astype(np.float32),
    }


def segmentation() -> tuple[Any, dict[str, np.ndarray]]:
    """One of three classes for each pixel: down, up again, and a skip connection."""
    import keras
    from keras import layers

    inputs = keras.Input((12, 12, 3), name="image")
    skip = layers.ReLU(name="relu0")(
        layers.BatchNormalization(name="bn0")(
            layers.Conv2D(12, 3, padding="same", name="conv0")(inputs)
        )
    )
    x = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name="down")(skip)
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="middle")(x)
    x = layers.Concatenate(name="join")([layers.UpSampling2D(name="up")(x), skip])
    outputs = layers.Conv2D(3, 1, activation="softmax", name="mask")(x)
    return helpers.random_weights(keras.Model(inputs, outputs, name="segmentation")), {
        "x": smooth(12)
    }


def smooth(size: int) -> np.ndarray:
    """Images (SAMPLES, size, size, 3) of a few low frequencies."""
    rng = np.random.default_rng(3)
    waves = np.stack([np.cos(np.pi * f * (np.arange(size) + 0.5) / size) for f in range(3)])
    images: np.ndarray = np.einsum(
        "nabc,ai,bj->nijc", rng.standard_normal((SAMPLES, 3, 3, 3)), waves, waves
    ).astype(np.float32)
    return images


def labelled(model: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The samples with the model's outputs as labels, and class numbers for probabilities."""
    graph = helpers.graph_of(model)
    answers = keras_io.predict(graph, tuple(arrays[name] for name in arrays))
    names = ["y"] if len(answers) == 1 else [ref.op for ref in graph.outputs]
    probable = [float(abs(a.sum(-1) - 1).max()) < 1e-3 for a in answers]
    return arrays | {
        name: a.argmax(-1) if p else a for name, a, p in zip(names, answers, probable, strict=True)
    }


def shipped(result: Result, batch: Batch) -> tuple[Batch, Batch]:
    """The outputs of the emitted file and of the Keras model beside it."""
    return TFLite().load(Artifact(result.artifact, "tflite", "fp32"))(batch), keras_io.predict(
        keras_load.load(result.out / "model.keras"), batch
    )


@pytest.mark.parametrize(
    ("task", "name", "bound", "with_labels"),
    [
        (regression, "mean squared error", 0.1, True),
        (regression, "mean squared error", 0.1, False),
        (two_and_two, "mean of accuracy and R² over 2 outputs", 0.15, True),
        (segmentation, "pixel accuracy", 0.15, True),
    ],
)
def test_a_build(task: Any, name: str, bound: float, with_labels: bool) -> None:
    model, inputs = task()
    given = labelled(model, inputs)
    result = lrfc.build(
        model,
        target="tflite",
        data=given if with_labels else inputs,
        max_params="70%",
        methods=("channel_svd", "tucker2", "svd"),
        epochs=1,
        out="out",
    )
    assert isinstance(result, Result)
    assert result.failure is None
    assert result.manifest.after.params <= 0.7 * result.manifest.before.params
    assert any(layer.method for layer in result.manifest.layers)
    graph = helpers.graph_of(model)
    split = load_data(given, graph, seed=5).validation
    file, keras_model = shipped(result, split.inputs)
    assert helpers.difference(file, keras_model) < 1e-3
    found = metric(None, graph, split)
    assert found.name == name
    own = keras_io.predict(graph, split.inputs)
    assert found.drop(found.score(own, split), found.score(file, split)) < bound
    blind = Split(split.inputs)
    assert metric(None, graph, blind).score(file, blind) > 0.8


def test_data_free() -> None:
    model, inputs = segmentation()
    result = lrfc.build(
        model,
        target="tflite",
        max_params="80%",
        methods=("channel_svd", "tucker2"),
        epochs=1,
        out="out",
    )
    assert isinstance(result, Result)
    batch = (inputs["x"][:8],)
    file, keras_model = shipped(result, batch)
    assert helpers.difference(file, keras_model) < 1e-3
    assert result.manifest.after.accuracy is None
