"""Reader of untrusted input: regular files of bounded size, JSON and TOML of bounded depth.

A file that lrfc did not write in this run may hold anything, and may be no regular file. Every
fault becomes one line of the caller's error class. Nothing that is read here names code to run.
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

#: Largest size of a text document in bytes: manifests, profiles, settings, answers of a device.
DOCUMENT_BYTES = 64 << 20
#: Deepest nesting of a document, in levels. Keras nests a few levels for each nested model.
DEPTH = 200
#: Largest integer in a document, in bits.
BITS = 1023


def located(path: Path | str, *, error: type[LrfcError] = UsageError) -> Path:
    """Return the path with ``~`` expanded; it need not exist.

    ``error`` when there is no such user, or the text cannot be a path.
    """
    try:
        expanded = Path(path).expanduser()
        os.lstat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(f"'{shown(path)}' cannot be used as a path: {_reason(problem)}") from problem
    return expanded


def kind(path: Path | str, *, error: type[LrfcError] = UsageError) -> str | None:
    """Return the kind of a path: 'a file', 'a folder', 'a device'; None where nothing exists.

    ``error`` as for :func:`located`, and for a path that cannot be examined.
    """
    expanded = located(path, error=error)
    try:
        mode = expanded.stat().st_mode
    except OSError as problem:
        if os.path.lexists(expanded):
            raise error(f"'{shown(path)}' cannot be read: {_reason(problem)}") from problem
        return None
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def opened(path: Path | str, *, limit: int, error: type[LrfcError] = UsageError) -> BinaryIO:
    """Open a regular file for reading; the caller closes it.

    ``error`` when the path does not exist, is a folder, a device or a pipe, or has more than
    ``limit`` bytes.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    expanded = located(path, error=error)
    try:
        descriptor = os.open(expanded, flags)
    except FileNotFoundError as problem:
        raise error(f"{shown(path)}: no such file") from problem
    except (OSError, ValueError) as problem:
        raise error(f"{shown(path)} cannot be read: {_reason(problem)}") from problem
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise error(
                f"{shown(path)} is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a"
                " regular file"
            )
        if status.st_size > limit:
            raise error(
                f"{shown(path)} has {status.st_size:,} bytes; at most {limit:,} are read here"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def contents(
    path: Path | str, *, limit: int = DOCUMENT_BYTES, error: type[LrfcError] = UsageError
) -> bytes:
    """Return the bytes of a file; ``error`` as for :func:`opened`, and when reading fails."""
    with opened(path, limit=limit, error=error) as file:
        try:
            content = file.read(limit + 1)
        except (OSError, MemoryError) as problem:
            raise error(f"{shown(path)} cannot be read: {_reason(problem)}") from problem
    if len(content) > limit:  # the file grew in the meantime
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
    """Parse a JSON object; ``where`` begins the error message.

    ``error`` when the content is not UTF-8, not JSON, no object, or nested more than DEPTH levels
    deep, and when it has a key twice in one object or a number that is too large. ``constants``:
    whether NaN and Infinity are accepted, which Python writes though JSON does not have them.
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
    """Parse a TOML table; ``error`` when it is not UTF-8, not TOML, or nested too deeply."""
    try:
        table = tomllib.loads(content.decode())
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply: at most {DEPTH} levels are read") from problem
    except (UnicodeDecodeError, MemoryError, ValueError) as problem:
        raise error(f"{where} is not TOML: {_reason(problem)}") from problem
    bounded(table, where, error=error)
    return table


def bounded(document: Any, where: str, *, error: type[LrfcError] = UsageError) -> None:
    """Raise ``error`` for a document that recursion or float arithmetic could not handle.

    That is one nested more than DEPTH levels deep, or with an integer larger than any float.
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
    """Return the document with '?' for each control character in its strings, for terminals."""
    if isinstance(document, str):
        if document.isprintable():
            return document
        return "".join(
            "?" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c
            for c in document
        )
    if isinstance(document, dict):
        return {plain(key): plain(value) for key, value in document.items()}
    return [plain(item) for item in document] if isinstance(document, list) else document


def refused(problem: ValidationError) -> str:
    """Return the first fault that pydantic reports of a document: its place and the reason."""
    first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
    return (
        f"{shown('.'.join(map(str, first['loc']))) or 'the whole'}:"
        f" {shown(first['msg'].removeprefix('Value error, '), 500)}"
    )


def shown(value: object, length: int = 200) -> str:
    """Return the value as text for a message: no control characters, a long one shortened."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 2 :]}"


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Context manager for calls of the user's code: turn its errors into UsageError, in one line.

    ``what`` begins the message. Errors of lrfc and Ctrl-C pass through.
    """
    try:
        yield
    except LrfcError:
        raise
    except (Exception, SystemExit) as problem:
        text = shown(" ".join(str(problem).split()), 500)
        raise UsageError(f"{what} failed with {type(problem).__name__}: {text}") from problem


class _DocumentError(Exception):
    """A fault of a document that is valid JSON."""


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
