"""The user's Keras callbacks, called by the fine-tune as model.fit calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lrfc.errors import UsageError
from lrfc.system.reader import user_code


def check(callbacks: Sequence[Any]) -> None:
    """Raise UsageError unless it is a list or tuple of keras.callbacks.Callback.

    Keras is imported only if there are any: a repeated build has to set TensorFlow up first.
    """
    if not isinstance(callbacks, list | tuple):
        raise UsageError(f"callbacks: give a list of them, not {type(callbacks).__name__}")
    for callback in callbacks:
        import keras

        if not isinstance(callback, keras.callbacks.Callback):
            raise UsageError(f"callbacks: {type(callback).__name__} is no keras.callbacks.Callback")


class Callbacks:
    """Callbacks of a training; their errors are UsageError.

    ``model``: the network in training, without an optimizer: the learning rate is not theirs.
    Epochs and steps are counted from 0, as Keras does.
    """

    def __init__(self, callbacks: Sequence[Any], model: Any, **params: Any) -> None:
        import keras

        self._model = model
        model.stop_training = False
        with self._guarded():
            self._all = keras.callbacks.CallbackList(
                list(callbacks), add_history=False, add_progbar=False, model=model, **params
            )

    @staticmethod
    def _guarded() -> AbstractContextManager[None]:
        return user_code("a callback of the fine-tune")

    @property
    def stopped(self) -> bool:
        """Whether a callback has set ``model.stop_training``."""
        return bool(self._model.stop_training)

    def begin(self) -> None:
        """Call before the first epoch."""
        with self._guarded():
            self._all.on_train_begin()

    def end(self) -> None:
        """Call after the last epoch."""
        with self._guarded():
            self._all.on_train_end()

    def epoch_begin(self, epoch: int) -> None:
        """Call before the first step of an epoch."""
        with self._guarded():
            self._all.on_epoch_begin(epoch)

    def epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Call with the figures of an epoch: its loss, and the score as ``val_`` and its name."""
        with self._guarded():
            self._all.on_epoch_end(epoch, dict(logs))

    def step_begin(self, step: int) -> None:
        """Call before a step."""
        with self._guarded():
            self._all.on_train_batch_begin(step)

    def step_end(self, step: int, loss: float) -> None:
        """Call after a step, with the loss of its batch."""
        with self._guarded():
            self._all.on_train_batch_end(step, {"loss": loss})
