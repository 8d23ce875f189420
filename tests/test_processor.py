"""Builds with oneDNN and without it: the same networks work, and the manifest names the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.engine.replay import Locked
from lrfc.errors import ModelError
from lrfc.ir import processor, runnable
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.ir.processor import VARIABLE, OneDNN
from lrfc.passes.canonicalise import lower_transposed, move_channels
from lrfc.protocols import Artifact
from lrfc.results.manifest import Manifest
from lrfc.targets.catalog import target
from tests import fake_runner, helpers
from tests.fake_runner import FakeRunner


def channels_first(form: str = "channels_first") -> Any:
    """A network with the ops that not every processor runs.

    They are those with channels first, and a dilated transposed convolution.
    """
    import keras
    from keras import layers

    first = form == "channels_first"
    where: dict[str, Any] = {"data_format": form}
    x = image = keras.Input((1, 8, 8) if first else (8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv1", **where)(x)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(axis=1 if first else -1, name="bn1")(x))
    x = layers.MaxPooling2D(name="pool", **where)(
        layers.Conv2D(24, 3, padding="same", activation="relu", name="conv2", **where)(x)
    )
    x = skip = layers.Conv2DTranspose(8, 3, dilation_rate=2, padding="same", name="up", **where)(x)
    x = layers.Add(name="add")(
        [layers.DepthwiseConv2D(3, padding="same", name="depthwise", **where)(x), skip]
    )
    label = layers.Dense(10, activation="softmax", name="label")(
        layers.Flatten(name="flat", **where)(x)
    )
    return keras.Model(image, [label, layers.Conv2D(2, 1, name="mask", **where)(x)], name="net")


@pytest.mark.parametrize("form", ["tflite", "onnx"])
def test_a_network_with_channels_first_is_built(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built without data and without running the original, it computes the same outputs."""
    monkeypatch.chdir(tmp_path)
    fake_runner.install(monkeypatch, FakeRunner(2.0))  # what is measured here is not the time
    model = helpers.random_weights(channels_first())
    model.save("net.keras")
    result = lrfc.build(
        "net.keras",
        target=form,
        max_macs="70%",
        methods=("channel_svd", "svd"),
        epochs=0,
        out="out",
    )
    assert result.manifest.onednn is processor.onednn().on
    built = keras_io.from_keras(keras_load.load(tmp_path / "out" / "model.keras", unsafe=False))
    original = keras_io.from_keras(model)
    assert [built.tensors(name) for name in built.inputs] == [
        original.tensors(name) for name in original.inputs
    ]
    assert [built.tensor(ref) for ref in built.outputs] == [
        original.tensor(ref) for ref in original.outputs
    ]
    assert not any(op.attrs.get("data_format") == "channels_first" for op in built)

    # Compare the file with the built model, and the canonical graph with the same network that has
    # channels last.
    last = channels_first("channels_last")
    last.set_weights(model.get_weights())
    inputs = helpers.random_inputs(original, 8)
    label, mask = keras_io.predict(
        lower_transposed(keras_io.from_keras(last)), (np.moveaxis(inputs[0], 1, -1),)
    )
    assert result.manifest.artifacts[0].format == form
    file = target(form, "fp32").load(Artifact(result.artifact, form, "fp32"))(inputs)
    assert [y.shape for y in file] == [label.shape, np.moveaxis(mask, -1, 1).shape]
    ours = keras_io.predict(built, inputs)
    assert helpers.difference(file, ours) < 1e-4
    moved = lower_transposed(move_channels(original))
    assert (
        helpers.difference((label, np.moveaxis(mask, -1, 1)), keras_io.predict(moved, inputs))
        < 1e-5
    )


def test_a_model_that_needs_onednn_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras
    from keras import layers

    clip = keras.Input((4, 3, 8, 8), name="x")
    frames = layers.TimeDistributed(
        layers.Conv2D(2, 3, data_format="channels_first"), name="frames"
    )
    model = keras.Model(
        clip,
        layers.Dense(2, name="head")(layers.Flatten(data_format="channels_last")(frames(clip))),
        name="net",
    )
    monkeypatch.setattr(processor, "onednn", lambda: OneDNN(on=False, decided_by="environment"))
    with pytest.raises(
        ModelError,
        match=(
            rf"'net' computes with channels first in frames, .* set {VARIABLE}=1 before Python"
            r" starts"
        ),
    ):
        lrfc.build(model, data={"x": np.zeros((8, 4, 3, 8, 8), np.float32)})
    runnable.check(keras_io.from_keras(helpers.conv_net()))


def test_a_legacy_file_that_cannot_be_compared_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outputs in Keras 2 and Keras 3 are compared by running both."""
    import tensorflow as tf
    import tf_keras

    from lrfc.ir.keras import legacy as keras_legacy

    def unable(*args: Any, **options: Any) -> Any:
        raise tf.errors.UnimplementedError(
            None, None, "The Conv2D op currently only supports the NHWC tensor format on the CPU."
        )

    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(4,))])
    monkeypatch.setattr(processor, "onednn", lambda: OneDNN(on=False, decided_by="environment"))
    monkeypatch.setattr(type(model), "__call__", unable)
    with pytest.raises(
        ModelError,
        match=(
            rf"only supports the NHWC .* oneDNN, which can, is off, .*: set {VARIABLE}=1 before"
            r" Python starts"
        ),
    ):
        keras_legacy.difference(model, model)


def test_a_replayed_build_reports_another_setting(tmp_path: Path) -> None:
    def manifest(*, onednn: bool | None) -> Manifest:
        from tests.test_folder import example

        return example().model_copy(update={"onednn": onednn})

    def differences(*, onednn: bool | None) -> list[str]:
        lines = Locked(tmp_path, manifest(onednn=onednn)).differences()
        return [line for line in lines if line.startswith("oneDNN")]

    now = processor.onednn()
    assert differences(onednn=now.on) == differences(onednn=None) == []
    assert differences(onednn=not now.on) == [f"oneDNN {'off' if now.on else 'on'} → {now}"]


def test_manifests_without_the_field_are_read(tmp_path: Path) -> None:
    from tests.test_folder import example

    value = json.loads(example().write(tmp_path).read_text(encoding="utf-8"))
    del value["onednn"]
    (tmp_path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    assert Manifest.read(tmp_path).onednn is None
