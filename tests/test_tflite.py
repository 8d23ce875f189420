"""The TFLite target: files that compute what the model does, and refusals."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lrfc.config.formats import FORMATS
from lrfc.errors import ModelError, ParityError, UsageError
from lrfc.ir.keras import io as keras_io
from lrfc.protocols import Artifact, Target
from lrfc.targets import refusals
from lrfc.targets.catalog import target
from lrfc.targets.parity import parity
from lrfc.targets.quiet import quiet
from lrfc.targets.tflite.target import TFLite
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


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_what_the_model_computes(name, precision, tmp_path):
    graph = helpers.graph_of(getattr(helpers, name)())
    inputs = helpers.random_inputs(graph, samples=40)
    tflite = TFLite(precision)
    assert tflite.refusals(graph) == ()
    artifact = tflite.emit(graph, tmp_path / "m.tflite", inputs)
    found = parity(artifact, tflite.load(artifact), inputs, keras_io.predict(graph, inputs))
    assert found.samples == 40
    assert found.relative < 1e-5 if precision == "fp32" else 0 < found.distance < 0.2
    assert artifact == Artifact(tmp_path / "m.tflite", "tflite", precision)
    assert artifact.bytes == len(artifact.path.read_bytes())
    assert list(tmp_path.iterdir()) == [artifact.path]


def interpreter(artifact):
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        return Interpreter(model_path=str(artifact.path))


def test_names_and_order_are_the_models(tmp_path):
    graph = helpers.graph_of(helpers.branches())
    artifact = TFLite().emit(graph, tmp_path / "m.tflite")
    made = interpreter(artifact)
    assert made.get_signature_list() == {
        "serving_default": {"inputs": ["extra", "photo"], "outputs": ["label", "value"]}
    }
    assert [entry["shape"].tolist() for entry in made.get_input_details()] == [[1, 8, 8, 3], [1, 5]]
    assert [entry["shape"].tolist() for entry in made.get_output_details()] == [[1, 3], [1, 4]]


def test_only_builtin_operators_and_no_variables(tmp_path):
    graph = helpers.graph_of(helpers.branches())
    ops = {
        entry["op_name"]
        for entry in interpreter(TFLite().emit(graph, tmp_path / "m.tflite"))._get_ops_details()
    }
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONCATENATION", "ADD"} <= ops
    assert not {
        op for op in ops if op.startswith("Flex") or "VARIABLE" in op or op in ("MUL", "CALL_ONCE")
    }, "BatchNorm is folded, weights are constants"


def test_int8_is_whole_per_channel_and_keeps_float_inputs_and_outputs(tmp_path):
    graph = helpers.graph_of(helpers.conv_net())
    inputs = helpers.random_inputs(graph, samples=8)
    whole, small = (
        TFLite(precision).emit(graph, tmp_path / precision, inputs)
        for precision in ("fp32", "int8")
    )
    made = interpreter(small)
    assert {
        entry["dtype"] for entry in (*made.get_input_details(), *made.get_output_details())
    } == {np.float32}
    tensors = {entry["index"]: entry for entry in made.get_tensor_details()}
    convs = [entry for entry in made._get_ops_details() if entry["op_name"] == "CONV_2D"]
    assert len(convs) == 2
    for conv, filters in zip(convs, (8, 12), strict=True):
        source, kernel, bias = (tensors[index] for index in conv["inputs"])
        assert (source["dtype"], kernel["dtype"], bias["dtype"]) == (np.int8, np.int8, np.int32)
        assert len(kernel["quantization_parameters"]["scales"]) == filters
    float_ops = {
        entry["op_name"]
        for entry in made._get_ops_details()
        if any(tensors[i]["dtype"] is np.float32 for i in entry["inputs"])
    }
    assert float_ops == {"QUANTIZE"}
    assert small.bytes < whole.bytes


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["residual", "two_inputs", "nested_twice"])
def test_large_weights_make_the_same_file(name, precision, tmp_path, monkeypatch):
    graph = helpers.graph_of(getattr(helpers, name)())
    inputs = helpers.random_inputs(graph, samples=8)
    tflite = TFLite(precision)
    small = tflite.load(tflite.emit(graph, tmp_path / "small.tflite", inputs))(inputs)
    monkeypatch.setattr("lrfc.targets.tflite.target.LARGE", 0)
    large = tflite.load(tflite.emit(graph, tmp_path / "large.tflite", inputs))(inputs)
    for one, other in zip(small, large, strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_number_of_samples(tmp_path):
    graph = helpers.graph_of(helpers.branches())
    runner = TFLite().load(TFLite().emit(graph, tmp_path / "m.tflite"), threads=2)
    inputs = helpers.random_inputs(graph, 5)
    whole = runner(inputs)
    single = runner(tuple(x[3:4] for x in inputs))
    assert [y.shape for y in whole] == [(5, 3), (5, 4)]
    np.testing.assert_allclose(single[1], whole[1][3:4], atol=1e-6)
    np.testing.assert_allclose(runner(tuple(x.astype(np.float64) for x in inputs))[0], whole[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:1],
        lambda x: (x[0][:, 1:], x[1]),
        lambda x: (x[0], x[1][:2]),
        lambda x: (x[0] + 1j, x[1]),
        lambda x: (x[0][:0], x[1][:0]),
    ],
)
def test_data_that_do_not_fit_are_named(spoil, tmp_path):
    graph = helpers.graph_of(helpers.branches())
    runner = TFLite().load(TFLite().emit(graph, tmp_path / "m.tflite"))
    with pytest.raises(UsageError, match=r"m\.tflite .*the data have"):
        runner(spoil(helpers.random_inputs(graph, 3)))


# -- refusals --------------------------------------------------------------------------------------


def one_layer(layer, shape, dtype="float32"):
    import keras

    inputs = keras.Input(shape, dtype=dtype, name="x")
    return helpers.graph_of(helpers.random_weights(keras.Model(inputs, layer(inputs))))


def refused():
    from keras import layers

    return {
        "open_axis": lambda: one_layer(layers.Conv2D(2, 3), (None, 8, 3)),
        "dilated_transposed": lambda: one_layer(
            layers.Conv2DTranspose(2, 3, dilation_rate=(1, 2), name="bad"), (6, 6, 3)
        ),
        "pooled_3d": lambda: one_layer(layers.MaxPooling3D(name="bad"), (6, 6, 6, 2)),
        "dilated_3d": lambda: one_layer(
            layers.Conv3D(2, 3, dilation_rate=2, name="bad"), (6, 6, 6, 2)
        ),
        "grouped_3d": lambda: one_layer(layers.Conv3D(2, 3, groups=2, name="bad"), (6, 6, 6, 2)),
        "channels_first": lambda: one_layer(
            layers.Conv1D(2, 3, data_format="channels_first", name="bad"), (2, 6)
        ),
        "smooth_resize": lambda: one_layer(
            layers.UpSampling2D(interpolation="bicubic", name="bad"), (6, 6, 2)
        ),
    }


@pytest.mark.parametrize(
    "rule",
    [
        "dilated_transposed",
        "pooled_3d",
        "dilated_3d",
        "grouped_3d",
        "channels_first",
        "smooth_resize",
    ],
)
def test_what_is_refused_cannot_be_converted(rule, tmp_path):
    """A refusal is real: without it the converter fails, and leaves no file."""
    graph = refused()[rule]()
    assert TFLite().refusals(graph) == (f"bad: {refusals.message(getattr(refusals, rule))}",)
    with pytest.raises(ModelError, match="cannot be converted to TFLite") as failure:
        TFLite().emit(graph, tmp_path / "m.tflite")
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_open_axis_is_refused():
    assert TFLite().refusals(refused()["open_axis"]()) == (
        f"x: {refusals.message(refusals.open_axis)}",
    )


def test_neighbours_of_the_refused_are_taken():
    from keras import layers

    for layer, shape in (
        (layers.Conv2D(2, 3, data_format="channels_first"), (2, 6, 6)),
        (layers.DepthwiseConv1D(3, data_format="channels_first", use_bias=False), (2, 6)),
        (layers.Conv3DTranspose(2, 3, dilation_rate=2), (4, 4, 4, 2)),
        (layers.Conv2D(2, 3, groups=2), (6, 6, 4)),
        (layers.UpSampling2D(), (6, 6, 2)),
    ):
        assert TFLite().refusals(one_layer(layer, shape)) == ()


def test_all_reasons_come_at_once():
    import keras
    from keras import layers

    inputs = keras.Input((None, 6, 6, 2), name="x")
    graph = helpers.graph_of(
        keras.Model(
            inputs,
            layers.MaxPooling3D(name="pool")(layers.Conv3D(2, 2, groups=2, name="conv")(inputs)),
        )
    )
    assert [line.split(":")[0] for line in TFLite().refusals(graph)] == ["x", "pool", "conv"]


def test_a_recurrent_loop_is_refused_in_int8_only():
    from keras import layers

    looped = one_layer(layers.LSTM(3, name="bad"), (4, 2))
    assert TFLite().refusals(looped) == ()
    assert TFLite("int8").refusals(looped) == (f"bad: {refusals.message(refusals.looped)}",)
    assert (
        TFLite("int8").refusals(one_layer(layers.Bidirectional(layers.GRU(3, unroll=True)), (4, 2)))
        == ()
    )
    with pytest.raises(
        ModelError, match="unroll=True"
    ):  # the calibrator would take this process down
        TFLite("int8").emit(looped, Path("nowhere"), helpers.random_inputs(looped))


def test_a_failed_conversion_names_the_op_and_keeps_the_converters_words(tmp_path):
    import keras

    inputs = keras.Input((4, 4), name="x")
    graph = helpers.graph_of(keras.Model(inputs, keras.ops.inv(inputs), name="inverse"))
    with pytest.raises(ModelError) as failure:
        TFLite().emit(graph, tmp_path / "m.tflite")
    assert (
        str(failure.value)
        == "'inverse' cannot be converted to TFLite: it has no operator for TensorFlow's"
        " MatrixInverse (in 'MatrixInverse')"
    )
    assert "MatrixInverse" in failure.value.__notes__[0]


def test_int8_without_calibration_or_with_wrong_samples(tmp_path):
    graph = helpers.graph_of(helpers.conv_net())
    for calibration in (None, (np.zeros((0, 12, 12, 3)),)):
        with pytest.raises(UsageError, match="int8 needs calibration samples"):
            TFLite("int8").emit(graph, tmp_path / "m.tflite", calibration)
    with pytest.raises(UsageError, match=r"'image'.*takes samples of shape"):
        TFLite("int8").emit(graph, tmp_path / "m.tflite", (np.zeros((2, 12, 12, 1)),))
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written_or_read(tmp_path):
    graph = helpers.graph_of(helpers.dense_net())
    with pytest.raises(UsageError, match=r"cannot write .*missing"):
        TFLite().emit(graph, tmp_path / "missing" / "m.tflite")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*taken"):
        TFLite().emit(graph, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "text.tflite").write_text("not a model")
    for name in ("text.tflite", "none.tflite"):
        with pytest.raises(ModelError, match=f"LiteRT cannot load .*{name}"):
            TFLite().load(Artifact(tmp_path / name, "tflite", "fp32"))


# -- parity, catalog, silence ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "error", "accepted"),
    [
        ("fp32", 5e-5, True),
        ("fp32", 2e-4, False),
        ("int8", 0.1, True),
        ("int8", 2.0, False),
        ("int8", np.nan, False),
    ],
)
def test_parity_is_held_to_the_tolerance_of_the_precision(precision, error, accepted):
    reference = np.linspace(0, 10, 50, dtype=np.float32).reshape(10, 5)
    artifact = Artifact(Path("m.tflite"), "tflite", precision)
    off = reference.copy()
    off[3:] += np.float32(10 * error)
    inputs = (np.zeros((10, 1)),)
    if accepted:
        found = parity(artifact, lambda batch: (reference, off), inputs, (reference, reference))
        assert found.max_abs_diff == pytest.approx(10 * error, rel=0.05)
        assert found.relative == pytest.approx(error, rel=0.05)
        assert found.samples == 10
    else:
        with pytest.raises(
            ParityError, match=r"m\.tflite does not compute what the model computes: .* allowed is"
        ):
            parity(artifact, lambda batch: (reference, off), inputs, (reference, reference))


def test_parity_of_constant_outputs_and_of_wrong_shapes():
    constant = np.full((4, 2), 3.0)
    artifact = Artifact(Path("m.tflite"), "tflite", "fp32")
    assert parity(artifact, lambda batch: (constant,), (constant,), (constant,)).relative == 0
    assert parity(
        artifact, lambda batch: (constant + 3e-5,), (constant,), (constant,)
    ).relative == pytest.approx(1e-5, rel=0.01)
    with pytest.raises(ParityError, match="shape"):
        parity(artifact, lambda batch: (constant[:, :1],), (constant,), (constant,))


def test_catalog():
    assert set(FORMATS) == {"tflite", "onnx"}
    made: Target = target("tflite", "int8")
    assert (made.name, made.precision) == ("tflite", "int8")
    assert made == TFLite("int8")
    with pytest.raises(UsageError, match="'coreml'; known are tflite, onnx"):
        target("coreml")
    with pytest.raises(
        UsageError,
        match=(
            "unknown precision 'int4': did you mean 'int8'\\?; choose fp32, fp16, dynamic, int8 or"
            " int16x8"
        ),
    ):
        target("tflite", "int4")


def test_quiet_takes_all_streams_and_leaves_handlers_working(capfd):
    with quiet() as noise:
        sys.stdout.write("from Python\n")
        os.write(1, b"from C\n")
        os.write(2, b"error\n")
        handler = logging.StreamHandler()
        assert {"from Python", "from C", "error"} <= set(noise().splitlines())
    record = logging.LogRecord("test", logging.WARNING, "", 0, "later", None, None)
    handler.emit(record)
    assert capfd.readouterr() == ("", "later\n")


def test_targets_is_imported_as_lrfc_targets():
    done = subprocess.run(
        [sys.executable, "-c", "import targets"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ImportError: import this package as lrfc.targets" in done.stderr


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
    with np.load(folder / "cifar10_train.npz") as data:
        calibration = (data["x"][:200].astype(np.float32),)
    for precision, least in (("fp32", 0.9173), ("int8", 0.912)):
        artifact = TFLite(precision).emit(graph, tmp_path / precision, calibration)
        assert (TFLite(precision).load(artifact)((x,))[0].argmax(-1) == y).mean() >= least
