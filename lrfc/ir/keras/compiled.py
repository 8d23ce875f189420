"""Loss and metrics that a model was compiled with, taken from its file to the model and graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lrfc.ir.backend import keras, quiet, reason
from lrfc.ir.keras import allowed as keras_allowed
from lrfc.ir.keras.file import ModelFile

_log = logging.getLogger("lrfc.keras")
#: The arguments of Model.compile() that are used; the optimizer is not.
_ARGUMENTS = ("loss", "loss_weights", "metrics")


def config_of(model: Any) -> Mapping[str, Any] | None:
    """Keras' configuration of a model's loss and metrics; None when it has no loss."""
    with quiet():
        config = model.get_compile_config() or {}
    return {key: config.get(key) for key in _ARGUMENTS} if config.get("loss") is not None else None


def carry(file: ModelFile, model: Any, *, unsafe: bool) -> None:
    """Compile a loaded model with the loss and metrics in its file.

    A loss that Keras cannot restore, such as a function that is not registered, is logged and left
    out.
    """
    if file.compiled.get("loss") is None:
        return
    k = keras()
    config = {key: file.compiled[key] for key in _ARGUMENTS if file.compiled.get(key) is not None}
    try:
        config = config if unsafe else keras_allowed.compilation(config, file.path)
        with quiet():
            arguments = {
                key: k.saving.deserialize_keras_object(value) for key, value in config.items()
            }
            model.compile(**arguments)
            model.get_compile_config()
    # A custom loss may raise anything, and the model is usable without it.
    except Exception as error:  # noqa: BLE001
        _log.info(
            "%s: the loss that the model was compiled with cannot be restored (%s)",
            file.path,
            reason(error),
        )
        model.compile()
