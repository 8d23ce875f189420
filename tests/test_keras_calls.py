"""Import and export of Keras models: kinds of layers and operations, and their types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.errors import ModelError
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref, Tensor
from tests import helpers
from tests.round_trips import EXACT, kinds, round_trip

# -- kinds of calls --------------------------------------------------------------------------------


def test_keras_ops_with_constants_and_lists() -> None:
    import keras
    from keras import ops

    x = inputs = keras.Input((6, 4), name="x")
    x = 2.0 - x / 3.0
    x = ops.concatenate([x, ops.ones((1, 1, 4)) * inputs, inputs[:, ::-1]], axis=1)
    x = x * np.arange(4, dtype=np.float32)
    x = ops.pad(x[:, 1:, None], [[0, 0], [0, 1], [0, 0], [0, 0]])
    x = ops.matmul(ops.transpose(ops.squeeze(x, 2), (0, 2, 1)), ops.mean(x, axis=2))
    graph = round_trip(keras.Model(inputs, ops.maximum(x, 0.1)))
    assert "ops.Concatenate" in kinds(graph)


def test_ops_with_several_outputs() -> None:
    import keras
    from keras import ops

    inputs = keras.Input((8,), name="x")
    a, b, c, d = ops.split(inputs, 4, axis=-1)
    mean, variance = ops.moments(inputs, axes=[-1], keepdims=True)
    values, indices = ops.top_k(inputs, 2)
    graph = round_trip(keras.Model(inputs, [a * d - b, c * mean + variance, values, indices]))
    assert [str(tensor) for tensor in (graph.tensor(ref) for ref in graph.outputs)] == [
        "(?, 2)",
        "(?, 2)",
        "(?, 2)",
        "(?, 2) int32",
    ]


def test_attention_with_positional_and_named_operands() -> None:
    import keras

    query, value = keras.Input((5, 8), name="query"), keras.Input((7, 8), name="value")
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    x = attention(query, value)
    x = keras.layers.MultiHeadAttention(2, 4, name="named")(query=x, value=value, key=value)
    graph = round_trip(
        helpers.random_weights(keras.Model([query, value], keras.layers.LayerNormalization()(x)))
    )
    assert graph.operands("attention") == (Ref("query"), Ref("value"))
    op = graph.op("named")
    assert op.call is not None
    assert {name: graph.operands("named")[slot.port] for name, slot in op.call[1].items()} == {
        "query": Ref("attention"), "value": Ref("value"), "key": Ref("value")
    }  # fmt: skip


def test_attention_that_gives_its_scores() -> None:
    import keras

    query = keras.Input((5, 8), name="query")
    outputs = keras.layers.MultiHeadAttention(2, 4, name="attention")(
        query, query, return_attention_scores=True, use_causal_mask=True
    )
    graph = round_trip(helpers.random_weights(keras.Model(query, list(outputs))))
    assert graph.tensors("attention") == (Tensor((None, 5, 8)), Tensor((None, 2, 5, 5)))


def test_recurrent_layers_and_their_states() -> None:
    import keras
    from keras import layers

    x = inputs = keras.Input((6, 3), name="x")
    x, h, c = layers.LSTM(4, return_sequences=True, return_state=True, name="encoder")(x)
    x = layers.LSTM(4, return_sequences=True, name="decoder")(x, initial_state=[h, c])
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(2), name="each")(x)
    graph = round_trip(
        helpers.random_weights(keras.Model(inputs, layers.SimpleRNN(2, name="last")(x)))
    )
    assert graph.operands("decoder") == (Ref("encoder"), Ref("encoder", 1), Ref("encoder", 2))
    assert next(iter(graph.op("both").weights)).startswith("forward")


def test_masks_travel_through_the_rebuilt_model() -> None:
    import keras
    from keras import layers

    inputs = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 5, mask_zero=True, name="embedding")(inputs)
    model = helpers.random_weights(keras.Model(inputs, layers.LSTM(4, name="lstm")(x)))
    graph = round_trip(model)
    tokens = np.array([[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]], np.int32)
    assert (
        helpers.difference((np.asarray(model(tokens)),), keras_io.predict(graph, (tokens,)))
        <= EXACT
    )
    unmasked = keras.Model(
        inputs, layers.LSTM(4, name="lstm")(layers.Embedding(9, 5, name="embedding")(inputs))
    )
    unmasked.set_weights(model.get_weights())
    assert (
        helpers.difference((np.asarray(unmasked(tokens)),), keras_io.predict(graph, (tokens,)))
        > 1e-3
    )


@pytest.mark.filterwarnings("ignore:Layer 'inner' .* was passed an input with a mask:UserWarning")
def test_masks_reach_into_a_nested_model() -> None:
    import keras
    from keras import layers

    sequence = keras.Input((6, 5))
    inner = keras.Model(
        sequence, layers.LSTM(4, name="lstm")(layers.Dense(5, name="dense")(sequence)), name="inner"
    )
    inputs = keras.Input((6,), dtype="int32", name="tokens")
    model = helpers.random_weights(
        keras.Model(inputs, inner(layers.Embedding(9, 5, mask_zero=True, name="embedding")(inputs)))
    )
    graph = round_trip(model)
    assert "inner__lstm" in graph
    tokens = np.array([[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]], np.int32)
    assert (
        helpers.difference((np.asarray(model(tokens)),), keras_io.predict(graph, (tokens,)))
        <= EXACT
    )


@pytest.mark.filterwarnings("ignore:Layer 'inner' .* was passed an input with a mask:UserWarning")
def test_a_nested_model_with_a_mask_of_the_user_passes_through() -> None:
    import keras

    sequence = keras.Input((6, 5))
    inner = keras.Model(sequence, keras.layers.LSTM(4)(sequence), name="inner")
    inputs, mask = keras.Input((6, 5), name="x"), keras.Input((6,), dtype="bool", name="mask")
    graph = round_trip(
        helpers.random_weights(keras.Model([inputs, mask], inner(inputs, mask=mask)))
    )
    assert graph.op("inner").origin is not None


def test_a_learned_vocabulary_survives() -> None:
    import keras

    lookup = keras.layers.IntegerLookup(name="lookup")
    lookup.adapt(np.array([30, 10, 20, 10]))
    inputs = keras.Input((4,), dtype="int64", name="ids")
    model = keras.Model(inputs, keras.layers.Embedding(5, 3)(lookup(inputs)))
    ids = np.array([[10, 20, 30, 40]])
    assert (
        helpers.difference(
            keras_io.predict(model, (ids,)), keras_io.predict(helpers.graph_of(model), (ids,))
        )
        == 0
    )


def test_an_input_of_unknown_lengths() -> None:
    import keras

    x = inputs = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(x)
    graph = round_trip(
        helpers.random_weights(keras.Model(inputs, keras.layers.UpSampling2D(name="up")(x)))
    )
    assert graph.tensors("up") == (Tensor((None, None, None, 4)),)


def test_a_lambda_of_a_loaded_model() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    doubled = keras.layers.Lambda(lambda x: 2 * x, name="double")(inputs)
    graph = round_trip(keras.Model(inputs, doubled))
    assert graph.op("double").kind == "Lambda"


def scaling() -> type:
    import keras

    class Scaling(keras.layers.Layer):
        """A custom layer with a weight, an inner layer and a second argument."""

        def __init__(self, units: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.units = units
            self.inner = keras.layers.Dense(units, name="inner")

        def build(self, shape: Any) -> None:
            self.inner.build(shape)
            self.factor = self.add_weight(shape=(self.units,), name="factor")

        def call(self, x: Any, bias: Any = 0.0) -> Any:
            return self.inner(x) * self.factor + bias

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "units": self.units}

    return Scaling


def test_a_custom_layer_passes_through() -> None:
    import keras

    cls = scaling()
    inputs = keras.Input((4,), name="x")
    x = cls(3, name="first")(inputs)
    graph = round_trip(
        helpers.random_weights(keras.Model(inputs, cls(3, name="second")(inputs, bias=x)))
    )
    op = graph.op("second")
    assert op.origin is cls
    assert set(op.weights) == {"inner/kernel", "inner/bias", "factor"}
    assert graph.operands("second") == (Ref("x"), Ref("first"))


def test_a_custom_layer_named_like_one_of_keras_is_not_that() -> None:
    import keras

    class Dense(keras.layers.Dense):
        def call(self, x: Any, training: bool | None = None) -> Any:
            return super().call(x) + 1

    inputs = keras.Input((4,), name="x")
    graph = round_trip(helpers.random_weights(keras.Model(inputs, Dense(3, name="dense")(inputs))))
    assert graph.op("dense").kind != "Dense"


def test_a_custom_layer_without_config_is_refused() -> None:
    import keras

    class Forgetful(keras.layers.Layer):
        def __init__(self, function: Any, units: int) -> None:
            super().__init__(name="forgetful")
            self.function, self.units = function, units

        def call(self, x: Any) -> Any:
            return self.function(x)

    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, Forgetful(lambda x: x, 3)(inputs))
    with pytest.raises(ModelError, match="layer 'forgetful'"):
        keras_io.to_keras(keras_io.from_keras(model))


def test_preprocessing_with_statistics() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    normalise = keras.layers.Normalization(name="normalise")
    normalise.adapt(np.random.default_rng(0).uniform(3, 9, (100, 4)).astype(np.float32))
    graph = round_trip(
        keras.Model(
            inputs,
            keras.layers.Dense(2)(keras.layers.Rescaling(2.0, offset=-1.0)(normalise(inputs))),
        )
    )
    assert "mean" in graph.op("normalise").weights


# -- types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_rebuilt_in_float32(policy) -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = helpers.conv_net()
        graph = helpers.graph_of(model)
        rebuilt = keras_io.to_keras(graph)
    finally:
        keras.config.set_dtype_policy(before)
    assert {
        tensor.dtype for op in graph if op.kind != "InputLayer" for tensor in graph.tensors(op.name)
    } == {"float32"}
    assert {layer.compute_dtype for layer in rebuilt.layers} == {"float32"}
    assert {w.dtype.name for op in graph for w in op.weights.values()} == {"float32"}
    helpers.same(helpers.conv_net(), rebuilt, EXACT)


def test_weights_of_half_precision_become_float32() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    model = helpers.random_weights(
        keras.Model(inputs, keras.layers.Dense(3, dtype="float16", name="dense")(inputs))
    )
    graph = helpers.graph_of(model)
    assert graph.op("dense").weights["kernel"].dtype == np.float32
    assert "float16" not in str(graph)


def test_integer_layers_keep_their_type() -> None:
    import keras

    inputs = keras.Input((4,), dtype="int32", name="x")
    graph = round_trip(keras.Model(inputs, keras.ops.cast(inputs + 1, "float32")))
    assert graph.tensors("x") == (Tensor((None, 4), "int32"),)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
def test_quantized_layers_are_refused() -> None:
    model = helpers.dense_net()
    model.quantize("int8")
    with pytest.raises(ModelError, match=r"layer 'dense0' is quantized .*: give the float model"):
        keras_io.from_keras(model)
