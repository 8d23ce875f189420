"""Read Keras model files: .keras, .h5, and the .h5 files of Keras 1 and 2 that Keras 3 refuses."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lrfc import scratch
from lrfc.errors import ModelError, UsageError
from lrfc.ir import keras_compiled, keras_legacy
from lrfc.ir.backend import keras, quiet, reason

_HDF5 = b"\x89HDF\r\n\x1a\n"


def load(path: Path | str, *, unsafe: bool = False) -> Any:
    """The model in a .keras or .h5 file, compiled with the loss in it, where there is one. The content decides, not the name.

    ``unsafe`` lets the file run the Python code of its Lambda layers. UsageError for a missing file, ModelError for one that holds no usable model.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder: lrfc reads .keras and .h5 files; load it with the TensorFlow that wrote it and save it with model.save('model.keras')"
        )
    magic = path.read_bytes()[:8] if path.stat().st_size < 8 else _head(path)
    if magic == _HDF5:
        suffix = ".h5"
    elif magic.startswith(b"PK"):
        suffix = ".keras"
    else:
        raise ModelError(f"{path} is not a Keras model: it is neither a .keras archive nor an HDF5 file")
    version = _written_by(path, suffix)
    with scratch.folder() as folder:
        named = path
        if path.suffix != suffix:  # Keras goes by the name
            named = folder / f"model{suffix}"
            named.symlink_to(path.absolute())
        model = _load(named, path, version, unsafe)
    _refuse_non_finite(model, path)
    keras_compiled.carry(path, suffix, model)
    return model


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _written_by(path: Path, suffix: str) -> str:
    """The Keras version that wrote the file, '(unknown)' when it does not say. ModelError for a damaged file or one without a model."""
    damaged = f"{path} is truncated or damaged: copy or download it again"
    if suffix == ".keras":
        try:
            with zipfile.ZipFile(path) as archive:
                if "config.json" not in archive.namelist():
                    raise ModelError(f"{path} is a zip archive without a config.json, so it is not a Keras model")
                metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
        except (zipfile.BadZipFile, EOFError, json.JSONDecodeError) as error:
            raise ModelError(damaged) from error
        return str(metadata.get("keras_version", "(unknown)"))
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise ModelError(f"{path} holds weights but no model: save the whole model with model.save('model.keras')")
            version = file.attrs.get("keras_version", "(unknown)")
    except OSError as error:
        raise ModelError(damaged) from error
    return version.decode() if isinstance(version, bytes) else str(version)


def _load(named: Path, path: Path, version: str, unsafe: bool) -> Any:
    k = keras()
    old = version[:1] in "12("
    try:
        with quiet():
            model = k.saving.load_model(named, compile=False, safe_mode=not unsafe)
    except Exception as error:
        text = str(error)
        if re.search(r"safe_mode=False|enable_unsafe_deserialization|unsafe", text):
            raise ModelError(f"{path} contains Python code (a Lambda layer); if you trust the file, give --unsafe-load") from error
        unknown = re.search(r"(?:Could not locate (?:class|function)|Unknown (?:layer|object|activation function):?) '([^']+)'", text)
        if old and (carried := _carried_over(named, path, version, unsafe)) is not None:
            return carried
        if unknown:
            raise ModelError(
                f"{path} uses '{unknown.group(1)}', which is not part of Keras: decorate it with @keras.saving.register_keras_serializable() "
                "and import its module before the model is loaded"
            ) from error
        raise ModelError(
            f"{path}, written by Keras {version}, cannot be read by Keras {k.__version__} ({reason(error)}): "
            "load it with the Keras that wrote it and save it with model.save('model.keras')"
        ) from error
    if old and model.built and not keras_legacy.agrees(named, model, unsafe=unsafe):
        return _carried_over(named, path, version, unsafe)
    return model


def _carried_over(named: Path, path: Path, version: str, unsafe: bool) -> Any:
    try:
        return keras_legacy.load(named, unsafe=unsafe)
    except ModelError as error:
        raise ModelError(
            f"{path}, written by Keras {version}, cannot be carried over to Keras {keras().__version__}: {error}. "
            "Build the model with Keras 3, give it the old weights and save it with model.save('model.keras')"
        ) from error


def _refuse_non_finite(model: Any, path: Path) -> None:
    for variable in model.weights:
        array = np.asarray(variable, dtype=np.float32) if "float" in str(variable.dtype) else None
        if array is not None and not np.isfinite(array).all():
            raise ModelError(f"{path}: weight '{variable.path}' holds NaN or infinite values; train the model again or take an earlier checkpoint")
