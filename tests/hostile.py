"""Malformed inputs: reproducible mutations of valid ones, and the check of how a call ends."""

from __future__ import annotations

import copy
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lrfc.errors import LrfcError

#: Exit codes that an input from outside may end with.
CODES = (2, 3, 5)
#: Seconds after which an input hangs.
PATIENCE = 20

#: Values in the place of any other.
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    -1e308,
    5e-324,
    10**18,
    10**30,
    10**400,
    2**63,
    "",
    "x",
    "\x1b[31m",
    "a" * 5000,
    "os:system",
    "../../etc/passwd",
    "/dev/zero",
    "NaN",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": None},
    float("nan"),
    float("inf"),
)


@contextmanager
def in_time() -> Iterator[None]:
    """Fail when the block hangs."""

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError(f"it takes more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survives(call: Callable[[], object], what: str) -> bool:
    """Whether the call accepts its input.

    It may refuse it by an error of lrfc in one line. Any other outcome fails the test.
    """
    refusal = _raised(call)
    if refusal is None:
        return True
    text = str(refusal)
    if not isinstance(refusal, LrfcError):
        pytest.fail(f"{what}: {type(refusal).__name__}: {text}")
    assert refusal.exit_code in CODES, f"{what}: {refusal!r}"
    assert text, what
    assert "\n" not in text, f"{what}: {text!r}"
    assert len(text) < 4000, f"{what}: {text[:200]} …"
    assert "\x1b" not in text, f"{what}: {text!r}"
    return False


def _raised(call: Callable[[], object]) -> Exception | None:
    try:
        with in_time():
            call()
    except Exception as error:  # noqa: BLE001 - the caller reports an error of any type
        return error
    return None


def damaged(content: bytes, number: int) -> bytes:
    """The bytes with some changed, cut, repeated or inserted at random places."""
    chance = random.Random(number)
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                del data[at : at + chance.randrange(1, 40)]
            case 3:
                data[at:at] = data[at : at + chance.randrange(1, 200)]
            case 4:
                data[at:at] = chance.choice(
                    (
                        b"\0",
                        b"\xff",
                        b"[" * 3000,
                        b'{"a":' * 3000,
                        b"9" * 5000,
                        b"\x1b[31m",
                        b"\n",
                        b'"',
                    )
                )
            case _:
                data[at : at + 8] = bytes(chance.randrange(256) for _ in range(8))
        if not data:
            break
    return bytes(data)


def changed(document: Any, number: int) -> Any:
    """The document with some values or keys replaced, removed or added."""
    chance = random.Random(number)
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 3))):
        places = list(_places(document))
        if not places:
            return document
        holder, key = chance.choice(places)
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder["surprise"] = chance.choice(VALUES)
            case 2:
                nested: Any = 1
                for _ in range(chance.choice((150, 3000))):
                    nested = [nested]
                holder[key] = nested
            case _:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
    return document


def as_json(document: Any) -> bytes:
    """JSON text, with NaN, Infinity and numbers of any length as only Python writes them."""
    return _dumped(document).encode("utf-8", "surrogatepass")


def _dumped(value: Any) -> str:
    # By hand: json.dumps does not write what is nested too deeply, nor integers of many digits.
    opened: list[str] = []
    while isinstance(value, list) and len(value) == 1:
        opened.append("[")
        (value,) = value
    if isinstance(value, dict):
        text = (
            "{"
            + ",".join(f"{json.dumps(key)}:{_dumped(each)}" for key, each in value.items())
            + "}"
        )
    elif isinstance(value, list):
        text = "[" + ",".join(map(_dumped, value)) + "]"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return "".join(opened) + text + "]" * len(opened)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = (
        document.keys()
        if isinstance(document, dict)
        else range(len(document))
        if isinstance(document, list)
        else ()
    )
    for key in keys:
        yield document, key
        yield from (
            _places(document[key])
            if isinstance(document[key], dict | list) and not _is_deep(document[key])
            else ()
        )


def _is_deep(value: Any) -> bool:
    for _ in range(100):
        if not (isinstance(value, list) and len(value) == 1):
            return False
        (value,) = value
    return True
