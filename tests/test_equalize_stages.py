"""Equalisation changes the rounding noise, not the function; bias correction removes the mean."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.ir.rounding import STEPS, grouped, rounded
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.equalize_stages import EqualizeStages
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.compression import state_of

#: Ops between two layers whose channels can be equalised; the first three keep a change of
#: sign, the others positive scales only.
BETWEEN = {
    "nothing": lambda: (),
    "padding": lambda: (layers.ZeroPadding2D(1),),
    "average": lambda: (layers.AveragePooling2D(2),),
    "relu": lambda: (layers.ReLU(),),
    "leaky": lambda: (layers.LeakyReLU(0.2), layers.ZeroPadding2D(1)),
    "activation": lambda: (layers.Activation("relu"), layers.MaxPooling2D(2)),
}
FIRST = {
    "conv": lambda: layers.Conv2D(6, 3, padding="same", name="first"),
    "biased relu": lambda: layers.Conv2D(6, (1, 3), activation="relu", name="first"),
    "grouped": lambda: layers.Conv2D(6, 1, groups=2, use_bias=False, name="first"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, name="first"),
    "transposed": lambda: layers.Conv2DTranspose(6, 2, strides=2, name="first"),
}
SECOND = {
    "conv": lambda: layers.Conv2D(5, 3, padding="same", activation="tanh", name="second"),
    "grouped": lambda: layers.Conv2D(4, 2, groups=2, name="second"),
    "depthwise": lambda: layers.DepthwiseConv2D(
        2, depth_multiplier=2, use_bias=False, name="second"
    ),
    "transposed": lambda: layers.Conv2DTranspose(3, 2, name="second"),
    "dense": lambda: layers.Dense(4, name="second"),
}


def pair(first, between, second, seed=0, spread=2.0):
    """A network of two layers whose channels have very different ranges."""
    x = inputs = keras.Input((8, 8, 6), name="x")
    for layer in (FIRST[first](), *BETWEEN[between](), SECOND[second]()):
        x = layer(x)
    model = helpers.random_weights(keras.Model(inputs, x), seed)
    kernel = model.get_layer("first").weights[0]
    axis = (
        kernel.shape[-2:]
        if "depthwise" in first or "transposed" in first
        else (1, kernel.shape[-1])
    )
    wild = np.exp(spread * np.random.default_rng(seed).standard_normal(axis))
    kernel.assign(
        np.asarray(kernel)
        * (wild if "depthwise" in first else wild[:, :1] if "transposed" in first else wild)
    )
    return helpers.graph_of(model)


@given(
    st.sampled_from(sorted(FIRST)),
    st.sampled_from(sorted(BETWEEN)),
    st.sampled_from(sorted(SECOND)),
    st.integers(0, 99),
)
def test_the_function_is_not_changed(first, between, second, seed):
    graph = pair(first, between, second, seed)
    state = state_of(graph, samples=16)
    equalised = EqualizeStages()(state).graph
    helpers.same(graph, equalised, 1e-5)
    assert str(equalised) == str(graph)


@pytest.mark.parametrize("between", sorted(BETWEEN))
def test_pairs_that_can_be_equalised_are(between):
    graph = pair("conv", between, "conv")
    equalised = EqualizeStages()(state_of(graph, samples=16)).graph
    change = equalised.op("first").weights["kernel"] / graph.op("first").weights["kernel"]
    scales = change[0, 0, 0]
    np.testing.assert_allclose(change, np.broadcast_to(scales, change.shape), rtol=1e-5)
    assert np.ptp(np.log(np.abs(scales))) > 1
    assert (scales > 0).all() or between in ("nothing", "padding", "average")


def test_pairs_that_are_not_homogeneous_are_not_changed():
    for between in (layers.ReLU(6.0), layers.Activation("tanh"), layers.ReLU(threshold=0.1)):
        inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(4, 3, name="second")(between(layers.Conv2D(4, 3, name="first")(inputs)))
        graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, x)))
        assert EqualizeStages()(state_of(graph)).graph.op("first") is graph.op("first")


def test_several_readers_shared_layers_and_outputs_are_not_changed():
    for make in (helpers.shared_conv, helpers.residual):
        graph = fold_batchnorm(helpers.graph_of(make()))
        helpers.same(graph, EqualizeStages()(state_of(graph)).graph, 1e-5)
    graph = helpers.graph_of(helpers.shared_conv())
    assert EqualizeStages()(state_of(graph)).graph is graph


def distance(graph, samples, tmp_path, shipped=None):
    """The distance of the int8 file's outputs from the float graph's, relative to their norm."""
    tflite = TFLite("int8")
    outputs = tflite.load(tflite.emit(shipped or graph, tmp_path / "m.tflite", samples))(samples)
    reference = keras_io.predict(graph, samples)
    return np.sqrt(
        sum(np.square(y - r).sum() for y, r in zip(outputs, reference, strict=True))
        / sum(np.square(r).sum() for r in reference)
    )


@pytest.mark.parametrize("between", ["nothing", "relu"])
def test_the_int8_file_is_nearer(between, tmp_path):
    """An equalised network has a more accurate int8 file."""
    graph = pair("conv", between, "conv", spread=0)
    wild = np.exp(1.5 * np.random.default_rng(0).standard_normal(6)).astype(np.float32)
    first, second = (dict(graph.op(name).weights) for name in ("first", "second"))
    first |= {name: weight * wild for name, weight in first.items()}
    second["kernel"] = second["kernel"] / wild[:, None]
    state = state_of(graph.with_weights({"first": first, "second": second}), samples=64)
    helpers.same(graph, state.graph)
    samples = state.data.train.inputs
    best, before, after = (
        distance(each, samples, tmp_path)
        for each in (graph, state.graph, EqualizeStages()(state).graph)
    )
    assert after < 0.75 * before
    assert after < 1.1 * best


@pytest.mark.parametrize("kind", sorted(SECOND))
def test_rounded_weights_have_a_scale_per_output_channel(kind):
    op = pair("conv", "nothing", kind).op("second")
    kernels = grouped(op), grouped(rounded(op))
    for kernel, small in zip(
        *(each.transpose(0, 3, 1, 2).reshape(-1, each[0, ..., 0].size) for each in kernels),
        strict=True,
    ):
        step = np.abs(kernel).max() / STEPS
        np.testing.assert_allclose(small / step, np.rint(kernel / step), atol=1e-3)
        assert np.abs(small - kernel).max() <= 0.5001 * step
    assert kernels[0].size == op.weights["kernel"].size


def test_corrected_biases_remove_the_mean_error(tmp_path):
    """On inputs far from 0 the rounding of weights shifts every output channel."""
    inputs = keras.Input((8, 8, 3), name="x")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(inputs)
    graph = helpers.graph_of(
        helpers.random_weights(
            keras.Model(
                inputs,
                layers.Conv2D(5, 3, activation="relu", name="b")(layers.ReLU(name="relu")(x)),
            )
        )
    )
    state = state_of(graph, samples=64)
    samples = tuple(x + np.float32(4) for x in state.data.train.inputs)
    state = replace(
        state, data=replace(state.data, train=replace(state.data.train, inputs=samples))
    )
    corrected = CorrectBiases()(state).graph

    def mean(each, kernel):
        """Of each channel that the first layer gives, with that kernel."""
        each = each.copy()
        each.replace(replace(each.op("a"), weights={**each.op("a").weights, "kernel": kernel}))
        each.outputs = each.operands("relu")
        return keras_io.predict(each, samples)[0].mean((0, 1, 2))

    kernel, small = graph.op("a").weights["kernel"], rounded(graph.op("a")).weights["kernel"]
    shift = mean(graph, small) - mean(graph, kernel)
    left = mean(corrected, small) - mean(graph, kernel)
    assert np.abs(left).max() < 0.05 * np.abs(shift).max()
    assert distance(graph, samples, tmp_path, corrected) < distance(graph, samples, tmp_path)


def test_nothing_to_correct_in_a_net_without_linear_layers():
    inputs = keras.Input((8,))
    graph = helpers.graph_of(keras.Model(inputs, layers.ReLU()(inputs)))
    state = state_of(graph)
    assert CorrectBiases()(state).graph is EqualizeStages()(state).graph is graph
