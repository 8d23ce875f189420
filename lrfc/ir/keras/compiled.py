"""The loss, metrics and optimizer that a model was compiled with, restored from its file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lrfc.ir.backend import keras, quiet, reason
from lrfc.ir.keras import allowed as keras_allowed
from lrfc.ir.keras.file import ModelFile

T = TypeVar("T")

_log = logging.getLogger("lrfc.keras")
#: The arguments of Model.compile() that are used beside the optimizer, by what they belong to.
_LOSS, _METRICS = ("loss", "loss_weights"), ("metrics",)
#: The names of the optimizer in .keras and .h5 files.
_OPTIMIZERS = ("optimizer", "optimizer_config")


def config_of(model: Any) -> Mapping[str, Any] | None:
    """Keras' configuration of a model's loss, metrics and optimizer; None when it has no loss."""
    with quiet():
        config = model.get_compile_config() or {}
    if config.get("loss") is None:
        return None
    return {key: config.get(key) for key in (*_LOSS, *_METRICS, "optimizer")}


def carry(file: ModelFile, model: Any, *, unsafe: bool) -> None:
    """Compile a loaded model with the loss, metrics and optimizer in its file.

    A part that Keras cannot restore, such as a function that is not registered, is logged and left
    out; without the loss all of it.
    """
    if file.compiled.get("loss") is None:
        return
    k = keras()

    def arguments(names: tuple[str, ...]) -> dict[str, Any]:
        config = {name: file.compiled[name] for name in names if file.compiled.get(name)}
        config = config if unsafe else keras_allowed.compilation(config, file.path)
        return {key: k.saving.deserialize_keras_object(value) for key, value in config.items()}

    def optimizer() -> Any:
        config = next((file.compiled[key] for key in _OPTIMIZERS if file.compiled.get(key)), None)
        if config is None:
            return None
        return k.optimizers.get(config if unsafe else keras_allowed.optimizer(config, file.path))

    def compiled() -> bool:
        metrics = _restored(file, "metrics", lambda: arguments(_METRICS)) or {}
        model.compile(_restored(file, "optimizer", optimizer), **arguments(_LOSS), **metrics)
        model.get_compile_config()
        return True

    if not _restored(file, "loss", compiled):
        model.compile()


def _restored(file: ModelFile, part: str, make: Callable[[], T]) -> T | None:
    """The result of ``make``; None, with a line in the log, where Keras cannot restore the part."""
    try:
        with quiet():
            return make()
    # A custom object may raise anything, and the model is usable without it.
    except Exception as error:  # noqa: BLE001
        _log.info(
            "%s: the %s that the model was compiled with cannot be restored (%s)",
            file.path,
            part,
            reason(error),
        )
        return None
