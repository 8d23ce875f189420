"""The file formats that can be emitted: one line each says where the target is and what it can do.

A line holds all that must be known before anything slow is imported.
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
from lrfc.nearest import like
from lrfc.system.reader import shown


@dataclass(frozen=True)
class Format:
    """A file format.

    ``target``: the class that emits and runs such files, as 'module:class'.
    ``suffix``: of its files, with the dot. ``precisions``: by what its runtimes have kernels for.
    ``int8_io``: whether its int8 files can take and give int8 values.
    ``trained``: the precisions that take the ranges of quantisation-aware training.
    ``weight_steps``: integers from 0 to the largest weight of a channel in its int8 files.
    """

    target: str
    suffix: str
    precisions: tuple[Name, ...]
    int8_io: bool = False
    trained: tuple[Name, ...] = ()
    weight_steps: int = 127


#: Name on the command line → format. A new target is one line here.
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
    expected = listed(tuple(f"'{each}'" for each in FORMATS))
    raise PydanticKnownError("literal_error", {"expected": expected})


#: A name of FORMATS, as a field of a pydantic model.
Form = Annotated[
    str,
    PlainValidator(_known, json_schema_input_type=str),
    WithJsonSchema({"enum": list(FORMATS), "type": "string"}),
]


def suffixes() -> dict[str, str]:
    """Suffix → name of each format."""
    return {each.suffix: name for name, each in FORMATS.items()}


def check(form: str, precision: str, *, int8_io: bool = False) -> None:
    """Raise UsageError unless there are files of that format in that precision.

    ``int8_io``: with int8 inputs and outputs.
    """
    if form not in FORMATS:
        known = f"{like(form, FORMATS)}; known are {', '.join(FORMATS)}"
        raise UsageError(f"unknown target '{shown(form, 60)}'{known}")
    of(precision)
    chosen = FORMATS[form]
    if precision not in chosen.precisions:
        others = _targets(precision in each.precisions for each in FORMATS.values())
        way_out = listed(chosen.precisions) + (f", or {listed(others)}" if others else "")
        raise UsageError(f"target {form} has no precision '{precision}'; choose {way_out}")
    if int8_io and not chosen.int8_io:
        having = listed(_targets(each.int8_io for each in FORMATS.values()))
        why = "its int8 files take and give what the model does"
        raise UsageError(f"target {form} has no --int8-io: {why}; choose {having}")
    if int8_io and precision != "int8":
        raise UsageError(f"--int8-io goes with --precision int8, not {precision}")


def _targets(chosen: Iterable[bool]) -> tuple[str, ...]:
    return tuple(f"target {name}" for name in compress(FORMATS, chosen))
