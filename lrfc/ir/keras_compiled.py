"""The loss and metrics that a model was compiled with: read from its file, kept on the model, written down for its graph."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrfc.ir.backend import keras, quiet, reason

_log = logging.getLogger("lrfc.keras")
_KEPT = ("loss", "loss_weights", "metrics")


def config_of(model: Any) -> Mapping[str, Any] | None:
    """What the model was compiled with, as Keras writes it; None when it was not, or with no loss. The optimizer is not kept."""
    with quiet():
        config = model.get_compile_config() or {}
    return {key: config.get(key) for key in _KEPT} if config.get("loss") is not None else None


def carry(path: Path, suffix: str, model: Any) -> None:
    """Compile a model that was loaded uncompiled with the loss and metrics in its file.

    A loss that Keras cannot make again (a function of the user's that is not registered) is left out, and the log says so.
    """
    config = _read(path, suffix)
    if config.get("loss") is None:
        return
    k = keras()
    try:
        with quiet():
            given = {key: k.saving.deserialize_keras_object(config[key]) for key in _KEPT if config.get(key) is not None}
            model.compile(**given)
            model.get_compile_config()
    except Exception as error:  # noqa: BLE001  the code of a user's loss may raise anything, and the model is whole without it
        _log.info("%s: the loss that the model was compiled with cannot be made again (%s)", path, reason(error))
        model.compile()


def _read(path: Path, suffix: str) -> Mapping[str, Any]:
    if suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read("config.json")).get("compile_config")
        return found or {}
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("training_config")
    config: Mapping[str, Any] = json.loads(text) if text is not None else {}
    return config
