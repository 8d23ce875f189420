"""Import and export of real Keras models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from tests import helpers
from tests.round_trips import EXACT, run

#: Those of keras.applications with at most this many parameters (with 1,000 classes) are tried;
#: larger ones only repeat the same blocks.
LIMIT = 30e6
SMALL = ("MobileNet", "MobileNetV3Small")
OTHERS = (
    "ConvNeXtTiny",
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    "EfficientNetB0",
    "EfficientNetB1",
    "EfficientNetB2",
    "EfficientNetB3",
    "EfficientNetB4",
    "EfficientNetV2B0",
    "EfficientNetV2B1",
    "EfficientNetV2B2",
    "EfficientNetV2B3",
    "EfficientNetV2S",
    "InceptionV3",
    "MobileNetV2",
    "MobileNetV3Large",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "Xception",
)
#: The smallest image that these take.
SIZE = {"InceptionV3": 75, "Xception": 71, "NASNetMobile": 224}


def application(name: str) -> Any:
    import keras

    size = SIZE.get(name, 32)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for variable in model.weights:
        leaf = variable.path.rpartition("/")[2]
        if leaf == "gamma":
            variable.assign(rng.uniform(0.8, 1.2, variable.shape).astype(np.float32))
        elif leaf in ("beta", "bias"):
            variable.assign(0.1 * rng.standard_normal(variable.shape).astype(np.float32))
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    # One call then sets the statistics to those of the images. Without that, activations vanish.
    for layer in norms:
        layer.momentum = 0.0
    model(images(model, 8), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return model


def images(model: Any, count: int) -> np.ndarray:
    """Images of different colours and contrasts, 0 to 255."""
    rng = np.random.default_rng(0)
    shape = (count, *model.inputs[0].shape[1:])
    each = (count, *[1] * (len(shape) - 2), shape[-1])
    return np.clip(
        rng.uniform(0, 255, each)
        + rng.uniform(5, 80, (count, *[1] * (len(shape) - 1))) * rng.standard_normal(shape),
        0,
        255,
    ).astype(np.float32)


def survives(model: Any, *, centred: bool = False) -> float:
    """The largest relative difference of the outputs after the round trip.

    The outputs must depend on the images and on the weights, or the comparison would show nothing.
    ``centred``: the model expects values around 0 instead of pixel values.
    """
    graph = helpers.graph_of(model)
    assert graph.params == model.count_params()
    batch = (images(model, 8) / 120 - 1 if centred else images(model, 8),)
    rebuilt = keras_io.to_keras(graph)
    assert keras_io.from_keras(rebuilt).params == graph.params
    expected = run(model, batch)
    nudge = {op.name: {name: nudged(w) for name, w in op.weights.items()} for op in graph.layers()}
    assert (
        helpers.difference(expected, run(keras_io.to_keras(graph.with_weights(nudge)), batch))
        > 1e-3
    )
    assert all(np.ptp(y, axis=0).max() > 1e-2 * np.abs(y).max() for y in expected)
    return helpers.difference(expected, run(rebuilt, batch))


def nudged(weights: np.ndarray) -> np.ndarray:
    """Other weights of the same scale."""
    if not np.issubdtype(weights.dtype, np.floating):
        return weights
    return (weights * np.random.default_rng(1).uniform(0.9, 1.1, weights.shape)).astype(
        weights.dtype
    )


@pytest.mark.parametrize("name", SMALL)
def test_a_known_model_survives(name) -> None:
    assert survives(application(name)) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL + OTHERS)
def test_known_models_survive(name, record_property) -> None:
    found = survives(application(name))
    record_property("difference", found)
    assert found <= EXACT


@pytest.mark.slow
def test_no_known_model_is_forgotten() -> None:
    import keras

    names = [
        name
        for name, value in vars(keras.applications).items()
        if callable(value) and name[0].isupper()
    ]
    for name in names:
        if name not in SMALL + OTHERS:
            model = getattr(keras.applications, name)(weights=None)
            assert model.count_params() > LIMIT, name
            del model
            keras.utils.clear_session()


@pytest.mark.slow
def test_all_real_models_survive(lrfc_data) -> None:
    files = sorted((lrfc_data / "models").iterdir())
    assert files
    for file in files:
        assert (
            survives(keras_load.load(file), centred=file.name.startswith("mini_mobilenet")) <= EXACT
        ), file.name
