"""Keras models that have no graph are refused; those of graphs run, train and can be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.errors import ModelError, UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Tensor
from tests import helpers
from tests.round_trips import EXACT

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
