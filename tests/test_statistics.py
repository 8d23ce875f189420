"""Sampled patches: for every kind of layer, their product with the kernel is the real output."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from lrfc.factorization import METHODS
from lrfc.factorization.linalg import LowRank
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.search import statistics as sampling
from lrfc.search.candidates import response
from lrfc.search.statistics import LayerSamples, SampleSize, collect
from tests import helpers
from tests.factorized import conv, dense, layer

EVERYTHING = 10**6
KINDS = {
    "valid": lambda: conv((3, 2), 4, 5, (7, 6), padding="valid"),
    "same": lambda: conv((3, 4), 4, 5, (7, 6)),
    "strided": lambda: conv((3, 3), 4, 5, (8, 7), strides=(2, 3)),
    "strided valid": lambda: conv((3, 3), 4, 5, (8, 7), strides=2, padding="valid"),
    "dilated": lambda: conv((3, 3), 4, 5, (8, 9), dilation_rate=(2, 3)),
    "grouped": lambda: conv((3, 3), 4, 6, groups=2),
    "causal": lambda: conv((3,), 4, 5, (9,), padding="causal", dilation_rate=2),
    "causal strided": lambda: conv((4,), 4, 5, (9,), padding="causal", strides=2),
    "3-D": lambda: conv((2, 3, 2), 3, 4, (4, 5, 4), strides=(1, 2, 1)),
    "channels_first": lambda: layer(
        "Conv2D",
        (4, 7, 6),
        (3, 3, 4, 5),
        filters=5,
        kernel_size=(3, 3),
        padding="same",
        data_format="channels_first",
        bias=5,
    ),
    "depthwise": lambda: layer(
        "DepthwiseConv2D",
        (7, 6, 4),
        (3, 3, 4, 2),
        kernel_size=(3, 3),
        depth_multiplier=2,
        strides=(2, 2),
        padding="same",
        bias=8,
    ),
    "dense": lambda: dense(6, 5),
    "dense on a sequence": lambda: dense(6, 5, (2, 3)),
    "einsum": lambda: layer(
        "EinsumDense",
        (4, 6),
        (5, 6),
        equation="abc,dc->abd",
        output_shape=(4, 5),
        bias_axes="d",
        bias=5,
    ),
    "einsum over two axes": lambda: layer(
        "EinsumDense",
        (4, 2, 3),
        (3, 2, 5),
        equation="abde,edc->abc",
        output_shape=(4, 5),
        bias_axes="c",
        bias=5,
    ),
    "einsum over the first axis": lambda: layer(
        "EinsumDense", (4, 6), (4, 5), equation="abc,bd->adc", output_shape=(5, 6)
    ),
}


def drawn(
    graph: Graph, inputs, size: SampleSize, *names: str, seed: int = 0
) -> dict[str, LayerSamples]:
    return collect(
        graph, [graph.op(name) for name in names or ("layer",)], inputs, size, seed, batch=5
    )


def rows(graph: Graph, inputs) -> np.ndarray:
    """All outputs of the layer, one row a position."""
    (output,) = keras_io.predict(graph, inputs)
    op = graph.op("layer")
    if op.attrs.get("data_format") == "channels_first":
        output = np.moveaxis(output, 1, -1)
    if op.kind == "EinsumDense" and op["equation"].endswith("adc"):
        output = np.swapaxes(output, 1, 2)
    return output.reshape(-1, output.shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_times_the_kernel_is_the_output(kind) -> None:
    helpers.run_as_it_is(kind)
    graph = KINDS[kind]()
    inputs = helpers.random_inputs(graph, 8)
    found = drawn(graph, inputs, SampleSize(4, 4, EVERYTHING, EVERYTHING))["layer"]
    given = response(graph.op("layer"), graph.input_tensors("layer")[0], found)
    np.testing.assert_allclose(given, rows(graph, tuple(x[4:] for x in inputs)), atol=2e-5)


@pytest.mark.parametrize("kind", ["strided", "causal", "channels_first", "dense on a sequence"])
def test_drawn_patches_give_outputs_at_real_positions(kind) -> None:
    helpers.run_as_it_is(kind)
    graph = KINDS[kind]()
    inputs = helpers.random_inputs(graph, 8)
    found = drawn(graph, inputs, SampleSize(4, 4, 12, 12))["layer"]
    assert len(found.patches) == 12
    given = response(graph.op("layer"), graph.input_tensors("layer")[0], found)
    wanted = rows(graph, tuple(x[4:] for x in inputs))
    nearest = np.abs(given[:, None] - wanted[None]).max(-1).min(-1)
    assert nearest.max() < 2e-5


def test_a_transposed_convolution_scatters_the_response_of_its_pixels() -> None:
    graph = layer(
        "Conv2DTranspose",
        (3, 3, 4),
        (2, 2, 5, 4),
        filters=5,
        kernel_size=(2, 2),
        strides=(2, 2),
        bias=5,
    )
    inputs = helpers.random_inputs(graph, 8)
    found = drawn(graph, inputs, SampleSize(4, 4, EVERYTHING, EVERYTHING))["layer"]
    given = response(graph.op("layer"), graph.input_tensors("layer")[0], found)
    # The stride equals the kernel: each pixel alone makes a block of the output.
    blocks = given.reshape(4, 3, 3, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(4, 6, 6, 5)
    np.testing.assert_allclose(
        blocks + graph.op("layer").weights["bias"],
        keras_io.predict(graph, (inputs[0][4:],))[0],
        atol=2e-5,
    )


@pytest.mark.parametrize(
    "kind", ["same", "strided", "grouped", "depthwise", "dense", "einsum over two axes"]
)
def test_statistics_of_every_position_are_the_covariance(kind) -> None:
    graph = KINDS[kind]()
    inputs = helpers.random_inputs(graph, 12)
    found = drawn(graph, inputs, SampleSize(6, 6, EVERYTHING, EVERYTHING))["layer"].statistics
    # The same images as the held-out ones of another run, whose patches the test above proves.
    swapped = tuple(np.concatenate([x[6:], x[:6]]) for x in inputs)
    patches = drawn(graph, swapped, SampleSize(6, 6, EVERYTHING, EVERYTHING))["layer"].patches
    assert found.count == len(patches)
    assert found.mean is not None
    np.testing.assert_allclose(found.mean, patches.mean(0), atol=1e-5)
    for group, covariance in enumerate(found.covariance):
        np.testing.assert_allclose(
            covariance, np.cov(patches[:, group].T, bias=True).reshape(covariance.shape), atol=1e-5
        )


def test_without_bias_or_batchnorm_the_moment_is_not_centred() -> None:
    graph = dense(6, 5, bias=None)
    inputs = (helpers.random_inputs(graph, 8)[0] + 1,)
    found = drawn(graph, inputs, SampleSize(4, 4, 8, 8))["layer"].statistics
    assert found.mean is None
    np.testing.assert_allclose(found.covariance[0], inputs[0][:4].T @ inputs[0][:4] / 4, rtol=1e-5)


def test_the_similarity_is_measured_on_other_images_than_the_statistics() -> None:
    graph = dense(3, 2)
    inputs = (np.repeat(np.arange(20, dtype=np.float32)[:, None], 3, 1),)
    found = drawn(graph, inputs, SampleSize(12, 4, EVERYTHING, EVERYTHING))["layer"]
    assert found.patches[:, 0, 0].tolist() == [12, 13, 14, 15]
    assert found.statistics.count == 12
    assert found.statistics.mean[0, 0] == pytest.approx(np.arange(12).mean())
    fewer = drawn(graph, (inputs[0][:8],), SampleSize(12, 4, EVERYTHING, EVERYTHING))["layer"]
    assert (fewer.statistics.count, fewer.patches[:, 0, 0].tolist()) == (6, [6, 7])
    few = drawn(graph, (inputs[0][:3],), SampleSize(12, 4, EVERYTHING, EVERYTHING))["layer"]
    assert (few.statistics.count, len(few.patches)) == (3, 3)


def test_a_shared_layer_pools_all_of_its_calls() -> None:
    graph = helpers.graph_of(helpers.shared_conv())
    inputs = helpers.random_inputs(graph, 8)
    found = drawn(graph, inputs, SampleSize(4, 4, EVERYTHING, EVERYTHING), "conv")["conv"]
    assert found.statistics.count == len(found.patches) == 3 * 4 * 36
    probe = graph.copy()
    calls = graph.calls(graph.op("conv"))
    assert len(calls) == 3
    probe.outputs, probe.structure = tuple(Ref(call.name) for call in calls), (None, None)
    wanted = np.concatenate(
        [y.reshape(-1, 3) for y in keras_io.predict(probe, tuple(x[4:] for x in inputs))]
    )
    given = response(graph.op("conv"), graph.input_tensors("conv")[0], found)
    np.testing.assert_allclose(given, wanted, atol=2e-5)
    few = drawn(graph, inputs, SampleSize(4, 4, 24, 24), "conv")["conv"]
    assert len(few.patches) == 24


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_addend_belongs_to_the_same_positions(data_format) -> None:
    helpers.run_as_it_is(data_format)
    import keras
    from keras import layers

    where = {"padding": "same", "data_format": data_format}
    image = keras.Input((4, 6, 7), name="image")
    skip = layers.Conv2D(5, 3, name="stem", **where)(image)
    x = layers.ReLU(name="relu")(skip)
    x = layers.Add(name="add")([layers.Conv2D(5, 3, name="conv", **where)(x), skip])
    graph = helpers.graph_of(helpers.random_weights(keras.Model(image, x)))
    inputs = helpers.random_inputs(graph, 8)
    found = drawn(graph, inputs, SampleSize(4, 4, 20, 20), "conv")["conv"]
    assert found.addend is not None
    given = response(graph.op("conv"), graph.input_tensors("conv")[0], found) + found.addend
    (wanted,) = keras_io.predict(graph, (inputs[0][4:],))
    wanted = np.moveaxis(wanted, 1, -1) if data_format == "channels_first" else wanted
    assert np.abs(given[:, None] - wanted.reshape(1, -1, 5)).max(-1).min(-1).max() < 2e-5


def test_the_seed_decides() -> None:
    graph = KINDS["same"]()
    inputs = helpers.random_inputs(graph, 8)
    one, same, other = (
        drawn(graph, inputs, SampleSize(4, 4, 12, 12), seed=seed)["layer"] for seed in (1, 1, 2)
    )
    assert np.array_equal(one.patches, same.patches)
    assert np.array_equal(one.statistics.covariance, same.statistics.covariance)
    assert not np.array_equal(one.patches, other.patches)


def test_one_input_of_several_is_enough() -> None:
    graph = helpers.graph_of(helpers.two_inputs())
    found = drawn(graph, helpers.random_inputs(graph, 8), SampleSize(), "embed")
    assert found["embed"].patches.shape == (2, 1, 5)


def test_padding_as_tensorflow_pads() -> None:
    assert sampling.padding("same", (8,), (4,), (3,), (2,), (1,)) == [(0, 1)]
    assert sampling.padding("same", (7,), (7,), (4,), (1,), (1,)) == [(1, 2)]
    assert sampling.padding("same", (4,), (2,), (1,), (2,), (1,)) == [(0, 0)]
    assert sampling.padding("causal", (9,), (9,), (3,), (1,), (2,)) == [(4, 0)]
    assert sampling.padding("valid", (9,), (7,), (3,), (1,), (1,)) == [(0, 0)]


@pytest.mark.parametrize("bias", [True, False])
def test_wide_dense_layers_keep_rows_that_are_the_same_covariance(monkeypatch, bias) -> None:
    x = keras.Input((40,))
    graph = helpers.graph_of(keras.Model(x, keras.layers.Dense(6, use_bias=bias, name="d")(x)))
    inputs = helpers.random_inputs(graph, 16)
    op, source = graph.op("d"), graph.input_tensors("d")[0]
    whole = collect(graph, [op], inputs, SampleSize(12, 4, 12, 4), 0)["d"].statistics
    monkeypatch.setattr(sampling, "WIDE", 30)
    few = collect(graph, [op], inputs, SampleSize(12, 4, 12, 4), 0)["d"].statistics
    assert isinstance(few.covariance, LowRank)
    assert np.allclose(few.covariance.dense(), whole.covariance[0])
    assert (few.mean is None) == (whole.mean is None)
    for method in ("svd", "tt_matrix"):
        kernels = [
            METHODS[method].decompose(op, source, statistics=each).kernel((3,))
            for each in (whole, few)
        ]
        assert np.allclose(*kernels, atol=1e-5)
    monkeypatch.setattr(sampling, "WIDE", 10)
    inputs = helpers.random_inputs(graph, 40)
    assert isinstance(
        collect(graph, [op], inputs, SampleSize(30, 10, 30, 10), 0)["d"].statistics.covariance,
        np.ndarray,
    )  # rows would take more


def test_samples_of_large_networks_are_collected_in_groups(monkeypatch) -> None:
    graph = helpers.graph_of(helpers.conv_net(filters=(6, 8, 6)))
    inputs = helpers.random_inputs(graph, 16)
    layers = [op for op in graph.layers() if op.kind == "Conv2D"]
    size = SampleSize(12, 4, 1000, 100)
    at_once = sampling.Sampler(graph, layers, inputs, size, 0)
    assert at_once.lasting == {op.name for op in layers}
    monkeypatch.setattr(sampling, "HELD", 1)
    monkeypatch.setattr(sampling, "DELIVERED", 1)  # one image a batch
    one_by_one = sampling.Sampler(graph, layers, inputs, size, 0)
    assert one_by_one.lasting == frozenset()
    for op in layers:
        a, b = at_once[op.name].statistics, one_by_one[op.name].statistics
        assert a.count == b.count
        assert (
            np.abs(a.covariance - b.covariance).max() < 0.5 * np.abs(a.covariance).max()
        )  # other positions of the same images
        assert len(one_by_one._samples) == 1
