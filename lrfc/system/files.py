"""Atomic writes: a file is written completely or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lrfc.errors import UsageError
from lrfc.system import scratch

#: The remedy in the message about a file that cannot be written, by default.
_WAY_OUT = "choose another --out"
#: The remedy for the user's own device profiles and cost profiles.
CONFIG = "make its folder writable, or set XDG_CONFIG_HOME to another"


def write(
    path: Path, content: bytes | bytearray | str, *, parents: bool = False, way_out: str = _WAY_OUT
) -> Path:
    """Write text (as UTF-8) or bytes; see ``write_with``."""
    data = content.encode() if isinstance(content, str) else content
    return write_with(path, lambda file: file.write(data), parents=parents, way_out=way_out)


def write_with(
    path: Path,
    fill: Callable[[IO[bytes]], object],
    *,
    parents: bool = False,
    way_out: str = _WAY_OUT,
) -> Path:
    """Write a temporary file with ``fill``, rename it to ``path``, and return the path.

    ``parents``: whether missing folders are created. ``way_out``: the remedy in the error message.
    UsageError when the file cannot be written; an existing file then stays as it was. The same
    holds when the process is killed: a later run of lrfc removes the temporary file.
    """
    final = Path(os.path.realpath(path))  # so that a link stays a link
    part = final.with_name(f".{final.name[:100]}.{uuid.uuid4().hex[:8]}.part")
    try:
        if _is_special(path):
            with path.open("wb") as file:
                fill(file)
            return path
        if parents:
            final.parent.mkdir(parents=True, exist_ok=True)
        with scratch.file_elsewhere(part):
            try:
                with part.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                if final.exists():
                    part.chmod(final.stat().st_mode & 0o777)
                part.replace(final)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; {way_out}") from error
    return path


def check(path: Path, *, way_out: str = _WAY_OUT) -> None:
    """Raise UsageError, before any work, where no file can be written at the path."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(path):
            return
        folder = next(p for p in Path(os.path.realpath(path)).parents if p.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; {way_out}") from error


def _is_special(path: Path) -> bool:
    """Whether the path is a pipe or a device, such as /dev/stdout, which cannot be replaced."""
    return path.exists() and not path.is_file()
