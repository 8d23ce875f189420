"""Validation of the answers of worker processes: a device is not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc.errors import DeviceError
from lrfc.system import reader

#: Characters that one answer may have.
CHARACTERS = 16 << 20

#: Nanoseconds and microseconds of a timing, and bytes of memory, within plausible ranges.
_Time = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
_Integer = Annotated[int, Field(ge=0, le=10**18)]
_Word = Annotated[str, Field(max_length=1000)]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


class Facts(_Answer):
    """The answer to {"facts"}."""

    machine: _Word
    system: _Word
    python: _Word
    runtimes: dict[_Word, _Word]
    missing: dict[_Word, _Word]
    free_bytes: _Integer


class Loaded(_Answer):
    """The answer to {"path"}."""

    runtime: _Word
    version: _Word
    load_ns: _Integer
    first_ns: _Integer
    baseline_rss: _Integer | None
    rss: _Integer | None
    cores: list[_Integer] | None


class Timed(_Answer):
    """The answer to {"runs"}."""

    ns: list[Annotated[int, Field(gt=0, le=10**18)]]


class Parts(_Answer):
    """The answer to {"parts"}."""

    us: dict[_Word, _Time]


class Turns(_Answer):
    """The answer to {"files"}."""

    ns: list[list[_Time]]


class Conditions(_Answer):
    """The answer to {"conditions"}."""

    hz: _Time | None
    celsius: Annotated[float, Field(ge=-1000, le=1e6, allow_inf_nan=False)] | None


class Arena(_Answer):
    """The answer to {"arena"} of targets/micro/worker.py."""

    head: _Integer
    tail: _Integer


class Ran(_Answer):
    """The answer to {"run"} of targets/micro/worker.py."""

    samples: _Integer


class End(_Answer):
    """The answer to {}."""

    peak_rss: _Integer | None


#: The key of a request and the shape of its answer, in the worker's order of precedence.
_ANSWERS: tuple[tuple[str, type[_Answer]], ...] = (
    ("facts", Facts),
    ("path", Loaded),
    ("runs", Timed),
    ("parts", Parts),
    ("files", Turns),
    ("conditions", Conditions),
    ("arena", Arena),
    ("run", Ran),
)


def answer(request: Mapping[str, Any], line: str, task: str) -> dict[str, Any]:
    """Parse the answer to a request; DeviceError when it is an error, or has another shape.

    ``task``: the worker's task in the infinitive, for messages.
    """
    where = f"cannot {task}: what the device answers"
    document = reader.json_object(line, where, error=DeviceError)
    if "error" in document:
        raise DeviceError(f"cannot {task}: {reader.shown(document['error'], 1000)}")
    model = next((model for key, model in _ANSWERS if key in request), End)
    try:
        result = model.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise DeviceError(
            f"{where} makes no sense: {reader.shown(place)}: {problem['msg']}"
        ) from error
    if isinstance(result, Timed):
        _check_count(result.ns, request["runs"], where)
    if isinstance(result, Turns):
        _check_count(result.ns, len(request["files"]), where)
        for row in result.ns:
            _check_count(row, request["turns"], where)
    return result.model_dump()


def _check_count(times: Sequence[Any], expected: int, where: str) -> None:
    """DeviceError unless there are as many times as were requested."""
    if len(times) != expected:
        raise DeviceError(
            f"{where} makes no sense: {len(times):,} times where {expected:,} were requested"
        )
