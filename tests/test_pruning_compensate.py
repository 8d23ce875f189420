"""The refit behind a cut: least squares, with the mean absorbed."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.errors import ModelError
from lrfc.ir.keras import io as keras_io
from lrfc.pruning.compensate import refitted
from lrfc.pruning.cut import cut
from lrfc.pruning.groups import groups
from lrfc.search.statistics import Sampler, SampleSize
from tests.helpers import conv_net, difference, graph_of, random_inputs, random_weights, residual


def statistics(graph, name, samples=256):
    return Sampler(
        graph, [graph.op(name)], random_inputs(graph, samples), SampleSize(held_out=1), 0
    )[name].statistics


def with_refit(graph, name, removed, found):
    op = graph.op(name)
    new = refitted(op, graph.input_tensors(name)[0], found, removed)
    return new, graph.with_weights(
        {
            name: {
                **op.weights,
                "kernel": new.kernel,
                **({} if new.bias is None else {"bias": new.bias}),
            }
        }
    )


def layer(kind, **options):
    """A conv and a layer that reads it."""
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="sigmoid", name="conv")(inputs)
    return graph_of(
        random_weights(keras.Model(inputs, getattr(layers, kind)(name="reader", **options)(x)))
    )


READERS = [
    ("Conv2D", {"filters": 5, "kernel_size": 3}),
    ("Conv2D", {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same", "groups": 2}),
    ("Conv2DTranspose", {"filters": 5, "kernel_size": 2, "strides": 2}),
    ("Dense", {"units": 5}),
    (
        "EinsumDense",
        {"equation": "bhwc,cde->bhwde", "output_shape": (8, 8, 2, 3), "bias_axes": "de"},
    ),
]


@pytest.mark.parametrize(("kind", "options"), READERS)
def test_the_refit_ignores_removed_channels_and_is_better_than_zeros(kind, options):
    graph = layer(kind, **options)
    found = groups(graph)
    part = found["conv"].consumers[0]
    gone = [1] if found["conv"].width == 4 else [1, 4, 6]
    new, changed = with_refit(graph, "reader", part.where(gone), statistics(graph, "reader"))
    assert new.kernel.shape == graph.op("reader").weights["kernel"].shape
    assert 0 < new.error < 1
    kept = {"conv": np.setdiff1d(np.arange(found["conv"].width), gone)}
    batch = random_inputs(graph, 64, seed=1)
    reference, answer = keras_io.predict(graph, batch), keras_io.predict(changed, batch)
    assert (
        difference(answer, keras_io.predict(cut(changed, kept), batch)) < 1e-5
    )  # its rows are zero: cutting changes nothing
    plain = keras_io.predict(cut(graph, kept), batch)
    error, before = (
        float(np.square(values[0] - reference[0]).mean()) for values in (answer, plain)
    )
    assert error < 0.6 * before


def test_without_removed_channels_nothing_changes():
    graph = layer("Conv2D", filters=5, kernel_size=3)
    new, _ = with_refit(graph, "reader", np.array([], np.intp), statistics(graph, "reader"))
    np.testing.assert_array_equal(new.kernel, graph.op("reader").weights["kernel"])
    np.testing.assert_array_equal(new.bias, graph.op("reader").weights["bias"])
    assert new.error == 0


def test_a_copy_compensates_for_a_removed_channel():
    """Exact except for the shrinkage of the covariance."""
    graph = layer("Conv2D", filters=5, kernel_size=3)
    conv = {k: np.array(w) for k, w in graph.op("conv").weights.items()}
    for array in conv.values():
        array[..., 7] = array[..., 2]
    graph = graph.with_weights({"conv": conv})
    new, changed = with_refit(graph, "reader", np.array([7]), statistics(graph, "reader"))
    batch = random_inputs(graph, 8, seed=1)
    assert new.error < 3e-3
    assert difference(keras_io.predict(graph, batch), keras_io.predict(changed, batch)) < 0.1


def test_the_bias_absorbs_a_constant():
    """A filter that always gives 1 costs nothing: only its mean is lost."""
    graph = layer("Conv2D", filters=5, kernel_size=3, padding="valid")
    conv = {k: np.array(w) for k, w in graph.op("conv").weights.items()}
    conv["kernel"][..., 3], conv["bias"][3] = 0, 30  # the sigmoid is 1
    graph = graph.with_weights({"conv": conv})
    new, changed = with_refit(graph, "reader", np.array([3]), statistics(graph, "reader"))
    batch = random_inputs(graph, 8, seed=1)
    assert new.shift is None
    assert difference(keras_io.predict(graph, batch), keras_io.predict(changed, batch)) < 1e-4


def test_without_a_bias_the_batchnorm_behind_absorbs_the_mean():
    graph = graph_of(residual())
    found = statistics(graph, "conv")
    new, changed = with_refit(graph, "conv", np.array([0, 3]), found)
    assert new.bias is None
    assert new.shift is not None
    norm = graph.op("bn1").weights
    absorbed = changed.with_weights(
        {"bn1": {**norm, "moving_mean": norm["moving_mean"] - new.shift}}
    )

    def mean(graph):
        probe = graph.copy()
        probe.outputs = graph.operands("add")[:1]
        return keras_io.predict(probe, random_inputs(graph, 256))[0].mean((0, 1, 2))

    before = mean(graph)
    assert np.abs(mean(absorbed) - before).max() < 0.2 * np.abs(mean(changed) - before).max()


def test_a_layer_without_a_plain_kernel_is_refused():
    graph = layer("SeparableConv2D", filters=4, kernel_size=3)
    with pytest.raises(ModelError, match="layer 'reader': a separable convolution is two layers"):
        refitted(
            graph.op("reader"),
            graph.input_tensors("reader")[0],
            statistics(graph_of(conv_net()), "conv1"),
            np.array([0]),
        )
