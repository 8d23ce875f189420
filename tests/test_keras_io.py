"""Import and export of Keras models: exact for every way in which Keras connects layers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from lrfc.errors import ModelError, UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.ir.op import Op, Ref, Slot, Tensor
from tests import helpers

#: A round trip may change the order of sums, nothing else.
EXACT = 1e-6


def run(model: Any, batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The outputs of the model, computed eagerly."""
    import keras

    return tuple(np.asarray(y) for y in keras.tree.flatten(keras_io.call(model, batch)))


def round_trip(model: Any) -> Graph:
    """The graph of the model, once the rebuilt model has the same outputs and the same ops."""
    graph = helpers.graph_of(model)
    rebuilt = keras_io.to_keras(graph)
    batch = helpers.random_inputs(graph)
    assert helpers.difference(run(model, batch), run(rebuilt, batch)) <= EXACT
    again = helpers.graph_of(rebuilt)
    assert described(again) == described(graph)
    assert again.params == graph.params == model.count_params()
    return graph


def described(graph: Graph) -> list[str]:
    """The ops without their names, sorted: Keras may reorder calls that are independent."""
    lines = [line.partition(" = ")[2] for line in str(graph).splitlines()[1:-1]]
    return sorted(
        re.sub(r"\(.*?\)| shared=\S+", "", line, count=2).partition(" ->")[0]
        + line.rpartition("->")[2]
        for line in lines
    )


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph]


# -- ways to connect layers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        helpers.conv_net,
        helpers.dense_net,
        helpers.residual,
        helpers.branches,
        helpers.two_inputs,
        helpers.shared_conv,
        helpers.nested_twice,
    ],
)
def test_small_models_survive(build) -> None:
    round_trip(build())


def test_a_printed_model() -> None:
    assert str(helpers.graph_of(helpers.shared_conv())) == "\n".join(
        [
            "graph shared_conv",
            "  left = InputLayer() -> (?, 6, 6, 3)",
            "  right = InputLayer() -> (?, 6, 6, 3)",
            (
                "  conv = Conv2D(left) filters=3 kernel_size=3 padding=same shared=conv -> (?, 6,"
                " 6, 3)"
            ),
            (
                "  conv@1 = Conv2D(right) filters=3 kernel_size=3 padding=same shared=conv -> (?,"
                " 6, 6, 3)"
            ),
            "  add = Add(conv, conv@1) -> (?, 6, 6, 3)",
            (
                "  conv@2 = Conv2D(add) filters=3 kernel_size=3 padding=same shared=conv -> (?, 6,"
                " 6, 3)"
            ),
            "  flat = Flatten(conv@2) -> (?, 108)",
            "  return flat",
        ]
    )


def test_shared_layers_count_once_before_and_after() -> None:
    model = helpers.shared_conv()
    graph = round_trip(model)
    assert graph.params == model.count_params() == 3 * 3 * 3 * 3 + 3
    assert graph.op("conv").weights["kernel"] is graph.op("conv@2").weights["kernel"]
    rebuilt = keras_io.to_keras(graph)
    assert [layer.name for layer in rebuilt.layers if layer.weights] == ["conv"]
    assert rebuilt.count_params() == model.count_params()


def test_several_inputs_and_outputs_keep_their_order() -> None:
    graph = round_trip(helpers.branches())
    assert graph.inputs == ("photo", "extra")  # not sorted by name
    assert graph.outputs == (Ref("value"), Ref("label"))
    assert graph.structure == (None, None)


def test_dicts_of_inputs_and_outputs() -> None:
    model = helpers.two_inputs()
    graph = round_trip(model)
    assert graph.structure == (
        {"image": Slot(0), "vector": Slot(1)},
        {"label": Slot(0), "value": Slot(1)},
    )
    rebuilt = keras_io.to_keras(graph)
    batch = helpers.random_inputs(graph)
    outputs = rebuilt(dict(zip(("image", "vector"), batch, strict=True)))
    assert set(outputs) == {"label", "value"}


def test_nested_models_are_inlined_with_path_names() -> None:
    graph = round_trip(helpers.nested_twice())
    assert [op.name for op in graph if op.weights] == [
        "backbone__conv1", "backbone__inner__point", "backbone__inner__bn",
        "backbone__conv1@1", "backbone__inner__point@1", "backbone__inner__bn@1", "head",
    ]  # fmt: skip
    assert len([op for op in graph.layers() if op.weights]) == 4


def moved(model: Any, name: str) -> np.ndarray:
    """The change of a BatchNorm's moving mean in one call in training mode."""
    (norm,) = [layer for layer in model._flatten_layers() if layer.name.endswith(name)]
    before = np.array(norm.moving_mean)
    keras_io.call(model, helpers.random_inputs(helpers.graph_of(model)), training=True)
    return np.array(norm.moving_mean) - before


@pytest.mark.parametrize("training", [None, False])
def test_training_does_to_the_rebuilt_model_what_it_does_to_the_original(training) -> None:
    model = helpers.nested_twice(training)
    graph = round_trip(model)
    recorded = [op.call[1] for op in graph if op.kind == "BatchNormalization" and op.call]
    assert recorded == ([] if training is None else [{"training": False}] * 2)
    assert moved(keras_io.to_keras(graph), "bn") == pytest.approx(moved(model, "bn"), abs=1e-6)


def test_frozen_layers_stay_frozen() -> None:
    model = helpers.nested_twice()
    model.get_layer("backbone").trainable = False
    rebuilt = keras_io.to_keras(round_trip(model))
    assert [v.path for v in rebuilt.trainable_variables] == ["head/kernel", "head/bias"]
    assert not moved(rebuilt, "bn").any()
    assert moved(keras_io.to_keras(helpers.graph_of(helpers.nested_twice())), "bn").any()


def test_the_unread_output_of_a_nested_model_is_left_out() -> None:
    """Its layers do not contribute to the model, but would count as parameters and MACs.

    Keras drops them when it rebuilds the model.
    """
    import keras

    x = keras.Input((4,))
    inner = keras.Model(
        x,
        [keras.layers.Dense(2, name="idle")(x), keras.layers.Dense(3, name="used")(x)],
        name="inner",
    )
    inputs = keras.Input((4,), name="x")
    graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, inner(inputs)[1])))
    assert [op.name for op in graph] == ["x", "inner__used"]
    helpers.same(graph, keras_io.absorb(graph, keras_io.to_keras(graph)), EXACT)


def test_a_nested_model_takes_inputs_of_other_types_and_ranks() -> None:
    """Ops of the graph cast the input and add or drop a last axis, as Keras does in the call."""
    import keras
    from keras import layers

    column, row = keras.Input((4, 1)), keras.Input((4,))
    as_row = keras.Model(column, layers.Flatten(name="flat")(column), name="column")
    as_column = keras.Model(row, layers.Flatten(name="flat")(row), name="row")
    dense = keras.Model(row, layers.Dense(2, name="dense")(row), name="dense")
    x, y, z = (
        keras.Input((4,), name="x"),
        keras.Input((4, 1), name="y"),
        keras.Input((4,), dtype="int32", name="z"),
    )
    graph = round_trip(
        helpers.random_weights(keras.Model([x, y, z], [as_row(x), as_column(y), dense(z)]))
    )
    assert {"ops.ExpandDims", "ops.Squeeze", "ops.Cast"} <= set(kinds(graph))


def test_two_nested_models_with_equal_layer_names() -> None:
    import keras

    def part(name: str) -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")], name=name)

    inputs = keras.Input((4,))
    graph = round_trip(helpers.random_weights(keras.Model(inputs, part("b")(part("a")(inputs)))))
    assert [op.name for op in graph if op.weights] == ["a__dense", "b__dense"]
    assert graph.params == 40


def test_an_output_that_is_also_read_and_one_given_twice() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    first = keras.layers.Dense(3, name="first")(inputs)
    second = keras.layers.Dense(2, name="second")(first)
    graph = round_trip(helpers.random_weights(keras.Model(inputs, [first, second, first])))
    assert graph.outputs == (Ref("first"), Ref("second"), Ref("first"))


def test_add_of_one_tensor_with_itself() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    assert round_trip(keras.Model(inputs, keras.layers.Add(name="add")([inputs, inputs]))).operands(
        "add"
    ) == (Ref("x"), Ref("x"))


def test_a_part_of_a_larger_model() -> None:
    """The graph has only the layers between the inputs and outputs of the part."""
    import keras

    whole = helpers.conv_net()
    part = keras.Model(whole.get_layer("relu0").output, whole.get_layer("pool").output, name="part")
    graph = round_trip(part)
    assert [op.name for op in graph if op.weights] == ["conv1", "bn1"]


def test_a_pretrained_body_with_a_new_head() -> None:
    """In transfer learning, layers of an inner model are often used without calling it."""
    import keras

    body = helpers.conv_net(batch_norm=True)
    head = keras.layers.Dense(2, name="new_head")(body.get_layer("pool").output)
    assert round_trip(
        helpers.random_weights(keras.Model(body.input, head, name="transfer"))
    ).outputs == (Ref("new_head"),)


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


# -- models without a graph ------------------------------------------------------------------------


def test_an_unbuilt_sequential_is_refused() -> None:
    import keras

    model = keras.Sequential([keras.layers.Dense(3)], name="open")
    with pytest.raises(
        ModelError, match=r"Sequential model 'open' has no input shape: add keras\.Input"
    ):
        keras_io.from_keras(model)
    model(np.ones((1, 4), np.float32))
    assert len(helpers.graph_of(model)) == 2


def test_a_subclassed_model_is_refused() -> None:
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    with pytest.raises(
        ModelError, match=r"model 'own' \(Own\) is subclassed and has no layer graph"
    ):
        keras_io.from_keras(Own())


def test_a_functional_model_with_its_own_call_is_refused() -> None:
    import keras

    class Doubled(keras.Model):
        def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
            return 2 * super().call(x, training=training, mask=mask)

    inputs = keras.Input((4,))
    with pytest.raises(ModelError, match="is subclassed and has no layer graph"):
        keras_io.from_keras(Doubled(inputs, keras.layers.Dense(3)(inputs), name="doubled"))


def test_an_unknown_kind() -> None:
    with pytest.raises(
        ModelError, match=r"op 'a' is of kind 'Mystery', which is not in keras\.layers"
    ):
        keras_io.infer(Op("a", "Mystery"), (Tensor((None, 3)),))


def test_a_layer_that_does_not_take_its_input() -> None:
    with pytest.raises(ModelError, match=r"layer 'a' \(Conv2D\) does not take \(\?, 3\)"):
        keras_io.infer(Op("a", "Conv2D", {"filters": 3, "kernel_size": 3}), (Tensor((None, 3)),))


def test_weights_that_do_not_fit() -> None:
    graph = Graph()
    x = graph.add(Op("x", "InputLayer", {"batch_shape": (None, 4)}))
    graph.outputs = (
        graph.add(
            Op("a", "Dense", {"units": 3}, {"kernel": np.ones((5, 3)), "bias": np.ones(3)}), [x]
        ),
    )
    with pytest.raises(
        ModelError,
        match=r"weight 'kernel' of layer 'a' has shape \(5, 3\), the layer needs \(4, 3\)",
    ):
        keras_io.to_keras(graph)
    graph.replace(Op("a", "Dense", {"units": 3}, {"kernel": np.ones((4, 3))}))
    with pytest.raises(
        ModelError,
        match=r"layer 'a'.*has the weights kernel, bias when rebuilt, the graph holds kernel",
    ):
        keras_io.to_keras(graph)


# -- running, training, saving ---------------------------------------------------------------------


def test_predict_is_independent_of_the_batch_size() -> None:
    model = helpers.conv_net()
    graph = helpers.graph_of(model)
    batch = helpers.random_inputs(graph, samples=7)
    whole = keras_io.predict(graph, batch)
    assert whole[0].shape == (7, 5)
    for form in (graph, model, keras_io.compiled(graph)):
        for size in (1, 3, 7, 50):
            assert helpers.difference(whole, keras_io.predict(form, batch, batch_size=size)) < EXACT


def test_a_fixed_batch_size_takes_any_number_of_samples() -> None:
    import keras

    inputs = keras.Input(batch_shape=(4, 5), name="x")
    model = helpers.random_weights(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    x = np.random.default_rng(0).standard_normal((11, 5)).astype(np.float32)
    kernel, bias = model.get_weights()
    for count in (1, 4, 11):
        assert (
            helpers.difference((x[:count] @ kernel + bias,), keras_io.predict(model, (x[:count],)))
            < 1e-5
        )


def test_data_that_do_not_fit_the_model() -> None:
    run = keras_io.compiled(helpers.branches())
    with pytest.raises(UsageError, match="has 2 inputs, the data have 1 arrays"):
        run((np.zeros((1, 8, 8, 3)),))
    with pytest.raises(
        UsageError, match=r"input 'extra' takes samples of shape \(5,\), the data have \(6,\)"
    ):
        run((np.zeros((1, 8, 8, 3)), np.zeros((1, 6))))


def test_call_packs_as_the_model_does() -> None:
    model = helpers.two_inputs()
    batch = helpers.random_inputs(helpers.graph_of(model))
    outputs = keras_io.call(model, batch)
    assert set(outputs) == {"label", "value"}
    assert (
        helpers.difference(
            keras_io.predict(model, batch),
            (np.asarray(outputs["label"]), np.asarray(outputs["value"])),
        )
        < EXACT
    )


def test_an_op_alone() -> None:
    relu = keras_io.single(Op("act", "ReLU", {"max_value": 2.0}))
    assert relu((np.array([[-1.0, 1.0, 3.0]], np.float32),))[0].tolist() == [[0, 1, 2]]
    kernel = np.arange(6, dtype=np.float32).reshape(3, 2)
    dense = keras_io.single(
        Op("dense", "Dense", {"units": 2, "use_bias": False}, {"kernel": kernel}), batch=2
    )
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(dense((x,))[0], x @ kernel, rtol=1e-5, atol=1e-6)
    add = keras_io.single(Op("add", "Add"))
    np.testing.assert_array_equal(add((x, x))[0], 2 * x)


def test_absorb_takes_back_what_was_trained() -> None:
    for build in (helpers.shared_conv, helpers.nested_twice, helpers.branches):
        graph = helpers.graph_of(build())
        model = keras_io.to_keras(graph)
        for variable in model.weights:
            variable.assign(np.asarray(variable) * 1.5 + 0.1)
        trained = keras_io.absorb(graph, model)
        trained.check()
        helpers.same(model, trained, EXACT)
        assert str(trained) == str(graph)
        with pytest.raises(AssertionError):
            helpers.same(graph, trained, 1e-3)


def test_saved_models_load_without_lrfc(tmp_path) -> None:
    import keras

    graph = helpers.graph_of(helpers.nested_twice())
    keras_io.save(graph, tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert type(model) is keras.Model or type(model).__name__ == "Functional"
    helpers.same(graph, model, EXACT)


def test_the_model_of_the_user_is_not_changed() -> None:
    model = helpers.nested_twice()
    before = [np.array(w) for w in model.weights]
    graph = helpers.graph_of(model)
    with pytest.raises(ValueError, match="read-only"):
        graph.op("head").weights["kernel"][0] = 0
    rebuilt = keras_io.to_keras(graph)
    for variable in rebuilt.weights:
        variable.assign(np.zeros(variable.shape))
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(before, model.weights, strict=True))
    assert graph.op("head").weights["kernel"].any()


# -- real models -----------------------------------------------------------------------------------

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
