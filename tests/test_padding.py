"""Zero padding behind the pointwise convolution that reads it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from lrfc.costs.totals import totals
from lrfc.factorization import METHODS
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.padding import pad_later
from lrfc.targets.tflite.target import TFLite
from tests.helpers import graph_of


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph if op.kind != "InputLayer"]


def both(graph: Graph, size: tuple[int, ...]) -> list[Any]:
    """The outputs of a graph before and after."""
    batch = (np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32),)
    return [keras_io.predict(each, batch)[0] for each in (graph, pad_later(graph))]


@pytest.mark.parametrize(
    ("axes", "amount"), [(1, (2, 0)), (2, ((0, 1), (2, 1))), (2, 1), (3, ((1, 0), (0, 2), (1, 1)))]
)
def test_the_outputs_stay_the_same(axes: int, amount: Any) -> None:
    conv, pad = (getattr(layers, f"{kind}{axes}D") for kind in ("Conv", "ZeroPadding"))
    image = keras.Input((*[6] * axes, 5))
    x = conv(3, 1, use_bias=False, name="narrow")(pad(amount, name="pad")(image))
    graph = graph_of(keras.Model(image, conv(4, 3, activation="relu", name="wide")(x)))
    before, after = both(graph, (*[6] * axes, 5))
    np.testing.assert_allclose(after, before, atol=1e-6)
    moved = pad_later(graph)
    assert [op.name for op in moved][1:] == ["narrow", "pad", "wide"]
    assert totals(moved)["macs"] == totals(graph)["macs"]
    assert moved.tensors("narrow")[0].shape[1:] == (*[6] * axes, 3)


@pytest.mark.parametrize(
    "layer",
    [
        {"use_bias": True},
        {"activation": "relu"},
        {"strides": 2},
        {"kernel_size": 3},
    ],
)
def test_it_moves_behind_nothing_else(layer: dict[str, Any]) -> None:
    image = keras.Input((6, 6, 5))
    options = {"kernel_size": 1, "use_bias": False} | layer
    x = layers.Conv2D(3, **options)(layers.ZeroPadding2D(1)(image))
    graph = graph_of(keras.Model(image, layers.Conv2D(4, 3)(x)))
    assert kinds(pad_later(graph)) == ["ZeroPadding2D", "Conv2D", "Conv2D"]


def test_padding_with_other_readers_and_layers_with_other_calls_stay() -> None:
    image = keras.Input((6, 6, 5))
    padded = layers.ZeroPadding2D(1)(image)
    narrow = layers.Conv2D(3, 1, use_bias=False)
    x = layers.Concatenate()([narrow(padded), padded])
    assert kinds(pad_later(graph_of(keras.Model(image, x))))[0] == "ZeroPadding2D"
    twice = layers.Concatenate()(
        [narrow(layers.ZeroPadding2D(1)(image)), narrow(layers.ZeroPadding2D(1)(image))]
    )
    moved = kinds(pad_later(graph_of(keras.Model(image, twice))))
    assert moved.index("ZeroPadding2D") < moved.index("Conv2D")
    ends = keras.Model(image, narrow(padded))
    assert kinds(pad_later(graph_of(ends))) == ["ZeroPadding2D", "Conv2D"]


@pytest.mark.parametrize("method", ["tucker2", "cp"])
def test_a_factorized_layer_is_emitted_with_its_padding_inside(method: str, tmp_path: Any) -> None:
    image = keras.Input((8, 8, 16), name="image")
    x = layers.ZeroPadding2D(((1, 0), (1, 0)), name="pad")(image)
    x = layers.Conv2D(24, 3, strides=2, name="conv")(x)
    graph = graph_of(keras.Model(image, layers.ReLU(name="relu")(x)))
    rank = {"tucker2": (6, 6), "cp": (6,)}[method]
    op, source = graph.op("conv"), graph.input_tensors("conv")[0]
    factors = METHODS[method].decompose(op, source)
    graph.splice("conv", factors.stages(rank))
    form = inference_form(graph)
    names = [each.name for each in form]
    assert names.index("pad") == 2
    batch = (np.random.default_rng(0).normal(size=(4, 8, 8, 16)).astype(np.float32),)
    expected = keras_io.predict(graph, batch)[0]
    np.testing.assert_allclose(keras_io.predict(form, batch)[0], expected, atol=1e-5)
    target = TFLite("fp32")
    found = target.load(target.emit(form, tmp_path / "file.tflite"))(batch)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Fewer positions: 8·8 in the place of 9·9.
    assert form.tensors(names[1])[0].shape[1:3] == (8, 8)
