"""Keras on TensorFlow: imported when it is needed, with its output sent to the log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from lrfc.errors import DependencyError, ModelError
from lrfc.ir import processor
from lrfc.system import collector, silence, spans

_log = logging.getLogger("lrfc.keras")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
#: Beginnings of the lines that Keras wraps around the message of an exception.
_BOILERPLATE = (
    "Exception encountered",
    "Error when deserializing",
    "Could not automatically infer",
    "Arguments received",
)


@cache  # called thousands of times in a build
def keras() -> Any:
    """The keras module on TensorFlow; DependencyError when Keras has another backend.

    TensorFlow's graph remapper is switched off for the process: it computes maximum(x, 2x) as a
    leaky ReLU, and with oneDNN it crashes on a 1×1 convolution with bias, residual addition and
    ReLU (TensorFlow 2.21).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    processor.decide()
    message = (
        "Keras runs on '{}' here, lrfc needs TensorFlow: unset KERAS_BACKEND or set it to"
        " tensorflow"
    )
    with quiet():
        try:
            with _importing() if "keras" not in sys.modules else contextlib.nullcontext():
                import keras as module
        except (ImportError, ValueError) as error:  # ValueError: a backend unknown to Keras
            if os.environ["KERAS_BACKEND"] != "tensorflow":
                raise DependencyError(message.format(os.environ["KERAS_BACKEND"])) from error
            raise
    if module.backend.backend() != "tensorflow":
        raise DependencyError(message.format(module.backend.backend()))
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"remapping": False})
    return module


def operation(kind: str) -> type:
    """The class behind a function of keras.ops, such as 'Where'."""
    from keras.src.ops import core, math, numpy

    place = next(part for part in (numpy, core, math) if hasattr(part, kind))
    found: type = getattr(place, kind)
    return found


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    with spans.span("TensorFlow"), collector.importing():
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send the prints and warnings of this thread to the log, at level debug."""
    prints: list[str] = []
    warnings: list[str] = []
    with silence.thread(prints.append, warnings.append):
        yield
    for line in [*"".join(prints).splitlines(), *warnings]:
        _log.debug(line)


@contextlib.contextmanager
def as_float32() -> Iterator[None]:
    """Use float32 for layers without a dtype of their own, whatever the process-wide policy."""
    k = keras()
    policy = k.config.dtype_policy()
    k.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        k.config.set_dtype_policy(policy)


def reason(error: BaseException) -> str:
    """The line of an exception's message that states the problem, without Keras' boilerplate."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines()]
    candidates = [line for line in lines if line and not line.startswith(_BOILERPLATE)]
    line = (candidates or lines or [""])[0] or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


@contextlib.contextmanager
def onednn_needed() -> Iterator[None]:
    """Raise ModelError where TensorFlow fails on a model that it computes with oneDNN only."""
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
