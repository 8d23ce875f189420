"""The loss and metrics that a model was compiled with: read from its file, kept on the model, written down for its graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lrfc.ir.backend import keras, quiet, reason
from lrfc.ir.keras import allowed as keras_allowed
from lrfc.ir.keras.file import ModelFile

_log = logging.getLogger("lrfc.keras")
_KEPT = ("loss", "loss_weights", "metrics")


def config_of(model: Any) -> Mapping[str, Any] | None:
    """What the model was compiled with, as Keras writes it; None when it was not, or with no loss.

    The optimizer is not kept.
    """
    with quiet():
        config = model.get_compile_config() or {}
    return {key: config.get(key) for key in _KEPT} if config.get("loss") is not None else None


def carry(file: ModelFile, model: Any, *, unsafe: bool) -> None:
    """Compile a model that was loaded uncompiled with the loss and metrics in its file.

    A loss that Keras cannot make again (a function of the user's that is not registered) is left
    out, and the log says so.
    """
    if file.compiled.get("loss") is None:
        return
    k = keras()
    kept = {key: file.compiled[key] for key in _KEPT if file.compiled.get(key) is not None}
    try:
        config = kept if unsafe else keras_allowed.compilation(kept, file.path)
        with quiet():
            given = {key: k.saving.deserialize_keras_object(value) for key, value in config.items()}
            model.compile(**given)
            model.get_compile_config()
    except Exception as error:  # noqa: BLE001  the code of a user's loss may raise anything, and the model is whole without it
        _log.info(
            "%s: the loss that the model was compiled with cannot be made again (%s)",
            file.path,
            reason(error),
        )
        model.compile()
