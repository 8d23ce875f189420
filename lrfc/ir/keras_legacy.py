"""Models of Keras 1 and 2 carried over to Keras 3: read by tf_keras, rebuilt layer by layer, proved by running both."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.errors import DependencyError, ModelError
from lrfc.ir import processor
from lrfc.ir.backend import keras, quiet, reason

_log = logging.getLogger("lrfc.keras")
_TOLERANCE = 1e-5


def load(path: Path, *, unsafe: bool) -> Any:
    """The model of a file of Keras 1 or 2 as a Keras 3 model; None when tf_keras cannot read it either.

    ModelError when Keras 3 has no counterpart of one of its layers, when the rebuilt model computes something else, or when the file holds Python
    code (a Lambda layer) and ``unsafe`` is not given. DependencyError without tf_keras.
    """
    from lrfc.ir.keras_rebuild import rebuild

    old = _read(path, unsafe=unsafe)
    if old is None:
        return None
    with quiet():
        model = rebuild(old)
    if (found := difference(old, model)) > _TOLERANCE:
        raise ModelError(f"rebuilt in Keras {keras().__version__}, its outputs differ by {found:.1e} of their scale")
    return model


def agrees(path: Path, model: Any, *, unsafe: bool) -> bool:
    """Whether a model that Keras 3 read from a file of Keras 1 or 2 computes what Keras 2 computes; True when tf_keras cannot read the file.

    Keras 3 gives some names another meaning: its ``hard_sigmoid`` is relu6(x + 3) / 6, that of Keras 2 is clip(0.2 x + 0.5, 0, 1).
    """
    old = _read(path, unsafe=unsafe)
    return old is None or old.inputs is None or difference(old, model) <= _TOLERANCE


def difference(old: Any, new: Any) -> float:
    """The largest difference between two models' outputs on the same random inputs, relative to the scale of each output."""
    rng = np.random.default_rng(0)
    indices = any(type(layer).__name__ == "Embedding" for layer in old._flatten_layers())  # valid for a table of any length
    batch = []
    for tensor in old.inputs:
        shape = (tensor.shape[0] or 4, *(length or 64 for length in tensor.shape[1:]))
        dtype = tensor.dtype.as_numpy_dtype
        if not np.issubdtype(dtype, np.number):
            raise ModelError(f"its input '{tensor.name}' is of type {tensor.dtype.name}")
        whole = indices or np.issubdtype(dtype, np.integer)
        batch.append((rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)).astype(dtype))
    tree = keras().tree
    with quiet(), processor.told():
        before, after = (tree.flatten(model(batch if len(batch) > 1 else batch[0], training=False)) for model in (old, new))
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return float("inf")
        if np.isfinite(x).all():  # a model that holds NaN is refused for that, elsewhere
            worst = max(worst, float(np.abs(x - y).max(initial=0.0)) / max(float(np.abs(x).max(initial=0.0)), 1e-12))
    return worst


def _read(path: Path, *, unsafe: bool) -> Any:
    """The tf_keras model, None when tf_keras cannot read the file."""
    if not unsafe and path.suffix == ".h5" and _has_lambda(path):  # tf_keras would run it without asking
        raise ModelError("it contains Python code (a Lambda layer); if you trust the file, give --unsafe-load")
    with quiet():
        try:
            import tf_keras
        except ImportError as error:
            raise DependencyError("a model file of Keras 1 or 2 needs the package tf_keras: pip install tf-keras") from error
        import tensorflow as tf

        # Functions that the model zoo of Keras 1 and 2 defined next to its models.
        known = {"relu6": tf.nn.relu6, "hard_swish": lambda x: x * tf.nn.relu6(x + 3) / 6}
        for name, function in known.items():
            function.__name__ = name
        try:
            return tf_keras.models.load_model(path, custom_objects=known, compile=False, safe_mode=not unsafe)
        except Exception as error:  # noqa: BLE001 - tf_keras raises all kinds; the caller says why Keras 3 refuses the file
            _log.debug("tf_keras cannot read %s: %s", path, reason(error))
            return None


def _has_lambda(path: Path) -> bool:
    import h5py

    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            return value.get("class_name") == "Lambda" or any(holds(item) for item in value.values())
        return isinstance(value, list) and any(holds(item) for item in value)

    with h5py.File(path, "r") as file:
        return holds(json.loads(file.attrs["model_config"]))
