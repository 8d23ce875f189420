"""The file formats that can be emitted: one entry each names the target and its capabilities.

An entry holds everything that is needed before a slow package is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from typing import Annotated, Any, get_args

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticKnownError

from lrfc.config.precision import Name, listed, of
from lrfc.errors import UsageError
from lrfc.system.reader import shown
from lrfc.text import like


@dataclass(frozen=True)
class Format:
    """A file format.

    ``target``: the class that emits and runs such files, as 'module:class'.
    ``suffix``: the suffix of its files, with the dot.
    ``precisions``: the precisions that its runtimes have kernels for.
    ``int8_io``: whether its int8 files can have int8 inputs and outputs.
    ``trained``: the precisions that can use the ranges of quantisation-aware training.
    ``weight_steps``: the steps from 0 to the largest weight of a channel in its int8 files.
    """

    target: str
    suffix: str
    precisions: tuple[Name, ...]
    int8_io: bool = False
    trained: tuple[Name, ...] = ()
    weight_steps: int = 127


#: Format by its name on the command line. A new target needs one entry here.
FORMATS: dict[str, Format] = {
    "tflite": Format(
        "lrfc.targets.tflite.target:TFLite",
        ".tflite",
        get_args(Name),
        int8_io=True,
        trained=("int8",),
    ),
    "onnx": Format(
        "lrfc.targets.onnx.target:ONNX",
        ".onnx",
        ("fp32", "fp16", "int8"),
        weight_steps=64,  # weights have 7 bits: lrfc.targets.onnx.int8 says why
    ),
}


def _known(name: Any) -> str:
    if isinstance(name, str) and name in FORMATS:
        return name
    expected = listed(tuple(f"'{form}'" for form in FORMATS))
    raise PydanticKnownError("literal_error", {"expected": expected})


#: The type of a pydantic field that holds a name of FORMATS.
Form = Annotated[
    str,
    PlainValidator(_known, json_schema_input_type=str),
    WithJsonSchema({"enum": list(FORMATS), "type": "string"}),
]


def suffixes() -> dict[str, str]:
    """Return the name of each format by its suffix."""
    return {form.suffix: name for name, form in FORMATS.items()}


def check(form: str, precision: str, *, int8_io: bool = False) -> None:
    """Raise UsageError unless the format has files in that precision.

    ``int8_io``: whether they have to have int8 inputs and outputs.
    """
    if form not in FORMATS:
        near = f"{like(form, FORMATS)}; known are {', '.join(FORMATS)}"
        raise UsageError(f"unknown target '{shown(form, 60)}'{near}")
    of(precision)
    entry = FORMATS[form]
    if precision not in entry.precisions:
        others = _targets(precision in other.precisions for other in FORMATS.values())
        choices = listed(entry.precisions) + (f", or {listed(others)}" if others else "")
        raise UsageError(f"target {form} has no precision '{precision}'; choose {choices}")
    if int8_io and not entry.int8_io:
        others = _targets(other.int8_io for other in FORMATS.values())
        reason = "its int8 files have the inputs and outputs of the model"
        raise UsageError(f"target {form} has no --int8-io: {reason}; choose {listed(others)}")
    if int8_io and precision != "int8":
        raise UsageError(f"--int8-io goes with --precision int8, not {precision}")


def _targets(mask: Iterable[bool]) -> tuple[str, ...]:
    return tuple(f"target {name}" for name in compress(FORMATS, mask))
