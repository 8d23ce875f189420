"""Conversion of Keras 1 and 2 models to Keras 3: read, rebuild by layer, compare the outputs."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.errors import DependencyError, ModelError
from lrfc.ir import backend
from lrfc.ir.backend import keras, quiet, reason
from lrfc.ir.keras.creation import TooManyWeights, weights_bounded
from lrfc.ir.op import Array

_log = logging.getLogger("lrfc.keras")
#: Largest difference of two models that count as equal, relative to the scale of the outputs.
_TOLERANCE = 1e-5
#: Length of an axis without a fixed length in a comparison.
_LENGTH = 64
#: Largest number of elements of all tensors of a model that is compared.
_ELEMENTS = 1 << 31
#: Number of elements that a comparison of several samples may have: those of a network at 224×224
#: have more, and one sample of it has thousands of values on its way to each output.
_COMPARED = 1 << 22


def read(path: Path, *, elements: int, unsafe: bool) -> Any:
    """Read a file of Keras 1 or 2 as a tf_keras model; None when tf_keras cannot read it.

    tf_keras imports what a file names. So without ``unsafe`` the file must be a ``file.Copy`` with
    a configuration from ``allowed.legacy_model``. ``elements``: limit of the weights of its layers;
    TooManyWeights beyond. DependencyError without tf_keras.
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
        functions = {"relu6": tf.nn.relu6, "hard_swish": lambda x: x * tf.nn.relu6(x + 3) / 6}
        for name, function in functions.items():
            function.__name__ = name
        try:
            with weights_bounded(tf_keras.layers.Layer, elements):
                return tf_keras.models.load_model(
                    path, custom_objects=functions, compile=False, safe_mode=not unsafe
                )
        except TooManyWeights:
            raise
        # tf_keras raises errors of all kinds; the caller reports why Keras 3 cannot read the file.
        except Exception as error:  # noqa: BLE001
            _log.debug("tf_keras cannot read %s: %s", path, reason(error))
            return None


def carried_over(old: Any) -> Any:
    """A tf_keras model as a Keras 3 model.

    ModelError when Keras 3 has no counterpart of one of its layers, or when the outputs of the
    rebuilt model differ.
    """
    from lrfc.ir.keras.rebuild import rebuild

    with quiet():
        model = rebuild(old)
    if (error := difference(old, model)) > _TOLERANCE:
        raise ModelError(
            f"rebuilt in Keras {keras().__version__}, its outputs differ by {error:.1e} of their"
            " scale"
        )
    return model


def agrees(old: Any, model: Any) -> bool:
    """Whether a model has the same outputs in Keras 3 and, ``old``, in tf_keras.

    Some names have another meaning in Keras 3: its ``hard_sigmoid`` is relu6(x + 3) / 6, that of
    Keras 2 is clip(0.2 x + 0.5, 0, 1).
    """
    return difference(old, model) <= _TOLERANCE


def difference(old: Any, new: Any) -> float:
    """The largest difference of two models' outputs on random inputs, relative to their scale."""
    batch = _random_batch(old)
    tree = keras().tree
    with quiet(), backend.onednn_needed():
        before, after = (
            tree.flatten(model(batch if len(batch) > 1 else batch[0], training=False))
            for model in (old, new)
        )
    largest = 0.0
    for a, b in zip(before, after, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return float("inf")
        if np.isfinite(x).all():  # a model with NaN is refused elsewhere
            scale = max(float(np.abs(x).max(initial=0.0)), 1e-12)
            largest = max(largest, float(np.abs(x - y).max(initial=0.0)) / scale)
    return largest


def _random_batch(model: Any) -> list[Array]:
    """Random inputs of a tf_keras model; ModelError for an input that is not numeric."""
    rng = np.random.default_rng(0)
    embeds = any(type(layer).__name__ == "Embedding" for layer in model._flatten_layers())
    batch = []
    samples = _samples(model)
    for tensor in model.inputs:
        shape = (tensor.shape[0] or samples, *(length or _LENGTH for length in tensor.shape[1:]))
        dtype = tensor.dtype.as_numpy_dtype
        if not np.issubdtype(dtype, np.number):
            raise ModelError(f"its input '{tensor.name}' is of type {tensor.dtype.name}")
        # 0 and 1 are valid indices of an embedding of any length.
        integers = embeds or np.issubdtype(dtype, np.integer)
        values = rng.integers(0, 2, shape) if integers else rng.standard_normal(shape)
        batch.append(values.astype(dtype))
    return batch


def _samples(model: Any) -> int:
    """The number of samples in a comparison: 1 for a large model, up to 4 for a small one.

    The outputs of a small one are few, and may be equal by chance (zeros behind a ReLU).
    ModelError when one sample is too large.
    """
    tensors = [
        tensor
        for layer in model._flatten_layers()
        for node in layer._inbound_nodes
        for tensor in keras().tree.flatten(node.outputs)
    ]
    shapes = [tensor.shape.as_list() for tensor in tensors if tensor.shape.rank is not None]
    elements = sum(math.prod(length or _LENGTH for length in shape[1:]) for shape in shapes)
    if elements > _ELEMENTS:
        raise ModelError(
            f"its tensors hold {elements:,} numbers for one sample, which is too many to compare"
            " its outputs"
        )
    return max(1, min(4, _COMPARED // max(elements, 1)))
