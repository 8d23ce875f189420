"""The ONNX target: standard operators, folded and named after the layers, and refusals."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lrfc.errors import ModelError, ParityError, UsageError
from lrfc.ir.keras import io as keras_io
from lrfc.protocols import Artifact
from lrfc.targets import refusals
from lrfc.targets.catalog import target
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.parity import parity
from tests import helpers

MODELS = (
    "conv_net",
    "dense_net",
    "residual",
    "branches",
    "two_inputs",
    "shared_conv",
    "nested_twice",
)


def emitted(graph, path):
    import onnx

    return onnx.load(ONNX().emit(graph, path).path)


def one_layer(layer, shape, dtype="float32"):
    import keras

    inputs = keras.Input(shape, dtype=dtype, name="x")
    return helpers.graph_of(helpers.random_weights(keras.Model(inputs, layer(inputs))))


def check(graph, path, tolerance=1e-5):
    inputs = helpers.random_inputs(graph, samples=4)
    artifact = ONNX().emit(graph, path)
    found = parity(artifact, ONNX().load(artifact), inputs, keras_io.predict(graph, inputs))
    assert found.samples == 4
    assert found.relative < tolerance


@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_what_the_model_computes(name, tmp_path):
    graph = helpers.graph_of(getattr(helpers, name)())
    assert ONNX().refusals(graph) == ()
    check(graph, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_names_order_and_layout_are_the_models(tmp_path):
    graph = emitted(helpers.graph_of(helpers.branches()), tmp_path / "m.onnx").graph

    def shapes(values):
        return {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in values
        }

    assert list(shapes(graph.input).items()) == [("photo", [1, 8, 8, 3]), ("extra", [1, 5])]
    assert list(shapes(graph.output).items()) == [("value", [1, 3]), ("label", [1, 4])]
    names = {node.name for node in graph.node}
    assert any(name.startswith("depthwise/") for name in names)
    assert not any("__" in name or "branches" in name for name in names)


def test_standard_operators_only_with_batch_norm_folded(tmp_path):
    """Conv + BatchNorm + ReLU become Conv and Relu, also with a bias; one transpose is in front."""
    model = emitted(helpers.graph_of(helpers.conv_net()), tmp_path / "m.onnx")
    assert Counter(node.op_type for node in model.graph.node) == Counter(
        Conv=2, Relu=2, Transpose=1, GlobalAveragePool=1, Squeeze=1, Gemm=1, Softmax=1
    )
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_a_shared_layer_is_stored_once(tmp_path):
    graph = helpers.graph_of(helpers.shared_conv())
    model = emitted(graph, tmp_path / "m.onnx")
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 3
    stored = sum(
        int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == 1
    )
    assert stored == graph.params


def beyond():
    """Layers that the converter alone does not manage."""
    from keras import layers

    return {
        "gelu": lambda: one_layer(layers.Activation("gelu"), (5,)),
        "celu": lambda: one_layer(layers.Activation("celu"), (5,)),
        "grouped": lambda: one_layer(
            layers.Conv2D(6, 3, groups=2, strides=2, padding="same"), (7, 7, 4)
        ),
        "normalized": lambda: one_layer(
            layers.Normalization(mean=[1.0, 2.0], variance=[3.0, 4.0]), (4, 2)
        ),
        "loop": lambda: one_layer(layers.LSTM(3), (4, 2)),
        "silu": lambda: one_layer(layers.Activation("silu"), (5,)),
    }


@pytest.mark.parametrize("kind", ["gelu", "celu", "grouped", "normalized", "loop", "silu"])
def test_layers_beyond_the_converter(kind, tmp_path):
    graph = beyond()[kind]()
    check(graph, tmp_path / "m.onnx")
    assert ONNX().refusals(graph) == ()


def test_log1p(tmp_path):
    import keras

    inputs = keras.Input((6,), name="x")
    check(
        helpers.graph_of(keras.Model(inputs, keras.ops.log1p(keras.ops.abs(inputs)))),
        tmp_path / "m.onnx",
    )


def test_an_integer_input_keeps_its_type(tmp_path):
    from keras import layers

    graph = one_layer(layers.Embedding(4, 3), (5,), dtype="int32")
    check(graph, tmp_path / "m.onnx")
    runner = ONNX().load(Artifact(tmp_path / "m.onnx", "onnx", "fp32"))
    assert runner((np.ones((2, 5), np.int64),))[0].shape == (2, 5, 3)
    with pytest.raises(UsageError, match="int32, the data have"):
        runner((np.full((2, 5), 0.5, np.float32),))


def test_refusals(tmp_path):
    from keras import layers

    wanted = {
        "open_axis": one_layer(layers.Conv2D(2, 3), (None, 8, 3)),
        "grouped_3d": one_layer(layers.Conv3D(2, 3, groups=2), (6, 6, 6, 2)),
        "inexact_resize": one_layer(layers.Resizing(9, 9, interpolation="bicubic"), (6, 6, 2)),
        "bucketed": one_layer(layers.Discretization(bin_boundaries=[0.0, 1.0]), (3,)),
        "strings": one_layer(layers.IntegerLookup(vocabulary=[1, 2]), (3,), dtype="int64"),
    }
    for rule, graph in wanted.items():
        (line,) = ONNX().refusals(graph)
        assert line.endswith(f": {refusals.message(getattr(refusals, rule))}")
    for rule, message in (
        ("bucketed", "no operator for TensorFlow's Bucketize"),
        ("strings", "lookup table"),
    ):
        with pytest.raises(ModelError, match=message):
            ONNX().emit(wanted[rule], tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"onnxruntime cannot run m\.onnx: .*Conv"):
        check(wanted["grouped_3d"], tmp_path / "m.onnx")
    with pytest.raises(ParityError):  # it can be emitted, but is not the same
        check(wanted["inexact_resize"], tmp_path / "m.onnx")


def test_a_missing_precision_is_refused():
    with pytest.raises(
        UsageError, match="no precision 'int16x8'; choose fp32, fp16 or int8, or target tflite"
    ):
        target("onnx", "int16x8")
    with pytest.raises(UsageError, match="no --int8-io"):
        target("onnx", "int8", int8_io=True)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "m.onnx").write_text("not a model")
    for name in ("m.onnx", "none.onnx"):
        with pytest.raises(ModelError, match=f"onnxruntime cannot load .*{name}"):
            ONNX().load(Artifact(tmp_path / name, "onnx", "fp32"))


@pytest.mark.slow
@pytest.mark.skipif(
    "LRFC_DATA" not in os.environ, reason="needs the real models and data of LRFC_DATA"
)
def test_resnet20_keeps_its_accuracy(tmp_path):
    import keras

    folder = Path(os.environ["LRFC_DATA"])
    graph = keras_io.from_keras(
        keras.saving.load_model(folder / "models" / "resnet20_cifar10.keras", compile=False)
    )
    with np.load(folder / "cifar10_test.npz") as data:
        x, y = data["x"].astype(np.float32), data["y"].ravel()
    artifact = ONNX().emit(graph, tmp_path / "m.onnx")
    assert (ONNX().load(artifact)((x,))[0].argmax(-1) == y).mean() == pytest.approx(
        0.9173, abs=1e-4
    )
