"""The one reader of what comes from outside: regular files of bounded size, and JSON and TOML of bounded depth.

A file that lrfc did not write in this run may hold anything, and may be no file at all. Whatever is
wrong with it becomes one line of the caller's error class; nothing in it names code.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lrfc.errors import LrfcError, UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Bytes that a text document may have: manifests, profiles, settings, what a device answers.
DOCUMENT_BYTES = 64 << 20
#: Levels of nesting that a document may have. Keras nests a few levels for each nested model.
DEPTH = 200
#: Bits that an integer in a document may have.
BITS = 1023


def located(path: Path | str, *, error: type[LrfcError] = UsageError) -> Path:
    """The path with ``~`` expanded; ``error`` when there is no such user, or it cannot be a path.

    Where it leads need not exist.
    """
    try:
        place = Path(path).expanduser()
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return place
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(f"'{shown(path)}' cannot be used as a path: {_reason(problem)}") from problem
    return place


def kind(path: Path | str, *, error: type[LrfcError] = UsageError) -> str | None:
    """What lies there, as in 'a file', 'a folder', 'a device'; None where nothing does.

    ``error`` when that cannot be a path.
    """
    place = located(path, error=error)
    try:
        mode = place.stat().st_mode
    except OSError as problem:
        if os.path.lexists(place):
            raise error(f"'{shown(path)}' cannot be read: {_reason(problem)}") from problem
        return None
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def opened(path: Path | str, *, limit: int, error: type[LrfcError] = UsageError) -> BinaryIO:
    """A regular file, open for reading; the caller closes it.

    ``error`` when there is none, when it is a folder, a device or a pipe (none of which is read),
    or when it has more than ``limit`` bytes.
    """
    place = located(path, error=error)
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        number = os.open(
            place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        )
    except FileNotFoundError as problem:
        raise error(f"{shown(path)}: no such file") from problem
    except (OSError, ValueError) as problem:
        raise error(f"{shown(path)} cannot be read: {_reason(problem)}") from problem
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise error(
                f"{shown(path)} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}, not a"
                " regular file"
            )
        if found.st_size > limit:
            raise error(
                f"{shown(path)} has {found.st_size:,} bytes; at most {limit:,} are read here"
            )
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def contents(
    path: Path | str, *, limit: int = DOCUMENT_BYTES, error: type[LrfcError] = UsageError
) -> bytes:
    """The bytes of a regular file; ``error`` as for :func:`opened`, and when reading fails."""
    with opened(path, limit=limit, error=error) as file:
        try:
            content = file.read(limit + 1)
        except (OSError, MemoryError) as problem:
            raise error(f"{shown(path)} cannot be read: {_reason(problem)}") from problem
    if len(content) > limit:  # it grew while it was read
        raise error(
            f"{shown(path)} has more than {limit:,} bytes, which is the most that is read here"
        )
    return content


def json_object(
    content: bytes | str,
    where: str,
    *,
    error: type[LrfcError] = UsageError,
    constants: bool = False,
) -> dict[str, Any]:
    """The JSON object in ``content``; ``where`` begins the line of the error.

    ``error`` for what is not UTF-8, not JSON, not an object, nested more than DEPTH levels deep, or
    holds a key twice in one object or a number that is too large. ``constants``: whether NaN and
    Infinity, which JSON does not have and Python writes, are taken.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise _DocumentError("it holds a key twice in one object")
        return table

    def constant(name: str) -> float:
        if not constants:
            raise _DocumentError(f"it holds {name}, which is no number of JSON")
        return float(name)

    def finite(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            raise _DocumentError(f"it holds {shown(digits, 30)}, which is too large for a number")
        return number

    try:
        text = content if isinstance(content, str) else content.decode()
        document = json.loads(
            text, object_pairs_hook=unique, parse_constant=constant, parse_float=finite
        )
    except _DocumentError as problem:
        raise error(f"{where}: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply: at most {DEPTH} levels are read") from problem
    except (UnicodeDecodeError, MemoryError, ValueError) as problem:
        raise error(f"{where} is not JSON: {_reason(problem)}") from problem
    if not isinstance(document, dict):
        raise error(f"{where} holds {_JSON.get(type(document), 'a number')}, not a JSON object")
    bounded(document, where, error=error)
    return document


def toml_table(
    content: bytes, where: str, *, error: type[LrfcError] = UsageError
) -> dict[str, Any]:
    """The TOML table in ``content``; ``error`` for what is not UTF-8, not TOML, or nested too deeply."""
    try:
        table = tomllib.loads(content.decode())
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply: at most {DEPTH} levels are read") from problem
    except (UnicodeDecodeError, MemoryError, ValueError) as problem:
        raise error(f"{where} is not TOML: {_reason(problem)}") from problem
    bounded(table, where, error=error)
    return table


def bounded(document: Any, where: str, *, error: type[LrfcError] = UsageError) -> None:
    """Raise ``error`` when the document is nested more than DEPTH levels deep, so that a walk over it may recurse.

    The same where an integer is larger than any float, so that every number can be computed with.
    """
    level: list[Any] = [document]
    for _ in range(DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
        if any(isinstance(item, int) and item.bit_length() > BITS for item in level):
            raise error(
                f"{where} holds an integer of more than {BITS} bits, which is too large for a"
                " number"
            )
    raise error(f"{where} is nested too deeply: at most {DEPTH} levels are read")


def plain(document: Any) -> Any:
    """The document with '?' for each control character in its strings, so that it can be shown on a terminal."""
    if isinstance(document, str):
        return (
            document
            if document.isprintable()
            else "".join(
                "?" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c
                for c in document
            )
        )
    if isinstance(document, dict):
        return {plain(key): plain(value) for key, value in document.items()}
    return [plain(item) for item in document] if isinstance(document, list) else document


def refused(problem: ValidationError) -> str:
    """What is wrong with a document that pydantic refused: the first place, and why."""
    first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
    return (
        f"{shown('.'.join(map(str, first['loc']))) or 'the whole'}:"
        f" {shown(first['msg'].removeprefix('Value error, '), 500)}"
    )


def shown(value: object, length: int = 200) -> str:
    """The value in one line of a message: without control characters, its middle left out when it is long."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 2 :]}"


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """A call of the user's own code: whatever it raises is the user's to see, in one line, as UsageError that ``what`` begins.

    Errors of lrfc and Ctrl-C pass.
    """
    try:
        yield
    except LrfcError:
        raise
    except (Exception, SystemExit) as problem:
        text = shown(" ".join(str(problem).split()), 500)
        raise UsageError(f"{what} failed with {type(problem).__name__}: {text}") from problem


class _DocumentError(Exception):
    """What is wrong with a document that is JSON all the same."""


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _reason(problem: BaseException) -> str:
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return shown(text or type(problem).__name__)


_JSON = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
