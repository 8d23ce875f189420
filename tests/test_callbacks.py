"""Keras callbacks of the user, called by the fine-tune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import lrfc
from lrfc.errors import UsageError
from lrfc.ir.keras import io as keras_io
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.state import Progress, State
from tests import helpers
from tests.test_tensorboard import compressed


class Recorder(keras.callbacks.Callback):
    """Record each call with its number and its logs; ``stop``: the epoch that ends the training."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[str, int | None, dict[str, float]]] = []
        self.stop = stop

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append(("begin", None, {}))

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append(("end", None, {}))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("epoch", epoch, {}))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("epoch end", epoch, dict(logs)))
        self.model.stop_training = epoch == self.stop

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("step", batch, dict(logs)))


class Failing(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        raise RuntimeError("the disk is full")


def watched(*callbacks: Any) -> State:
    return replace(compressed(), progress=Progress(callbacks=callbacks))


def test_the_calls_of_model_fit() -> None:
    recorder = Recorder()
    tuned = FineTune(epochs=2, batch=64, patience=9)(watched(recorder))
    tuning = tuned.fact(Tuning)
    names = [name for name, _, _ in recorder.calls]
    steps = tuning.steps // 2
    epoch = ["epoch", *["step"] * steps, "epoch end"]
    assert names == ["begin", *epoch, *epoch, "end"]
    logs = [logs for name, _, logs in recorder.calls if name == "epoch end"]
    assert [entry["loss"] for entry in logs] == pytest.approx(list(tuning.losses[1:]))
    assert [entry["val_accuracy"] for entry in logs] == pytest.approx(list(tuning.scores[1:]))
    each = [logs["loss"] for name, _, logs in recorder.calls if name == "step"]
    assert np.isfinite(each).all()
    assert len(set(each)) > 1
    assert recorder.params == {"epochs": 2, "steps": steps}


def test_the_model_of_a_callback_is_the_network_in_training() -> None:
    recorder = Recorder()
    tuned = FineTune(epochs=1, batch=64, patience=9)(watched(recorder))
    assert len(recorder.model.outputs) == 1
    if tuned.fact(Tuning).best == 1:
        image = tuned.data.validation.inputs[0][:8]
        np.testing.assert_allclose(
            recorder.model(image), keras_io.predict(tuned.graph, (image,))[0], atol=1e-5
        )


def test_a_callback_ends_the_training() -> None:
    tuning = FineTune(epochs=5, batch=64, patience=9)(watched(Recorder(stop=1))).fact(Tuning)
    assert len(tuning.scores) == 3
    assert tuning.stopped == "a callback said so"


def test_a_callback_of_keras_ends_the_training() -> None:
    impatient = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    tuning = FineTune(epochs=5, batch=64, patience=9)(watched(impatient)).fact(Tuning)
    assert tuning.stopped == "a callback said so"
    assert len(tuning.scores) == 3


def test_an_error_in_a_callback_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"callback .* failed with RuntimeError: the disk is full"):
        FineTune(epochs=1, batch=64)(watched(Failing()))


@pytest.mark.parametrize("given", [None, 5, "tensorboard", keras.callbacks.EarlyStopping("loss")])
def test_only_a_list_is_taken(given: Any) -> None:
    with pytest.raises(UsageError, match=r"^callbacks: give a list of them, not "):
        lrfc.build(helpers.conv_net(), data=None, max_macs="50%", callbacks=given)


def test_only_callbacks_are_taken() -> None:
    with pytest.raises(UsageError, match=r"function is no keras\.callbacks\.Callback"):
        lrfc.build(helpers.conv_net(), data=None, max_macs="50%", callbacks=[lambda: None])
