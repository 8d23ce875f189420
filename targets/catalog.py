"""The targets by their name on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrfc.errors import UsageError
from lrfc.protocols import Target
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite.target import TFLite

#: Name → target. A new target is added here, and in the choices of ``BuildConfig.targets``.
TARGETS: Mapping[str, Any] = {TFLite.name: TFLite, ONNX.name: ONNX}


def target(name: str, precision: str = "fp32", *, int8_io: bool = False) -> Target:
    """The target of that name at that precision; UsageError when there is none. ``int8_io``: with int8 inputs and outputs."""
    if name not in TARGETS:
        raise UsageError(f"unknown target '{name}'; known are {', '.join(TARGETS)}")
    made: Target = TARGETS[name](precision, int8_io)
    return made
