"""Keras on TensorFlow, imported once it is needed, and kept quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from lrfc.errors import DependencyError, ModelError
from lrfc.ir import processor
from lrfc.system import silence

_log = logging.getLogger("lrfc.keras")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def keras() -> Any:
    """The keras module, running on TensorFlow. DependencyError when it runs on anything else.

    TensorFlow's graph remapper is switched off for the process: it computes maximum(x, 2x) as a
    leaky ReLU, and with oneDNN it crashes on a 1×1 convolution with bias, residual addition and
    ReLU (TensorFlow 2.21).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    processor.decide()
    other = (
        "Keras runs on '{}' here, lrfc needs TensorFlow: unset KERAS_BACKEND or set it to"
        " tensorflow"
    )
    with quiet():
        try:
            import keras as module
        except (ImportError, ValueError) as error:  # ValueError: a backend that Keras has not
            if os.environ["KERAS_BACKEND"] != "tensorflow":
                raise DependencyError(other.format(os.environ["KERAS_BACKEND"])) from error
            raise
    if module.backend.backend() != "tensorflow":
        raise DependencyError(other.format(module.backend.backend()))
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"remapping": False})
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what this thread prints or warns of meanwhile to the log (level debug)."""
    printed: list[str] = []
    warned: list[str] = []
    with silence.thread(printed.append, warned.append):
        yield
    for line in [*"".join(printed).splitlines(), *warned]:
        _log.debug(line)


@contextlib.contextmanager
def as_float32() -> Iterator[None]:
    """Make layers that name no dtype float32, whatever the process-wide policy is."""
    k = keras()
    policy = k.config.dtype_policy()
    k.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        k.config.set_dtype_policy(policy)


def reason(error: BaseException) -> str:
    """The one line of an exception's message that says what is wrong (Keras wraps it in boilerplate)."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines()]
    told = [
        line
        for line in lines
        if line
        and not line.startswith(
            (
                "Exception encountered",
                "Error when deserializing",
                "Could not automatically infer",
                "Arguments received",
            )
        )
    ]
    line = (told or lines or [""])[0] or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


@contextlib.contextmanager
def onednn_needed() -> Iterator[None]:
    """A block in which a model that only oneDNN can run, where it is off, ends as a ModelError."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError) as error:
        if processor.onednn().on:
            raise
        raise ModelError(
            f"TensorFlow cannot run it here ({reason(error)}), and oneDNN, which can, is"
            f" {processor.onednn()}: set {processor.VARIABLE}=1 before Python starts"
        ) from error
