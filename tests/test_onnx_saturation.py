"""int8 ONNX files on processors that add products of 8 bits in 16 bits: no sum saturates.

The references are integers: the exact sum, and that of the instruction vpmaddubsw, which multiplies
unsigned by signed bytes and adds two products.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from lrfc.config.formats import FORMATS
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.rounding import rounded
from lrfc.targets.catalog import target
from lrfc.targets.parity import parity
from tests import helpers

Integers = NDArray[np.int64]


def exact(activations: Integers, weights: Integers) -> Integers:
    """Σ a · w, as kernels with VNNI have it: (N, K) by (K, M)."""
    return activations @ weights


def saturating(activations: Integers, weights: Integers) -> Integers:
    """The same by pairs: each sum of two products saturates at 16 bits, and is added in 32."""
    total = np.zeros((len(activations), weights.shape[1]), np.int64)
    for k in range(0, weights.shape[0], 2):
        pair = activations[:, k : k + 2] @ weights[k : k + 2]
        total += np.clip(pair, -(2**15), 2**15 - 1)
    return total


def stored(path: Path) -> dict[str, tuple[NDArray[np.int8], NDArray[Any]]]:
    """The int8 kernels of an ONNX file (outputs first) with their scales."""
    import onnx

    model = onnx.load(path)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if (
            node.op_type == "DequantizeLinear"
            and (values := held.get(node.input[0])) is not None
            and values.ndim > 1
        ):
            axis = next(
                (attribute.i for attribute in node.attribute if attribute.name == "axis"), 1
            )
            found[node.output[0]] = np.moveaxis(values, axis % values.ndim, 0), held[node.input[1]]
    return found


def provoking() -> Graph:
    """A convolution and a Dense with weights of equal magnitude, and a sign for each filter."""
    import keras
    from keras import layers

    image = keras.Input((6, 6, 8), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    model = keras.Model(image, layers.Dense(2, name="head")(layers.Flatten(name="flat")(x)))
    signs = np.array([1, -1, 1, 1], np.float32)
    model.get_layer("conv").set_weights(
        [np.full((3, 3, 8, 4), 0.05, np.float32) * signs, np.full(4, 0.2, np.float32)]
    )
    model.get_layer("head").set_weights(
        [np.full((64, 2), 0.1, np.float32) * signs[:2], np.zeros(2, np.float32)]
    )
    return helpers.graph_of(model)


def test_the_references_differ_where_weights_have_eight_bits() -> None:
    activations, weights = np.full((1, 8), 200), np.full((8, 1), 127)
    assert saturating(activations, weights) < exact(activations, weights)


@given(
    activations=arrays.arrays(np.int64, (3, 10), elements=st.integers(0, 255)),
    weights=arrays.arrays(np.int64, (10, 4), elements=st.integers(-64, 64)),
)
def test_no_sum_of_seven_bits_saturates(activations: Integers, weights: Integers) -> None:
    assert (saturating(activations, weights) == exact(activations, weights)).all()


@pytest.mark.parametrize("network", ["provoking", "conv_net", "branches", "dense_net"])
def test_no_pair_of_weights_in_a_file_can_saturate(network: str, tmp_path: Path) -> None:
    """With all activations at 255 the two references agree, whichever weights a kernel pairs."""
    graph = provoking() if network == "provoking" else helpers.graph_of(getattr(helpers, network)())
    artifact = target("onnx", "int8").emit(
        graph, tmp_path / "m.onnx", helpers.random_inputs(graph, 20)
    )
    kernels = stored(artifact.path)
    assert len(kernels) >= 2
    for values, _ in kernels.values():
        flat = np.sort(
            values.reshape(len(values), -1).astype(np.int64), axis=1
        ).T  # sorted, the largest of each sign stand beside each other
        for weights in (np.maximum(flat, 0), np.minimum(flat, 0), np.maximum(flat, 0)[::-1], flat):
            activations = np.full((1, len(weights)), 255)
            assert (saturating(activations, weights) == exact(activations, weights)).all()
        assert np.abs(values).max() == 64  # and no less of the range is used than there is


def test_weights_that_provoke_saturation_are_right(tmp_path: Path) -> None:
    """On whatever processor this runs; every activation is close to the top of its range."""
    graph = provoking()
    rng = np.random.default_rng(0)
    inputs = (rng.uniform(0.8, 1, (40, 6, 6, 8)).astype(np.float32),)
    made = target("onnx", "int8")
    artifact = made.emit(graph, tmp_path / "m.onnx", inputs)
    reference = keras_io.predict(graph, inputs)
    found = parity(artifact, made.load(artifact), inputs, reference)
    assert found.max_abs_diff < 0.02 * max(float(np.abs(y).max()) for y in reference)


@pytest.mark.parametrize("name", ["conv0", "head"])
def test_the_passes_round_weights_as_the_file_does(name: str, tmp_path: Path) -> None:
    graph = helpers.graph_of(helpers.conv_net(batch_norm=False))
    artifact = target("onnx", "int8").emit(
        graph, tmp_path / "m.onnx", helpers.random_inputs(graph, 8)
    )
    kernel = rounded(graph.op(name), FORMATS["onnx"].weight_steps).weights["kernel"]
    axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)  # outputs, inputs, positions
    wanted = kernel.transpose(axes)
    held = [
        values * scales.reshape(-1, *[1] * (values.ndim - 1))
        for values, scales in stored(artifact.path).values()
    ]
    assert any(each.shape == wanted.shape and np.allclose(each, wanted, atol=1e-6) for each in held)
