"""Which networks have their filters explored, with the default of --prune and other values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lrfc.config.build import BuildConfig
from lrfc.engine.destinations import destination
from lrfc.engine.passes import exploring
from lrfc.engine.preflight import goals
from lrfc.passes.explore_filters import ExploreFilters
from tests import helpers
from tests.builds import built
from tests.compression import state_of


def separable(filters: int = 8) -> Any:
    """Inverted residual blocks: 1×1, depthwise and 1×1 convolutions."""
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 3), name="x")
    x = layers.Conv2D(filters, 3, padding="same", name="stem")(inputs)
    for number in range(2):
        y = layers.Conv2D(4 * filters, 1, use_bias=False, name=f"expand_{number}")(x)
        y = layers.ReLU(6)(layers.BatchNormalization()(y))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depth_{number}")(y)
        y = layers.ReLU(6)(layers.BatchNormalization()(y))
        y = layers.Conv2D(filters, 1, use_bias=False, name=f"project_{number}")(y)
        x = layers.Add(name=f"add_{number}")([x, layers.BatchNormalization()(y)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="net")


def explores_filters(model: Any, samples: int = 64, **options: Any) -> bool:
    """Whether a build of the model with these options explores the filters."""
    config = BuildConfig(**options)
    places = [destination(goal) for goal in goals(["tflite"], [], None, None)]
    state = state_of(helpers.graph_of(model), samples=samples)
    passes = exploring(config, places, None, state)
    return any(isinstance(step, ExploreFilters) for step in passes)


def test_filters_are_explored_where_a_convolution_is_depthwise() -> None:
    assert explores_filters(separable())
    assert not explores_filters(separable(), prune="off")
    assert not explores_filters(separable(), samples=8), "too few to refit the layers behind them"
    assert not explores_filters(separable(), samples=40), "too few to judge what is refitted"
    assert not explores_filters(helpers.residual(filters=4))
    assert explores_filters(helpers.residual(filters=4), prune="on")


def test_a_network_of_depthwise_blocks_loses_channels_between_them(tmp_path: Path) -> None:
    model = helpers.random_weights(separable())
    images = np.random.default_rng(0).standard_normal((96, 8, 8, 3)).astype(np.float32)
    manifest = built(model, tmp_path, data=images, max_macs="50%").manifest
    assert manifest.after.macs <= 0.5 * manifest.before.macs
    assert {"expand_0", "expand_1"} & {layer for cut in manifest.filters for layer in cut.layers}
