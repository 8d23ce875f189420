"""Small Keras models and graphs with random weights, and a check that two compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.ir import processor
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io


def conv_net(
    size: int = 12,
    channels: int = 3,
    filters: tuple[int, ...] = (8, 12),
    classes: int = 5,
    *,
    batch_norm: bool = True,
    seed: int = 0,
) -> Any:
    """Conv (+ BatchNorm) + ReLU blocks, pooling, Dense softmax; random weights."""
    import keras
    from keras import layers

    x = inputs = keras.Input((size, size, channels), name="image")
    for i, width in enumerate(filters):
        x = layers.Conv2D(width, 3, padding="same", strides=2 if i else 1, name=f"conv{i}")(x)
        if batch_norm:
            x = layers.BatchNormalization(name=f"bn{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, activation="softmax", name="head")(x)
    return random_weights(keras.Model(inputs, outputs, name="conv_net"), seed)


def dense_net(
    features: int = 16, widths: tuple[int, ...] = (24, 12), classes: int = 4, seed: int = 0
) -> Any:
    """Dense + ReLU layers and a linear head; random weights."""
    import keras
    from keras import layers

    x = inputs = keras.Input((features,), name="features")
    for i, width in enumerate(widths):
        x = layers.Dense(width, activation="relu", name=f"dense{i}")(x)
    return random_weights(
        keras.Model(inputs, layers.Dense(classes, name="head")(x), name="dense_net"), seed
    )


def residual(size: int = 8, filters: int = 6, seed: int = 0) -> Any:
    """Two conv + BatchNorm blocks with a skip connection, and a head."""
    import keras
    from keras import layers

    inputs = keras.Input((size, size, 3), name="image")
    skip = x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="relu0")(layers.BatchNormalization(name="bn0")(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.ReLU(name="relu1")(layers.Add(name="add")([x, skip]))
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(x))
    return random_weights(keras.Model(inputs, outputs, name="residual"), seed)


def branches(seed: int = 0) -> Any:
    """Two inputs and two outputs in lists, whose names are not in alphabetical order.

    With depthwise and biased convolutions, BatchNorm, pooling, Add and Concatenate.
    """
    import keras
    from keras import layers

    image, extra = keras.Input((8, 8, 3), name="photo"), keras.Input((5,), name="extra")
    x = layers.ReLU(name="relu")(
        layers.BatchNormalization(name="bn")(
            layers.Conv2D(6, 3, padding="same", name="conv")(image)
        )
    )
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Concatenate(name="joined")(
        [layers.Add(name="sum")([x, y]), layers.Conv2D(4, 1, name="point")(y)]
    )
    x = layers.Flatten(name="flat")(
        layers.AveragePooling2D(2, strides=1, name="average")(layers.MaxPooling2D(name="max")(x))
    )
    x = layers.Concatenate(name="all")([x, layers.Dense(6, activation="tanh", name="embed")(extra)])
    return random_weights(
        keras.Model(
            [image, extra],
            [
                layers.Dense(3, name="value")(x),
                layers.Dense(4, activation="softmax", name="label")(x),
            ],
            name="branches",
        ),
        seed,
    )


def two_inputs(seed: int = 0) -> Any:
    """An image and a vector in, a class and a value out (both packed in dicts)."""
    import keras
    from keras import layers

    image, vector = keras.Input((8, 8, 2), name="image"), keras.Input((5,), name="vector")
    x = layers.Flatten(name="flat")(layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    x = layers.Concatenate(name="join")(
        [x, layers.Dense(6, activation="tanh", name="embed")(vector)]
    )
    outputs = {
        "label": layers.Dense(3, activation="softmax", name="label")(x),
        "value": layers.Dense(1, name="value")(x),
    }
    return random_weights(
        keras.Model({"image": image, "vector": vector}, outputs, name="two_inputs"), seed
    )


def shared_conv(seed: int = 0) -> Any:
    """One conv applied to two inputs and once more to their sum."""
    import keras
    from keras import layers

    left, right = keras.Input((6, 6, 3), name="left"), keras.Input((6, 6, 3), name="right")
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    x = layers.Add(name="add")([conv(left), conv(right)])
    return random_weights(
        keras.Model([left, right], layers.Flatten(name="flat")(conv(x)), name="shared_conv"), seed
    )


def nested_twice(training: bool | None = None, seed: int = 0) -> Any:
    """A backbone (conv + BatchNorm, with a Sequential inside) called on two inputs, and a head."""
    import keras
    from keras import layers

    inner = keras.Sequential(
        [
            layers.Conv2D(5, 1, activation="relu", name="point"),
            layers.BatchNormalization(name="bn"),
        ],
        name="inner",
    )
    x = image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv1")(x)
    backbone = keras.Model(image, inner(x), name="backbone")
    left, right = keras.Input((6, 6, 3), name="left"), keras.Input((6, 6, 3), name="right")
    context = {} if training is None else {"training": training}
    joined = layers.Subtract(name="difference")(
        [backbone(left, **context), backbone(right, **context)]
    )
    return random_weights(
        keras.Model(
            [left, right],
            layers.Dense(2, name="head")(layers.Flatten(name="flat")(joined)),
            name="nested_twice",
        ),
        seed,
    )


def run_as_it_is(layout: str) -> None:
    """Skip the test where TensorFlow itself does not run layers of that layout."""
    if layout == "channels_first" and not processor.onednn().on:
        pytest.skip(
            "TensorFlow runs channels_first with oneDNN only, and that is off here"
            " (TF_ENABLE_ONEDNN_OPTS)"
        )


def random_weights(model: Any, seed: int = 0) -> Any:
    """The model with random weights of a sensible scale, BatchNorm statistics included.

    Returned for chaining.
    """
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape, leaf = tuple(variable.shape), variable.path.rpartition("/")[2]
        if "float" not in str(variable.dtype):
            continue
        if leaf in ("moving_variance", "variance", "gamma", "scale"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = 0.2 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        variable.assign(value.astype(np.float32))
    for layer in model._flatten_layers():
        if hasattr(
            layer, "finalize_state"
        ):  # Normalization computes with what it makes of its weights
            layer.finalize_state()
    return model


def graph_of(model: Any) -> Graph:
    """The checked graph of a Keras model."""
    graph = keras_io.from_keras(model)
    graph.check()
    return graph


def random_inputs(graph: Graph, samples: int = 3, seed: int = 0, length: int = 16) -> Batch:
    """Normal values for every float input of a model, and small integers for the others.

    An axis without a fixed length gets ``length``.
    """
    rng = np.random.default_rng(seed)
    batch = []
    for name in graph.inputs:
        tensor = graph.tensors(name)[0]
        shape = (
            tensor.shape[0] or samples,
            *(length if axis is None else axis for axis in tensor.shape[1:]),
        )
        batch.append(
            rng.standard_normal(shape).astype(tensor.dtype)
            if "float" in tensor.dtype
            else rng.integers(0, 4, shape).astype(tensor.dtype)
        )
    return tuple(batch)


def difference(a: Batch, b: Batch) -> float:
    """The largest absolute difference, relative to the largest value of that output in ``a``."""
    assert len(a) == len(b)
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape, f"{x.shape} != {y.shape}"
        assert np.isfinite(x).all()
        worst = max(
            worst,
            float(np.abs(x.astype(np.float64) - y).max(initial=0.0))
            / max(float(np.abs(x).max(initial=0.0)), 1e-12),
        )
    return worst


def same(
    a: Graph | Any, b: Graph | Any, tolerance: float = 1e-5, samples: int = 3, seed: int = 0
) -> None:
    """Assert that two graphs or models have the same outputs on random inputs.

    The difference is relative to the scale of the first one's outputs.
    """
    batch = random_inputs(a if isinstance(a, Graph) else keras_io.from_keras(a), samples, seed)
    found = difference(keras_io.predict(a, batch), keras_io.predict(b, batch))
    assert found <= tolerance, (
        f"outputs differ by {found:.2e} of their scale, allowed is {tolerance:.0e}"
    )
