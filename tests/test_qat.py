"""Quantisation-aware training.

The tf_keras model computes the graph, the file is int8 throughout and as accurate as the network,
and Keras 3 is not changed.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers

import lrfc
from lrfc.data.dataset import Data, Split
from lrfc.errors import DependencyError, ModelError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras.tf_keras_lower import lower, raised, unlowered
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.quantize_aware import QuantizeAware, QuantizedModel
from lrfc.state import Progress, State
from lrfc.targets.parity import parity
from lrfc.targets.tflite.target import TFLite
from lrfc.training import annotate
from tests import fake_runner, helpers
from tests.compression import learnt, state_of
from tests.fake_runner import FakeRunner

DIGITS = "examples/digits.keras"


@pytest.fixture(autouse=True)
def _fake_host(monkeypatch):
    """No build fails because the machine is busy."""
    fake_runner.install(monkeypatch, FakeRunner(2.0))


@pytest.mark.parametrize(
    "name",
    ["conv_net", "dense_net", "residual", "branches", "two_inputs", "shared_conv", "nested_twice"],
)
def test_the_lowered_model_computes_the_graph(name):
    import tensorflow as tf

    graph = helpers.graph_of(getattr(helpers, name)())
    assert unlowered(graph) == ()
    lowered = lower(graph)
    inputs = helpers.random_inputs(graph, 4)
    outputs = tuple(
        np.asarray(y) for y in tf.nest.flatten(lowered.model([tf.constant(x) for x in inputs]))
    )
    assert helpers.difference(keras_io.predict(graph, inputs), outputs) < 1e-5
    assert set(lowered.layers) == {op.name for op in graph}


def test_configurations_are_carried_over():
    import tensorflow as tf

    inputs = keras.Input((8, 8, 4), name="in-put")
    x = layers.LeakyReLU(0.2)(
        layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
    )
    x = layers.Conv2DTranspose(5, 2, strides=2)(
        layers.ReLU(6.0)(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    )
    graph = helpers.graph_of(
        helpers.random_weights(
            keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))
        )
    )
    batch = helpers.random_inputs(graph, 4)
    (given,) = tf.nest.flatten(lower(graph).model(batch[0]))
    assert helpers.difference(keras_io.predict(graph, batch), (np.asarray(given),)) < 1e-5


@pytest.mark.parametrize("padding", ["same", "valid", "causal"])
@pytest.mark.parametrize("options", [{"strides": 2}, {"dilation_rate": 2}, {"groups": 2}])
def test_a_convolution_along_one_axis_is_carried_over(padding, options):
    inputs = keras.Input((11, 4), name="x")
    graph = helpers.graph_of(
        helpers.random_weights(
            keras.Model(inputs, layers.Conv1D(6, 3, padding=padding, **options)(inputs))
        )
    )
    batch = helpers.random_inputs(graph, 4)
    assert (
        helpers.difference(
            keras_io.predict(graph, batch), (np.asarray(lower(graph).model(batch[0])),)
        )
        < 1e-5
    )


def test_weights_come_back_by_name():
    graph = helpers.graph_of(
        keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.DepthwiseConv2D(3, name="a"),
                layers.Conv2D(2, 1, name="b"),
            ]
        )
    )
    kernel = np.ones(graph.op("a").weights["kernel"].shape, np.float32)
    back = raised(graph, {"a": {"depthwise_kernel": kernel}, "other": {}})
    np.testing.assert_array_equal(back.op("a").weights["kernel"], kernel)
    assert back.op("b") is graph.op("b")


def test_functions_of_keras_ops_are_called_as_they_are(tmp_path):
    """As in the shortcuts of some residual networks."""
    inputs = keras.Input((8, 8, 3), name="x")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.Add()(
        [
            keras.ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1))),
            layers.Conv2D(6, 3, strides=2, padding="same")(x),
        ]
    )
    graph = helpers.graph_of(
        helpers.random_weights(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    )
    state = state_of(graph, samples=48)
    trained = QuantizeAware(epochs=1)(state)
    file = TFLite("int8").emit_trained(
        trained.graph, trained.fact(QuantizedModel).model, tmp_path / "m.tflite"
    )
    samples = state.data.train.inputs
    assert (
        parity(
            file, TFLite("int8").load(file), samples, keras_io.predict(trained.graph, samples)
        ).distance
        < 0.2
    )


def test_a_layer_that_tf_keras_lacks_is_named():
    inputs = keras.Input((4, 3), name="x")
    graph = helpers.graph_of(keras.Model(inputs, layers.RMSNormalization(name="norm")(inputs)))
    assert unlowered(graph) == ("norm",)
    with pytest.raises(ModelError, match=r"norm.*: tf_keras has no such layer"):
        lower(graph)


def folded(state: State) -> State:
    return State(fold_batchnorm(state.graph), state.original, state.data)


def test_the_file_is_int8_throughout_and_as_good_as_the_network(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    state = folded(learnt())
    trained = QuantizeAware(epochs=1, learning_rate=1e-4)(state)
    found = trained.fact(QuantizedModel)
    assert len(found.scores) == 2
    assert max(found.scores) == found.scores[found.best]
    assert str(trained.graph) == str(state.graph)
    tflite = TFLite("int8")
    file = tflite.emit_trained(trained.graph, found.model, tmp_path / "m.tflite")
    split = state.data.validation
    parity(file, tflite.load(file), split.inputs, keras_io.predict(trained.graph, split.inputs))
    right = [
        float(np.mean(y[0].argmax(-1) == split.targets[0]))
        for y in (tflite.load(file)(split.inputs), keras_io.predict(state.graph, split.inputs))
    ]
    assert right[0] > right[1] - 0.03
    made = Interpreter(model_path=str(file.path))
    tensors = {entry["index"]: entry for entry in made.get_tensor_details()}
    float_ops = {
        entry["op_name"]
        for entry in made._get_ops_details()
        if any(tensors[i]["dtype"] is np.float32 for i in entry["inputs"])
    }
    assert float_ops == {"QUANTIZE"}


@pytest.mark.parametrize("name", ["residual", "branches", "shared_conv"])
def test_other_shapes_of_networks(name, tmp_path):
    state = state_of(fold_batchnorm(helpers.graph_of(getattr(helpers, name)())), samples=48)
    trained = QuantizeAware(epochs=0)(state)
    tflite = TFLite("int8", int8_io=True)
    file = tflite.emit_trained(
        trained.graph, trained.fact(QuantizedModel).model, tmp_path / "m.tflite"
    )
    found = parity(
        file,
        tflite.load(file),
        state.data.train.inputs,
        keras_io.predict(state.graph, state.data.train.inputs),
    )
    assert 0 < found.distance < 0.2


def norm(x):
    return layers.ReLU()(layers.BatchNormalization()(x))


def classes(x):
    return layers.Softmax()(layers.Dense(3)(layers.Flatten()(x)))


def along_one_axis():
    inputs = keras.Input((24, 4), name="x")
    x = norm(
        layers.Conv1D(8, 5, strides=2, padding="causal", use_bias=False)(
            norm(layers.Conv1D(6, 3, padding="same")(inputs))
        )
    )
    return keras.Model(inputs, classes(layers.Conv1D(8, 3, dilation_rate=2, groups=2)(x)))


def along_three_axes():
    inputs = keras.Input((6, 6, 6, 2), name="x")
    x = norm(layers.Conv3D(6, 3, strides=2, padding="same")(norm(layers.Conv3D(4, 3)(inputs))))
    return keras.Model(
        inputs, layers.Softmax()(layers.Dense(3)(layers.GlobalAveragePooling3D()(x)))
    )


def two_signals():
    inputs = [keras.Input((24, 3), name="a"), keras.Input((24, 2), name="b")]
    x = layers.Concatenate()(
        [layers.Conv1D(6, 5, strides=2, padding="same", activation="relu")(x) for x in inputs]
    )
    return keras.Model(inputs, classes(norm(layers.Conv1D(8, 3, strides=2)(x))))


@pytest.mark.parametrize("made", [along_one_axis, along_three_axes, two_signals])
def test_convolutions_along_other_axes(made, tmp_path):
    """TFLite rounds those along one axis with a scale per channel.

    Those along three axes are computed in float.
    """
    from ai_edge_litert.interpreter import Interpreter

    graph = Canonicalise()(state_of(helpers.graph_of(helpers.random_weights(made())))).graph
    state = state_of(fold_batchnorm(graph), samples=48)
    trained = QuantizeAware(epochs=1)(state)
    tflite, model = TFLite("int8"), trained.fact(QuantizedModel).model
    file = tflite.emit_trained(trained.graph, model, tmp_path / "m.tflite")
    inputs = state.data.train.inputs
    assert (
        parity(file, tflite.load(file), inputs, keras_io.predict(trained.graph, inputs)).distance
        < 0.1
    )
    interpreter = Interpreter(model_path=str(file.path))
    tensors = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
    operations = [
        (entry["op_name"], [tensors[i] for i in entry["inputs"] if i >= 0])
        for entry in interpreter._get_ops_details()
    ]
    assert [operands[1]["dtype"] for name, operands in operations if name == "FULLY_CONNECTED"] == [
        np.int8
    ]
    scales = [
        sorted(operands[1]["quantization_parameters"]["scales"])
        for name, operands in operations
        if name == "CONV_2D"
    ]
    learnt = [
        sorted(np.abs(op.weights["kernel"]).max((0, 1)) / 127)
        for op in trained.graph
        if op.kind == "Conv1D"
    ]
    assert sorted(scales) == [pytest.approx(each, rel=1e-3) for each in sorted(learnt)]
    if made is along_three_axes:
        assert "CONV_3D" in [name for name, _ in operations]
    else:
        assert {
            name
            for name, operands in operations
            if any(each["dtype"] is np.float32 for each in operands)
        } == {"QUANTIZE"}


def test_the_range_of_each_input_is_its_own():
    graph = Canonicalise()(state_of(helpers.graph_of(helpers.random_weights(two_signals())))).graph
    state = state_of(fold_batchnorm(graph), samples=48)
    a, b = state.data.train.inputs
    split = Split((a, b / 100))
    model = (
        QuantizeAware(epochs=0)(State(state.graph, state.graph, Data("two", split, split, split)))
        .fact(QuantizedModel)
        .model
    )
    highest = [
        float(layer.get_weights()[1])
        for layer in model.layers
        if layer.name.startswith("quantize_layer")
    ]
    np.testing.assert_allclose(highest, [a.max(), b.max() / 100], rtol=1e-5)


def test_inputs_of_integers_are_not_rounded(tmp_path):
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    model = keras.Model(
        tokens, classes(layers.Conv1D(6, 3, activation="relu")(layers.Embedding(20, 8)(tokens)))
    )
    state = state_of(
        Canonicalise()(state_of(helpers.graph_of(helpers.random_weights(model)))).graph, samples=48
    )
    trained = QuantizeAware(epochs=0)(state)
    file = TFLite("int8").emit_trained(
        trained.graph, trained.fact(QuantizedModel).model, tmp_path / "m.tflite"
    )
    inputs = state.data.train.inputs
    assert (
        parity(
            file, TFLite("int8").load(file), inputs, keras_io.predict(trained.graph, inputs)
        ).distance
        < 0.1
    )


def test_a_network_that_cannot_be_trained_is_quantised_without_it(tmp_path, monkeypatch):
    lines: list[str] = []

    def refuse(*given):
        raise UnboundLocalError("no rule")

    model = helpers.conv_net(size=8, filters=(48, 64))
    x = np.random.default_rng(1).standard_normal((200, 8, 8, 3)).astype(np.float32)
    build = partial(
        lrfc.build,
        model,
        data={"x": x, "y": np.argmax(model.predict(x, verbose=0), axis=1)},
        max_macs="60%",
        methods=("channel_svd",),
        epochs=0,
        precision="int8",
        qat=True,
    )
    with monkeypatch.context() as patch:
        patch.setattr(annotate, "_scheme", refuse)
        build(out=tmp_path / "refused", progress=Progress(log=lines.append))
    assert (
        "quantised after training: tensorflow-model-optimization refuses 'conv_net': no rule; leave"
        " out --qat" in "".join(lines)
    )
    monkeypatch.setattr(
        TFLite, "emit_trained", lambda *given: (_ for _ in ()).throw(ModelError("no such op"))
    )
    build(out=tmp_path / "unwritten", progress=Progress(log=lines.append))
    assert "but quantised after training: no such op" in "".join(lines)


def test_keras_3_stays_keras_3():
    QuantizeAware(epochs=0)(folded(learnt()))
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert keras.__version__.startswith("3.")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'lrfc\[qat\]'"):
        annotate.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "onnx", "precision": "int8"}, "not onnx int8"),
        ({"target": "tflite", "precision": "fp16"}, "not tflite fp16"),
        ({}, "not tflite fp32"),
    ],
)
def test_other_targets_and_precisions_are_refused(options, message):
    with pytest.raises(
        UsageError, match=f"--qat goes with --target tflite and --precision int8, {message}"
    ):
        lrfc.build(DIGITS, data="digits", qat=True, out="unused", **options)


def test_without_data_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UsageError, match="--qat trains the network"):
        lrfc.build(DIGITS, precision="int8", qat=True, out=tmp_path / "out")


def test_digits_end_to_end(tmp_path):
    result = lrfc.build(
        DIGITS,
        data="digits",
        max_macs="50%",
        methods=("spatial_svd",),
        epochs=0,
        precision="int8",
        qat=True,
        int8_io=True,
        out=tmp_path / "out",
    )
    assert result.manifest.after.accuracy > result.manifest.before.accuracy - 0.02
    assert [scale.name for scale in result.manifest.artifacts[0].scales] == [
        "image",
        "digit__activation",
    ]
    assert result.manifest.parity.max_abs_diff < 0.2
