"""Every precision on both formats: its file loads, agrees with the network, is deterministic."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import lrfc
from lrfc.config.formats import FORMATS
from lrfc.config.precision import PRECISIONS, listed, of
from lrfc.data.load import load_data
from lrfc.errors import ModelError, UsageError
from lrfc.ir.keras import io as keras_io
from lrfc.passes.profile import profile
from lrfc.targets import refusals
from lrfc.targets.catalog import target
from lrfc.targets.parity import TOLERANCE, parity
from lrfc.targets.tflite.target import scales
from tests import helpers

BOTH = [(name, precision) for name, each in FORMATS.items() for precision in each.precisions]
#: On random networks; trained ones are nearer.
NEAR = {"fp32": 1e-5, "fp16": 5e-3, "dynamic": 0.1, "int8": 0.2, "int16x8": 0.1}


def checked(graph, inputs, form, precision, path, **options):
    made = target(form, precision, **options)
    artifact = made.emit(graph, path / f"m.{form}", inputs)
    return artifact, parity(artifact, made.load(artifact), inputs, keras_io.predict(graph, inputs))


@pytest.mark.parametrize(("form", "precision"), BOTH)
@pytest.mark.parametrize("name", ["conv_net", "branches", "two_inputs"])
def test_the_file_agrees_with_the_network(name, form, precision, tmp_path):
    graph = helpers.graph_of(getattr(helpers, name)())
    _, found = checked(graph, helpers.random_inputs(graph, 40), form, precision, tmp_path)
    assert (found.distance if PRECISIONS[precision].rounding else found.relative) < NEAR[precision]


@pytest.fixture(scope="module")
def digits():
    import pathlib

    graph = keras_io.from_keras(
        keras.models.load_model(pathlib.Path(__file__).parents[1] / "examples" / "digits.keras")
    )
    return graph, load_data("digits", graph, seed=0)


@pytest.mark.parametrize(("form", "precision"), BOTH)
def test_digits(form, precision, digits, tmp_path):
    graph, data = digits
    few = tuple(x[:100] for x in data.train.inputs)
    artifact, found = checked(graph, few, form, precision, tmp_path)
    assert (found.distance if PRECISIONS[precision].rounding else found.relative) < 0.2 * TOLERANCE[
        precision
    ] or precision == "fp32"
    answers = target(form, precision).load(artifact)(data.test.inputs)[0].argmax(-1)
    assert np.mean(answers == data.test.targets[0].ravel()) > 0.98
    kernels = profile(graph, precision).weight_bytes
    assert 0.9 * kernels < artifact.bytes < 1.1 * kernels + 20_000


@pytest.mark.parametrize(("form", "precision"), [each for each in BOTH if each[1] != "fp32"])
def test_the_same_bytes_every_time(form, precision, tmp_path):
    graph = helpers.graph_of(helpers.branches())
    made, inputs = target(form, precision), helpers.random_inputs(graph, 8)
    first, second = (
        made.emit(graph, tmp_path / f"{number}.{form}", inputs).path.read_bytes()
        for number in range(2)
    )
    assert first == second


def test_int8_inputs_and_outputs(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    graph = helpers.graph_of(helpers.branches())
    inputs = helpers.random_inputs(graph, 40)
    artifact, found = checked(graph, inputs, "tflite", "int8", tmp_path, int8_io=True)
    made = Interpreter(model_path=str(artifact.path))
    assert {
        entry["dtype"] for entry in (*made.get_input_details(), *made.get_output_details())
    } == {np.int8}
    assert found.distance < 0.2
    told = scales(artifact.path)
    assert [name for name, _, _ in told] == ["photo", "extra", "value", "label"]
    photo = told[0]
    assert photo[1] == pytest.approx(np.ptp(inputs[0]) / 255, rel=0.02)
    assert photo[2] == pytest.approx(-128 - inputs[0].min() / photo[1], abs=1)
    wide = target("tflite", "int8").emit(graph, tmp_path / "float.tflite", inputs)
    assert scales(wide.path) == ()
    assert wide.bytes > artifact.bytes


def test_onnx_int8_has_scales_per_channel_and_float_inputs(tmp_path):
    import onnx

    graph = helpers.graph_of(helpers.conv_net())
    artifact, _ = checked(graph, helpers.random_inputs(graph, 8), "onnx", "int8", tmp_path)
    model = onnx.load(artifact.path)
    assert [
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    ] == [onnx.TensorProto.FLOAT] * 2
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for conv, filters in zip(
        [node for node in model.graph.node if node.op_type == "Conv"], (8, 12), strict=True
    ):
        kernel, scale, zero = (stored[name] for name in read[conv.input[1]].input)
        assert (kernel.data_type, list(scale.dims)) == (onnx.TensorProto.INT8, [filters])
        assert not onnx.numpy_helper.to_array(zero).any()
        assert conv.input[0] in read


def test_onnx_fp16_halves_the_weights_and_keeps_float_inputs(tmp_path):
    import onnx

    graph = helpers.graph_of(helpers.conv_net())
    artifact, _ = checked(graph, helpers.random_inputs(graph, 8), "onnx", "fp16", tmp_path)
    model = onnx.load(artifact.path)
    assert {
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    } == {onnx.TensorProto.FLOAT}
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1} == {
        onnx.TensorProto.FLOAT16
    }


@pytest.mark.parametrize(
    ("form", "precision"), [("tflite", "int8"), ("tflite", "int16x8"), ("onnx", "int8")]
)
def test_integers_need_calibration(form, precision, tmp_path):
    graph = helpers.graph_of(helpers.dense_net())
    with pytest.raises(UsageError, match=f"{precision} needs calibration samples"):
        target(form, precision).emit(graph, tmp_path / "m")


def one_layer(layer, shape, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype, name="x")
    return helpers.graph_of(helpers.random_weights(keras.Model(inputs, layer(inputs))))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.Conv3D(2, 2, name="bad"), (4, 4, 4, 2)),
        (lambda: layers.LayerNormalization(name="bad"), (8, 4)),
        (lambda: layers.PReLU(name="bad"), (8,)),
        (lambda: layers.Activation("elu", name="bad"), (8,)),
        (lambda: layers.Activation("selu", name="bad"), (8,)),
        (lambda: layers.Activation("log_softmax", name="bad"), (8,)),
    ],
)
def test_what_16x8_refuses_cannot_be_converted(layer, shape, tmp_path):
    graph = one_layer(layer(), shape)
    assert target("tflite", "int16x8").refusals(graph) == (
        f"bad: {refusals.message(refusals.no_int16)}",
    )
    assert target("tflite", "int8").refusals(graph) == ()
    with pytest.raises(ModelError, match="not yet supported"):
        target("tflite", "int16x8").emit(graph, tmp_path / "m", helpers.random_inputs(graph, 8))


def test_what_stays_float_is_named_before_conversion(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    graph = one_layer(layers.LayerNormalization(name="norm"), (8, 4))
    assert refusals.remarks(graph, target("tflite", "int8")) == (
        f"norm: {refusals.message(refusals.float_in_tflite)}",
    )
    assert refusals.remarks(graph, target("onnx", "int8")) == (
        f"norm: {refusals.message(refusals.float_in_onnx)}",
    )
    assert refusals.remarks(graph, target("tflite")) == ()
    made = Interpreter(
        model_path=str(
            target("tflite", "int8")
            .emit(graph, tmp_path / "m", helpers.random_inputs(graph, 8))
            .path
        )
    )
    tensors = {entry["index"]: entry for entry in made.get_tensor_details()}
    ops = {
        entry["op_name"]
        for entry in made._get_ops_details()
        if any(tensors[i]["dtype"] is np.float32 for i in entry["inputs"])
    }
    assert ops - {"QUANTIZE"}


def test_a_loop_is_refused_by_onnx_int8():
    graph = one_layer(layers.LSTM(3, name="bad"), (4, 2))
    assert target("onnx", "int8").refusals(graph) == (f"bad: {refusals.message(refusals.looped)}",)
    assert target("onnx", "fp32").refusals(graph) == ()


def test_bytes_of_each_precision():
    graph = helpers.graph_of(keras.Sequential([keras.Input((16,)), layers.Dense(8)]))
    assert {name: profile(graph, name).weight_bytes for name in PRECISIONS} == {
        "fp32": 4 * 136,
        "fp16": 2 * 136,
        "dynamic": 128 + 32,
        "int8": 128 + 32,
        "int16x8": 128 + 64,
    }
    assert [profile(graph, name).arena.peak_bytes for name in PRECISIONS] == [96, 96, 96, 24, 48]


def test_names():
    assert listed(("a",)) == "a"
    assert listed(("a", "b", "c")) == "a, b or c"
    assert listed(("a", "b", "c"), "and") == "a, b and c"
    for name, hint in (("int4", r": did you mean 'int8'\?"), ("half", "")):
        with pytest.raises(
            UsageError,
            match=f"unknown precision '{name}'{hint}; choose fp32, fp16, dynamic, int8 or int16x8",
        ):
            of(name)


@pytest.mark.slow
def test_two_precisions_of_one_build_share_the_training_only(tmp_path):
    """Stages are balanced and biases corrected for the file of integers alone."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="a")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(64, 3, name="b")(x))
    model = helpers.random_weights(keras.Model(image, layers.Dense(3, name="head")(x), name="net"))
    made = {}
    for precision in ("fp32", "int16x8"):
        log: list[str] = []
        made[precision] = lrfc.build(
            model,
            data={
                "x": np.random.default_rng(0).standard_normal((80, 12, 12, 3)),
                "y": np.arange(80) % 3,
            },
            max_macs="60%",
            epochs=0,
            precision=precision,
            out=tmp_path / precision,
            progress=lrfc.state.Progress(log=log.append),
            max_drop="100pp",
        )
        assert any(line.startswith("EqualizeStages") for line in log) == (precision == "int16x8")
    assert made["int16x8"].artifact.stat().st_size < made["fp32"].artifact.stat().st_size
