"""Helpers for tests of the lossy passes: states with data, and a small trained classifier."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from lrfc.data.dataset import Data, Split
from lrfc.ir.graph import Graph
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.search.statistics import SampleSize
from lrfc.state import State
from tests import helpers

#: Enough for the small graphs of the tests.
SIZE = SampleSize(48, 16, 2_000, 500)


def state_of(
    graph: Graph, *, samples: int = 64, seed: int = 0, targets: Any = None, synthetic: bool = False
) -> State:
    """A state with normal inputs; ``targets`` maps a batch of inputs to the labels."""
    batch = helpers.random_inputs(graph, samples + samples // 2, seed)
    labels = None if targets is None else (np.asarray(targets(batch)),)
    whole = Split(batch, labels)
    train, validation = (
        whole.take(np.arange(samples)),
        whole.take(np.arange(samples, samples + samples // 2)),
    )
    return State(graph, graph, Data("random", train, validation, validation, synthetic=synthetic))


def explored(state: State, **options: Any) -> State:
    """The state with its DesignSpace."""
    return ExploreLayers(**{"size": SIZE, "sensitivity_images": 32, **options})(state)


@cache
def learnt() -> State:
    """A small trained network with BatchNorm that classifies four noisy patterns, and its data."""
    import keras
    from keras import layers

    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((4, 8, 8, 3)).astype(np.float32)
    labels = rng.integers(0, 4, 768).astype(np.int32)
    images = (patterns[labels] + 4 * rng.standard_normal((768, 8, 8, 3))).astype(np.float32)
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv0")(image)
    x = layers.ReLU(name="relu0")(layers.BatchNormalization(momentum=0.8, name="bn0")(x))
    x = layers.Conv2D(16, 3, padding="same", strides=2, use_bias=False, name="conv1")(x)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(momentum=0.8, name="bn1")(x))
    outputs = layers.Softmax(name="softmax")(
        layers.Dense(4, name="head")(layers.Flatten(name="flat")(x))
    )
    model = keras.Model(image, outputs, name="learnt")
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(images[:512], labels[:512], batch_size=64, epochs=4, verbose=0)
    train, validation = (
        Split((images[:512],), (labels[:512],)),
        Split((images[512:],), (labels[512:],)),
    )
    graph = helpers.graph_of(model)
    return State(graph, graph, Data("patterns", train, validation, validation))
