"""Models of Keras 1 and 2 carried over to Keras 3: read by tf_keras, rebuilt layer by layer, proved by running both."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.errors import DependencyError, ModelError
from lrfc.ir import backend
from lrfc.ir.backend import keras, quiet, reason
from lrfc.ir.keras.bounds import TooManyWeights, weights_bounded

_log = logging.getLogger("lrfc.keras")
_TOLERANCE = 1e-5
#: The length that a dimension of unknown length is tried with.
_LENGTH = 64
#: Numbers that all tensors of a model may have together when it is run to be compared.
_ELEMENTS = 1 << 31


def read(path: Path, *, elements: int, unsafe: bool) -> Any:
    """The model of a file of Keras 1 or 2 as a tf_keras model; None when tf_keras cannot read it.

    tf_keras imports what a file names: without ``unsafe`` the file is one that ``keras_file.Copy``
    wrote with a configuration from ``keras_allowed.legacy_model``. ``elements``: of the weights
    that its layers may make. DependencyError without tf_keras.
    """
    with quiet():
        try:
            import tf_keras
        except ImportError as error:
            raise DependencyError(
                "a model file of Keras 1 or 2 needs the package tf_keras: pip install tf-keras"
            ) from error
        import tensorflow as tf

        # Functions that the model zoo of Keras 1 and 2 defined next to its models.
        known = {"relu6": tf.nn.relu6, "hard_swish": lambda x: x * tf.nn.relu6(x + 3) / 6}
        for name, function in known.items():
            function.__name__ = name
        try:
            with weights_bounded(tf_keras.layers.Layer, elements):
                return tf_keras.models.load_model(
                    path, custom_objects=known, compile=False, safe_mode=not unsafe
                )
        except TooManyWeights:
            raise
        except Exception as error:  # noqa: BLE001 - tf_keras raises all kinds; the caller says why Keras 3 refuses the file
            _log.debug("tf_keras cannot read %s: %s", path, reason(error))
            return None


def carried_over(old: Any) -> Any:
    """A tf_keras model as a Keras 3 model.

    ModelError when Keras 3 has no counterpart of one of its layers, or when the rebuilt model
    computes something else.
    """
    from lrfc.ir.keras.rebuild import rebuild

    with quiet():
        model = rebuild(old)
    if (found := difference(old, model)) > _TOLERANCE:
        raise ModelError(
            f"rebuilt in Keras {keras().__version__}, its outputs differ by {found:.1e} of their"
            " scale"
        )
    return model


def agrees(old: Any, model: Any) -> bool:
    """Whether a model that Keras 3 read from a file of Keras 1 or 2 computes what it computes in tf_keras.

    Keras 3 gives some names another meaning: its ``hard_sigmoid`` is relu6(x + 3) / 6, that of
    Keras 2 is clip(0.2 x + 0.5, 0, 1).
    """
    return difference(old, model) <= _TOLERANCE


def difference(old: Any, new: Any) -> float:
    """The largest difference between two models' outputs on the same random inputs, relative to the scale of each output."""
    rng = np.random.default_rng(0)
    indices = any(
        type(layer).__name__ == "Embedding" for layer in old._flatten_layers()
    )  # valid for a table of any length
    batch = []
    samples = _samples(old)
    for tensor in old.inputs:
        shape = (tensor.shape[0] or samples, *(length or _LENGTH for length in tensor.shape[1:]))
        dtype = tensor.dtype.as_numpy_dtype
        if not np.issubdtype(dtype, np.number):
            raise ModelError(f"its input '{tensor.name}' is of type {tensor.dtype.name}")
        whole = indices or np.issubdtype(dtype, np.integer)
        batch.append(
            (rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)).astype(dtype)
        )
    tree = keras().tree
    with quiet(), backend.onednn_needed():
        before, after = (
            tree.flatten(model(batch if len(batch) > 1 else batch[0], training=False))
            for model in (old, new)
        )
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return float("inf")
        if np.isfinite(x).all():  # a model that holds NaN is refused for that, elsewhere
            worst = max(
                worst,
                float(np.abs(x - y).max(initial=0.0))
                / max(float(np.abs(x).max(initial=0.0)), 1e-12),
            )
    return worst


def _samples(model: Any) -> int:
    """How many samples a model is compared on: 4, fewer where they are large; ModelError where one is too large."""
    tensors = [
        tensor
        for layer in model._flatten_layers()
        for node in layer._inbound_nodes
        for tensor in keras().tree.flatten(node.outputs)
    ]
    shapes = [tensor.shape.as_list() for tensor in tensors if tensor.shape.rank is not None]
    each = sum(math.prod(length or _LENGTH for length in shape[1:]) for shape in shapes)
    if each > _ELEMENTS:
        raise ModelError(
            f"its tensors hold {each:,} numbers for one sample, which is too many to compare what"
            " it computes"
        )
    return max(1, min(4, _ELEMENTS // 8 // max(each, 1)))
