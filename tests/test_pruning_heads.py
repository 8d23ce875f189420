"""Removal of whole heads from attention layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from lrfc.ir.attention import without_attention
from lrfc.ir.keras import io as keras_io
from lrfc.pruning.cut import cut
from lrfc.pruning.groups import groups
from lrfc.targets.catalog import target
from tests.helpers import difference, graph_of, random_inputs, random_weights
from tests.pruned import checked


def functional(inputs, outputs):
    return random_weights(keras.Model(inputs, outputs))


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (lambda: layers.MultiHeadAttention(4, 3), {}),
        (lambda: layers.MultiHeadAttention(4, 3, value_dim=5), {"use_causal_mask": True}),
        (lambda: layers.MultiHeadAttention(4, 3, dropout=0.1), {"use_causal_mask": True}),
        (lambda: layers.MultiHeadAttention(4, 3, use_bias=False, use_gate=True), {}),
    ],
)
def test_attention_loses_whole_heads(layer, call):
    inputs, memory = keras.Input((5, 6)), keras.Input((7, 6))
    x = layers.Dense(8, name="wide")(inputs)
    x = layer()(x, x if call else memory, **call)
    x = layers.Add()([x, layers.Dense(8, name="narrow")(layers.Dense(6, name="middle")(x))])
    outputs = [layers.Dense(2)(x), layers.Dense(3)(memory)]
    graph, _ = without_attention(graph_of(functional([inputs, memory], outputs)))
    found, smaller = checked(graph, whole_heads=True)
    (name,) = (op.name for op in graph if op.name.endswith("query"))
    heads = found[name]
    assert heads.width == 4
    parts = {part.layer.rpartition("__")[2] for part in heads.producers}
    assert {"query", "key", "value"} <= parts <= {"query", "key", "value", "gate"}
    assert [part.layer for part in heads.consumers] == [name.removesuffix("__query")]
    (scores,) = (op.name for op in graph if op.name.endswith("scores"))
    assert smaller.tensors(scores)[0].shape[1] == 2


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_attention_without_some_heads_is_emitted(name, tmp_path):
    inputs = keras.Input((5, 8), name="steps")
    x = layers.Dense(8, name="wide")(inputs)
    x = layers.MultiHeadAttention(4, 3, name="attention")(x, x, use_causal_mask=True)
    graph, _ = without_attention(graph_of(functional(inputs, layers.Dense(2)(x))))
    found = groups(graph, whole_heads=True)
    smaller = cut(graph, {"attention__query": np.array([0, 3])}, found)
    batch = random_inputs(graph, 3, 0)
    form = target(name)
    made = form.load(form.emit(smaller, tmp_path / f"cut{form.suffix}"))(batch)
    assert difference(keras_io.predict(smaller, batch), made) < 1e-5


def test_heads_that_share_keys_are_lost_together():
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="wide")(inputs)
    x = layers.GroupQueryAttention(3, 6, 2, name="attention")(x, x)
    graph, _ = without_attention(graph_of(functional(inputs, layers.Dense(2)(x))))
    found, smaller = checked(graph, whole_heads=True)
    assert found["attention__query"].width == 2
    assert smaller.op("attention__query")["units"] == 9
    assert smaller.op("attention__key")["units"] == 3


def test_attention_whose_weights_are_an_output_keeps_its_heads():
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="wide")(inputs)
    y, weights = layers.MultiHeadAttention(4, 3, name="attention")(
        x, x, return_attention_scores=True
    )
    graph, _ = without_attention(graph_of(functional(inputs, [layers.Dense(2)(y), weights])))
    found, _ = checked(graph, whole_heads=True)
    assert "model's output" in found.refused["attention__query"]
    assert "attention__value" not in {g.name for g in found.groups}


def test_a_product_with_constants_keeps_the_filters_in_front_of_it():
    inputs = keras.Input((5, 6))
    x = layers.Reshape((5, 2, 4))(layers.Dense(8, name="wide")(inputs))
    constants = [np.ones((4, 3), np.float32), np.ones((3, 2), np.float32)]
    x = keras.ops.einsum("bsnh,hd,de->bsne", x, *constants)
    graph = graph_of(functional(inputs, layers.Dense(2)(layers.Flatten()(x))))
    found, _ = checked(graph)
    assert "lack a letter of their own" in found.refused["wide"]
