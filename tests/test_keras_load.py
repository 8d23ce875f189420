"""Loading of model files of all Keras versions, and the messages for those that are refused."""

from __future__ import annotations

import json
import zipfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.errors import DependencyError, ModelError, UsageError
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import legacy as keras_legacy
from lrfc.ir.keras import load as keras_load
from tests import helpers

# Keras and tf_keras warn of many of the files in these tests.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.keras"
    helpers.conv_net(size=8).save(path)
    return path


def legacy(tmp_path: Path, model: Any, seed: int = 0) -> Path:
    """A file of Keras 2 with random weights."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            rng.uniform(0.2, 1.0, w.shape).astype(w.dtype) / max(1, np.prod(w.shape[:-1])) ** 0.5
            for w in model.get_weights()
        ]
    )
    path = tmp_path / "legacy.h5"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def old() -> Any:
    import tf_keras

    return tf_keras


def same_as_legacy(path: Path, model: Any, batch: tuple[np.ndarray, ...]) -> None:
    before = model(batch[0] if len(batch) == 1 else list(batch), training=False)
    loaded = keras_load.load(path)
    assert helpers.difference((np.asarray(before),), keras_io.predict(loaded, batch)) < 1e-5
    helpers.same(helpers.graph_of(loaded), loaded)


# -- files of Keras 3 ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.keras.bak", "noname"])
def test_the_content_decides_not_the_suffix(tmp_path, name) -> None:
    model = helpers.conv_net(size=8)
    path = tmp_path / ("model.h5" if name.endswith("h5") else "model.keras")
    model.save(path)
    path = path.rename(tmp_path / name)
    helpers.same(model, keras_load.load(path), 1e-6)


def test_a_missing_file(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"none\.keras: no such file"):
        keras_load.load(tmp_path / "none.keras")


def test_a_folder(tmp_path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        keras_load.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"hello, this is a text file\n"])
def test_a_file_of_something_else(tmp_path, content) -> None:
    path = tmp_path / "text.keras"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a Keras model"):
        keras_load.load(path)


def test_a_zip_of_something_else(tmp_path) -> None:
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ModelError, match=r"without a config\.json"):
        keras_load.load(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_truncated_file(tmp_path, suffix, part) -> None:
    path = tmp_path / f"model{suffix}"
    helpers.conv_net(size=8).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ModelError, match="truncated or damaged"):
        keras_load.load(path)


def test_weights_without_a_model(tmp_path) -> None:
    path = tmp_path / "some.weights.h5"
    helpers.conv_net(size=8).save_weights(path)
    with pytest.raises(ModelError, match="holds weights but no model"):
        keras_load.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path, value) -> None:
    model = helpers.conv_net(size=8)
    kernel = np.array(model.get_layer("conv1").kernel)
    kernel[0, 0, 0, 0] = value
    model.get_layer("conv1").kernel.assign(kernel)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match="weight 'conv1/kernel' holds NaN or infinite values"):
        keras_load.load(tmp_path / "model.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_code_runs_only_when_allowed(tmp_path, suffix) -> None:
    import keras

    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: 2 * x, output_shape=(3,))(inputs))
    path = tmp_path / f"model{suffix}"
    model.save(path)
    with pytest.raises(ModelError, match="--unsafe-load"):
        keras_load.load(path)
    loaded = keras_load.load(path, unsafe=True)
    assert keras_io.predict(loaded, (np.ones((2, 3), np.float32),))[0].tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_unknown_custom_class(tmp_path, suffix) -> None:
    import keras

    class Doubling(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((3,))
    path = tmp_path / f"model{suffix}"
    keras.Model(inputs, Doubling()(inputs)).save(path)
    with pytest.raises(
        ModelError,
        match=r"uses 'Doubling', which is not part of Keras: .*register_keras_serializable",
    ):
        keras_load.load(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("9.1.0", r"written by Keras 9\.1\.0, cannot be read by Keras 3\..*load it with the Keras"),
        (installed("keras"), r"cannot be read by the Keras that wrote it, 3\..*may be damaged"),
    ],
)
def test_a_file_that_keras_cannot_read_says_which_keras_wrote_it(saved, version, message) -> None:
    with zipfile.ZipFile(saved) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1]["config"]["kernel_size"] = "large"
    parts["config.json"] = json.dumps(config).encode()
    parts["metadata.json"] = json.dumps({"keras_version": version}).encode()
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match=message):
        keras_load.load(saved)


# -- files of Keras 1 and 2 ------------------------------------------------------------------------


def test_legacy_convolutions(tmp_path, old) -> None:
    """Keras 3 refuses some configurations of Keras 2.

    They are ``groups`` in a DepthwiseConv2D, a BatchNormalization axis in a list, and the old form
    of activations.
    """
    x = inputs = old.Input((8, 8, 3), name="image")
    x = old.layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(x)
    x = old.layers.BatchNormalization(name="bn")(x)
    x = old.layers.ReLU(6.0, name="relu6")(x)
    x = old.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = old.layers.LeakyReLU(alpha=0.1, name="leaky")(x)
    x = old.layers.Dense(3, activation="softmax", name="head")(
        old.layers.GlobalAveragePooling2D(name="pool")(x)
    )
    model = old.Model(inputs, x, name="legacy")
    path = legacy(tmp_path, model)
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "DepthwiseConv2D":
                layer["config"]["groups"] = 1
        file.attrs["model_config"] = json.dumps(config)
    same_as_legacy(
        path, model, (np.random.default_rng(1).standard_normal((4, 8, 8, 3)).astype(np.float32),)
    )
    graph = helpers.graph_of(keras_load.load(path))
    assert [op.name for op in graph] == [
        "image",
        "conv",
        "bn",
        "relu6",
        "depthwise",
        "leaky",
        "pool",
        "head",
    ]
    assert graph.name == "legacy"


def test_legacy_functions_of_tensorflow(tmp_path, old) -> None:
    """``x / 127.5 - 1`` and similar functions, as preprocess_input of Keras 2 records them."""
    import tensorflow as tf

    inputs = old.Input((6, 6, 3), name="image")
    x = old.layers.Conv2D(4, 3, name="conv")(inputs / 127.5 - 1.0)
    y = tf.concat([x[:, 1:, ..., :2], tf.nn.relu(x)[:, :-1, :, 2:]], axis=-1)
    y = tf.reduce_mean(y, axis=[1, 2], keepdims=True) * y + tf.sigmoid(y)
    y = tf.transpose(tf.reshape(y, (-1, 12, 4)), perm=[0, 2, 1])
    model = old.Model(inputs, tf.clip_by_value(y, -0.2, 0.9))
    same_as_legacy(
        legacy(tmp_path, model),
        model,
        (np.random.default_rng(1).uniform(0, 255, (3, 6, 6, 3)).astype(np.float32),),
    )


def test_legacy_function_without_a_counterpart(tmp_path, old) -> None:
    import tensorflow as tf

    inputs = old.Input((4,))
    path = legacy(tmp_path, old.Model(inputs, tf.math.lgamma(old.layers.Dense(3)(inputs))))
    with pytest.raises(
        ModelError,
        match=(
            r"written by Keras 2\..* cannot be carried over to Keras 3.* calls"
            r" tf\.math\.lgamma.*model\.save\('model\.keras'\)"
        ),
    ):
        keras_load.load(path)


def test_legacy_layer_without_a_counterpart(tmp_path, old) -> None:
    inputs = old.Input((6, 6, 2))
    path = legacy(tmp_path, old.Model(inputs, old.layers.LocallyConnected2D(2, 3)(inputs)))
    with pytest.raises(ModelError, match="LocallyConnected2D is not part of Keras 3"):
        keras_load.load(path)


def test_legacy_hard_sigmoid_keeps_its_meaning(tmp_path, old) -> None:
    """Keras 3 reads such a file without complaint and computes something else."""
    inputs = old.Input((5,))
    x = old.layers.Activation("hard_sigmoid")(
        old.layers.Dense(4, activation="hard_sigmoid")(inputs)
    )
    model = old.Model(inputs, x)
    same_as_legacy(
        legacy(tmp_path, model),
        model,
        (np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32) * 2,),
    )


def test_legacy_recurrent_hard_sigmoid_is_refused(tmp_path, old) -> None:
    inputs = old.Input((5, 3))
    path = legacy(
        tmp_path, old.Model(inputs, old.layers.LSTM(4, recurrent_activation="hard_sigmoid")(inputs))
    )
    with pytest.raises(ModelError, match="LSTM uses Keras 2's hard_sigmoid"):
        keras_load.load(path)


def test_legacy_nested_and_shared_layers(tmp_path, old) -> None:
    backbone = old.Sequential(
        [
            old.Input((6,)),
            old.layers.Dense(5, activation="relu", name="first"),
            old.layers.Dense(4, name="second"),
        ],
        name="backbone",
    )
    left, right = old.Input((6,), name="left"), old.Input((6,), name="right")
    dense = old.layers.Dense(4, activation="swish", name="twice")
    x = old.layers.Add(name="add")([dense(backbone(left)), dense(backbone(right) / 2.0)])
    model = old.Model([left, right], x)
    path = legacy(tmp_path, model)
    rng = np.random.default_rng(1)
    same_as_legacy(
        path, model, tuple(rng.standard_normal((3, 6)).astype(np.float32) for _ in range(2))
    )
    assert keras_load.load(path).count_params() == model.count_params()


def test_legacy_recurrent_layers(tmp_path, old) -> None:
    tokens = old.Input((7,), name="tokens")
    x = old.layers.Embedding(10, 6, input_length=7, mask_zero=True)(tokens) / 2.0
    x, h, c = old.layers.LSTM(4, return_sequences=True, return_state=True)(x)
    x = old.layers.LSTM(4, return_sequences=True)(x, initial_state=[h, c])
    x = old.layers.Bidirectional(old.layers.GRU(3, return_sequences=True))(x)
    x = old.layers.TimeDistributed(old.layers.Dense(2, activation="tanh"))(x)
    model = old.Model(tokens, x)
    same_as_legacy(
        legacy(tmp_path, model),
        model,
        (np.random.default_rng(1).integers(1, 10, (3, 7)).astype(np.float32),),
    )


def test_legacy_lambda_runs_only_when_allowed(tmp_path, old) -> None:
    inputs = old.Input((3,))
    x = old.layers.Lambda(lambda x: 2 * x)(inputs) / 4.0
    path = legacy(tmp_path, old.Model(inputs, x))
    with pytest.raises(ModelError, match="--unsafe-load"):
        keras_load.load(path)
    loaded = keras_load.load(path, unsafe=True)
    assert keras_io.predict(loaded, (np.ones((2, 3), np.float32),))[0].tolist() == [[0.5] * 3] * 2


def test_legacy_keras_archive(tmp_path, old) -> None:
    inputs = old.Input((6, 6, 3))
    model = old.Model(inputs, old.layers.DepthwiseConv2D(3)(inputs / 2.0))
    model.save(tmp_path / "legacy.keras")
    same_as_legacy(
        tmp_path / "legacy.keras",
        model,
        (np.random.default_rng(1).standard_normal((2, 6, 6, 3)).astype(np.float32),),
    )


def test_legacy_relu6_and_separable_convolutions(tmp_path, old) -> None:
    """ReLU6 as a layer, as a function by name and as a TensorFlow call, as in early MobileNets."""
    import tensorflow as tf

    inputs = old.Input((8, 8, 3))
    x = old.layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2)(inputs)
    x = old.layers.Activation(tf.nn.relu6)(tf.nn.relu6(old.layers.ReLU(6.0)(x)) * 0.5 + 1.0)
    x = old.layers.SeparableConv1D(4, 3)(old.layers.Reshape((64, 6))(x))
    model = old.Model(inputs, x - tf.reduce_mean(x, axis=1, keepdims=True))
    path = legacy(tmp_path, model)
    same_as_legacy(
        path,
        model,
        (np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32) * 4,),
    )


@pytest.mark.parametrize("name", ["BatchNormalizationV1", "BatchNormalizationV2"])
def test_legacy_names_of_layers(tmp_path, old, name) -> None:
    """TensorFlow 1.13 to 1.15 used other names for its two batch normalizations."""
    inputs = old.Input((5,))
    model = old.Model(
        inputs, old.layers.BatchNormalization(name="bn")(old.layers.Dense(4)(inputs) / 2.0)
    )
    path = legacy(tmp_path, model)
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace(
            '"BatchNormalization"', f'"{name}"'
        )
    same_as_legacy(
        path, model, (np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32),)
    )


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_legacy_names_with_a_slash(tmp_path, old, suffix) -> None:
    """Keras 3 forbids them: such a layer gets a unique name, the same in each load."""
    inner_input = old.Input((8, 8, 4), name="in/ner")
    inner = old.Model(
        inner_input, old.layers.Conv2D(4, 3, name="block/conv2")(inner_input), name="inner/model"
    )
    inputs = old.Input((8, 8, 3), name="image/input")
    x = old.layers.Conv2D(4, 3, padding="same", name="block_conv")(inputs)
    x = inner(old.layers.Conv2D(4, 3, padding="same", name="block/conv")(x))
    x = old.layers.TimeDistributed(old.layers.Dense(3, name="a/b"), name="each/row")(x)
    model = old.Model(inputs, x, name="a/model")
    path = tmp_path / f"slashes{suffix}"
    model.save(path)
    same_as_legacy(
        path, model, (np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32),)
    )
    names = [layer.name for layer in keras_load.load(path).layers]
    assert names == ["image_input", "block_conv", "block_conv_1", "inner_model", "each_row"]


def test_legacy_calls_in_a_cycle(tmp_path, old) -> None:
    """tf_keras would loop for ever."""
    inputs = old.Input((4,), name="input")
    path = legacy(
        tmp_path,
        old.Model(
            inputs, old.layers.Dense(4, name="b")(old.layers.Dense(4, name="a")(inputs)) / 2.0
        ),
    )
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        next(layer for layer in config["config"]["layers"] if layer["name"] == "a")[
            "inbound_nodes"
        ] = [[["b", 0, 0, {}]]]
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match="layer 'a' waits for an output that never comes"):
        keras_load.load(path)


def test_a_rebuilt_model_that_differs_is_refused(tmp_path, old, monkeypatch) -> None:
    inputs = old.Input((4,))
    path = legacy(tmp_path, old.Model(inputs, old.layers.Dense(3)(inputs) / 2.0))
    from lrfc.ir.keras import rebuild as keras_rebuild

    true = keras_rebuild.rebuild

    def wrong(model: Any) -> Any:
        new = true(model)
        new.set_weights([1.1 * w for w in new.get_weights()])
        return new

    monkeypatch.setattr(keras_rebuild, "rebuild", wrong)
    with pytest.raises(ModelError, match=r"its outputs differ by .* of their scale"):
        keras_load.load(path)


def test_legacy_files_need_tf_keras(tmp_path, old, monkeypatch) -> None:
    inputs = old.Input((4,))
    path = legacy(tmp_path, old.Model(inputs, old.layers.Dense(3)(inputs) / 2.0))
    monkeypatch.setitem(__import__("sys").modules, "tf_keras", None)
    with pytest.raises(DependencyError, match="tf-keras"):
        keras_legacy.read(path, elements=1000, unsafe=False)


# -- real files ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_legacy_file_answers_as_in_keras_2(lrfc_data, old) -> None:
    path = lrfc_data / "models" / "mini_mobilenetv2_cifar10.h5"
    with np.load(lrfc_data / "cifar10_test.npz") as data:
        x, y = data["x"][:1000], data["y"][:1000].ravel()
    mean = np.array([125.307, 122.950, 113.865], np.float32)
    batch = ((x - mean) / mean).astype(np.float32)
    before = np.asarray(old.models.load_model(path, compile=False)(batch, training=False))
    after = keras_io.predict(keras_load.load(path), (batch,))[0]
    assert helpers.difference((before,), (after,)) < 1e-5
    assert np.mean(after.reshape(1000, -1).argmax(axis=1) == y) > 0.88
