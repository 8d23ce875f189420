"""Notes on samples of another scale, on permuted labels, and errors on unknown tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.data.checks import doubts
from lrfc.data.dataset import Split
from lrfc.data.load import load_data
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from tests import helpers

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (120, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> Graph:
    """Return a net with the BatchNorm statistics of images of 0–1."""
    graph = helpers.graph_of(helpers.conv_net(size=8, filters=(6,)))
    probe = graph.copy()
    probe.outputs, probe.structure = graph.operands("bn0"), (None, None)
    (x,) = keras_io.predict(probe, (IMAGES,))
    bn = graph.op("bn0")
    return graph.with_weights(
        {
            "bn0": {
                **bn.weights,
                "moving_mean": x.mean((0, 1, 2)),
                "moving_variance": x.var((0, 1, 2)),
            }
        }
    )


def test_the_scale_that_a_batchnorm_knows(trained: Graph) -> None:
    assert doubts(trained, Split((IMAGES,))) == ()
    assert doubts(trained, Split((np.flip(IMAGES[:20], 2) * 0.8 + 0.1,))) == ()
    for other in (255 * IMAGES, (255 * IMAGES).astype(np.uint8), IMAGES / 255):
        (note,) = doubts(trained, Split((other,)))
        assert "scaled differently" in note
        assert "its first BatchNorm 'bn0' expects" in note
        assert "check the preprocessing" in note


def test_notes_reach_the_data(trained: Graph) -> None:
    assert any(
        "scaled differently" in note for note in load_data(255 * IMAGES, trained, seed=0).notes
    )
    assert load_data(IMAGES, trained, seed=0).notes == ()


def test_a_batchnorm_that_was_never_trained_knows_nothing() -> None:
    import keras

    inputs = keras.Input((8, 8, 3))
    graph = helpers.graph_of(
        keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs)))
    )
    assert doubts(graph, Split((255 * IMAGES,))) == ()


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), (1 / 127.5, -1.0)])
def test_the_range_of_a_rescaling_layer(scale: float, offset: float) -> None:
    graph = first_layer("Rescaling", scale=scale, offset=offset)
    assert doubts(graph, Split(((255 * IMAGES).astype(np.uint8),))) == ()
    (note,) = doubts(graph, Split((IMAGES,)))
    assert "expects about 0 to 255, they lie in" in note


def test_the_statistics_of_a_normalization_layer() -> None:
    graph = first_layer(
        "Normalization", mean=(120.0, 110.0, 100.0), variance=(3600.0, 3600.0, 4900.0)
    )
    assert doubts(graph, Split((255 * IMAGES,))) == ()
    (note,) = doubts(graph, Split((IMAGES,)))
    assert "expects mean 110 and deviation 63.3, they have 0.5" in note


def first_layer(kind: str, **attrs: Any) -> Graph:
    import keras

    inputs = keras.Input((8, 8, 3), name="image")
    x = getattr(keras.layers, kind)(name="first", **attrs)(inputs)
    return helpers.graph_of(
        keras.Model(inputs, keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(x)))
    )


def classifier(single: bool = False) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Return a confident classifier of 4 (or 2) separate clusters, samples and labels."""
    import keras

    classes = 1 if single else 4
    inputs = keras.Input((4,), name="x")
    model = keras.Model(
        inputs,
        keras.layers.Dense(classes, activation="sigmoid" if single else "softmax", name="head")(
            inputs
        ),
    )
    labels = np.arange(200) % (2 if single else 4)
    x = (np.eye(4)[labels] + 0.05 * RNG.standard_normal((200, 4))).astype(np.float32)
    kernel = np.array([[-10.0], [10.0], [0.0], [0.0]]) if single else 12 * np.eye(4)
    model.set_weights([kernel, np.zeros(classes)])
    return helpers.graph_of(model), x, labels.astype(np.int32)


def test_labels_in_another_order() -> None:
    graph, x, labels = classifier()
    assert doubts(graph, Split((x,), (labels,))) == ()
    (note,) = doubts(graph, Split((x,), (np.array([2, 0, 3, 1], np.int32)[labels],)))
    assert "right for 0 % of 200 samples, with its classes in another order for 100 %" in note
    (shuffled,) = doubts(graph, Split((x,), (RNG.permutation(labels),)))
    assert "no more than by chance, though it is sure of them" in shuffled


def test_the_two_classes_of_a_single_output_the_wrong_way_round() -> None:
    graph, x, labels = classifier(single=True)
    assert doubts(graph, Split((x,), (labels,))) == ()
    assert "in another order" in doubts(graph, Split((x,), (1 - labels,)))[0]


def test_a_model_that_is_not_sure_is_left_alone() -> None:
    graph, x, labels = classifier()
    head = graph.op("head")
    unsure = graph.with_weights({"head": {**head.weights, "kernel": head.weights["kernel"] * 0}})
    assert doubts(unsure, Split((x,), (labels,))) == ()


def test_unknown_tokens_are_refused() -> None:
    import keras

    tokens = keras.Input((7,), dtype="int32", name="tokens")
    graph = helpers.graph_of(
        keras.Model(tokens, keras.layers.Dense(2)(keras.layers.Embedding(11, 4)(tokens)))
    )
    with pytest.raises(
        UsageError, match="tokens from 0 to 11, the model's Embedding knows 0 to 10"
    ):
        load_data(np.arange(12 * 7).reshape(12, 7) % 12, graph, seed=0)


@pytest.mark.parametrize("part", ["x", "x_test"])
@pytest.mark.parametrize("token", [-1, 11])
def test_one_unknown_token_anywhere_is_refused(part: str, token: int) -> None:
    import keras

    tokens = keras.Input((7,), dtype="int32", name="tokens")
    graph = helpers.graph_of(
        keras.Model(tokens, keras.layers.Dense(2)(keras.layers.Embedding(11, 4)(tokens)))
    )
    given = {name: np.arange(3000 * 7).reshape(3000, 7) % 11 for name in ("x", "x_test")}
    load_data(given, graph, seed=0)
    given[part][1234, 5] = token
    with pytest.raises(UsageError, match=f"tokens from {min(token, 0)} to {max(token, 10)}, "):
        load_data(given, graph, seed=0)
