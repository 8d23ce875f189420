"""What a worker on a device may answer (targets/devices/worker.py): a device is not trusted to answer in that shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc.errors import DeviceError
from lrfc.system import reader

#: Characters that one answer may have.
CHARACTERS = 16 << 20

#: Nanoseconds and microseconds of a timing, and bytes of memory: what clocks and machines can say.
_Time = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
_Integer = Annotated[int, Field(ge=0, le=10**18)]
_Word = Annotated[str, Field(max_length=1000)]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


class Facts(_Answer):
    """To {"facts"}."""

    machine: _Word
    system: _Word
    python: _Word
    runtimes: dict[_Word, _Word]
    missing: dict[_Word, _Word]
    free_bytes: _Integer


class Loaded(_Answer):
    """To {"path"}."""

    runtime: _Word
    version: _Word
    load_ns: _Integer
    first_ns: _Integer
    baseline_rss: _Integer | None
    rss: _Integer | None
    cores: list[_Integer] | None


class Timed(_Answer):
    """To {"runs"}."""

    ns: list[Annotated[int, Field(gt=0, le=10**18)]]


class Parts(_Answer):
    """To {"parts"}."""

    us: dict[_Word, _Time]


class Turns(_Answer):
    """To {"files"}."""

    ns: list[list[_Time]]


class Conditions(_Answer):
    """To {"conditions"}."""

    hz: _Time | None
    celsius: Annotated[float, Field(ge=-1000, le=1e6, allow_inf_nan=False)] | None


class End(_Answer):
    """To {}."""

    peak_rss: _Integer | None


#: The key of a request, in the order in which the worker looks for them.
_ANSWERS: tuple[tuple[str, type[_Answer]], ...] = (
    ("facts", Facts),
    ("path", Loaded),
    ("runs", Timed),
    ("parts", Parts),
    ("files", Turns),
    ("conditions", Conditions),
)


def answer(request: Mapping[str, Any], line: str, task: str) -> dict[str, Any]:
    """The answer to a request; DeviceError when it is an error, or not such an answer.

    ``task``: what is done there, for messages.
    """
    where = f"cannot {task}: what the device answers"
    document = reader.json_object(line, where, error=DeviceError)
    if "error" in document:
        raise DeviceError(f"cannot {task}: {reader.shown(document['error'], 1000)}")
    model = next((model for key, model in _ANSWERS if key in request), End)
    try:
        found = model.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise DeviceError(
            f"{where} makes no sense: {reader.shown(place)}: {problem['msg']}"
        ) from error
    for name, counted in (("runs", Timed), ("files", Turns)):
        if isinstance(found, counted):
            _counted(len(request[name]) if name == "files" else request[name], found.ns, where)
    if isinstance(found, Turns):
        for row in found.ns:
            _counted(request["turns"], row, where)
    return found.model_dump()


def _counted(wanted: int, given: Sequence[Any], where: str) -> None:
    if len(given) != wanted:
        raise DeviceError(
            f"{where} makes no sense: {len(given):,} times where {wanted:,} were asked for"
        )
