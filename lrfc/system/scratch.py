"""Temporary files, in one folder of the process that a later run removes after a kill."""

from __future__ import annotations

import getpass
import os
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lrfc.errors import UsageError
from lrfc.system import swap
from lrfc.system.locks import HeldError, Lock
from lrfc.system.overrides import Override

_LOCK = "lock"
#: Notes of what a process has in other folders: temporary files, and output folders it replaces.
_FILES, _FOLDERS = "files", "folders"


def root(within: Path | None = None) -> Path:
    """The folder of this user's temporary files, ``lrfc-UID``.

    It lies in the system's folder of temporary files (TMPDIR), or in ``within``.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    return (within or _ROOTS.system or _system()) / f"lrfc-{user}"


def _system() -> Path:
    """The folder that ``tempfile`` takes, without the file that it writes there to try it.

    Where the process is killed at that moment, the file stays.
    """
    if tempfile.tempdir is not None or os.name == "nt":
        return Path(tempfile.gettempdir())
    named = [os.environ.get(variable) for variable in ("TMPDIR", "TEMP", "TMP")]
    for place in (*named, "/tmp", "/var/tmp", "/usr/tmp"):  # noqa: S108 - a folder in it is made
        if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):  # noqa: PTH112
            return Path(place).absolute()
    raise UsageError(
        "there is no folder for temporary files that can be written; name one in TMPDIR"
    )


@contextmanager
def folder(within: Path | None = None) -> Iterator[Path]:
    """A new folder, removed with what is in it at the end of the block, or by a later run.

    UsageError when the place of temporary files cannot be used.
    """
    with _opened(within) as own:
        path = own / uuid.uuid4().hex[:8]
        with _usable(path):
            path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def unnamed(mode: str = "w+b", **options: Any) -> IO[Any]:
    """An open file without a name, which is gone once it is closed (and unmapped)."""
    with _opened(None) as own, _usable(own):
        return tempfile.TemporaryFile(mode, dir=own, **options)


def kept(prefix: str, suffix: str) -> IO[str]:
    """A new text file that is kept: what to look at after a failure."""
    with _opened(None) as own, _usable(own):
        name = f"{prefix}{uuid.uuid4().hex[:8]}{suffix}"
        return (own.parent / name).open("x", encoding="utf-8")


def free() -> int:
    """Bytes that temporary files may still take."""
    with _opened(None) as own:
        return shutil.disk_usage(own).free


@contextmanager
def file_elsewhere(path: Path) -> Iterator[None]:
    """A block in which a temporary file, NAME.part, lies outside of this process's folder.

    Where the process is killed in the block, a later run removes the file.
    """
    with _opened(None) as own, _noted(own / _FILES, path):
        yield


@contextmanager
def folder_elsewhere(path: Path) -> Iterator[None]:
    """A block in which an output folder is written.

    Where the process is killed in the block, a later run puts the folder in order, see
    ``lrfc.system.swap.recover``.
    """
    with _opened(None) as own, _noted(own / _FOLDERS, path):
        yield


@contextmanager
def for_all() -> Iterator[Path]:
    """A block in which libraries and child processes put their temporary files here, too.

    For a program that is lrfc and nothing else: the folder goes with the block.
    """
    with folder() as own, _PLACE.to(own):
        yield own


def _place() -> tuple[str | None, str | None]:
    _ROOTS.system = _system()
    return tempfile.tempdir, os.environ.get("TMPDIR")


def _move(own: Path) -> None:
    tempfile.tempdir = os.environ["TMPDIR"] = str(own)


def _move_back(before: tuple[str | None, str | None]) -> None:
    _ROOTS.system = None
    tempfile.tempdir, variable = before
    os.environ.pop("TMPDIR", None)
    if variable is not None:
        os.environ["TMPDIR"] = variable


_PLACE: Override[tuple[str | None, str | None], Path] = Override(_place, _move, _move_back)


# -- the folder of a process -----------------------------------------------------------------------


class _Roots:
    """The folders of this process, each with the number of blocks that use it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.system: Path | None = None
        self.open: dict[tuple[Path, int], tuple[Path, Lock]] = {}
        self.uses: dict[tuple[Path, int], int] = {}


_ROOTS = _Roots()


@contextmanager
def _opened(within: Path | None) -> Iterator[Path]:
    """The process's folder, made by the first block that needs it and removed by the last."""
    top = root(within)
    key = (top, os.getpid())  # not that of the process this one was forked from
    with _ROOTS.lock:
        if key not in _ROOTS.open:
            with _usable(top):
                _ROOTS.open[key] = _begun(top)
                _sweep(top)
        _ROOTS.uses[key] = _ROOTS.uses.get(key, 0) + 1
        path, lock = _ROOTS.open[key]
    try:
        yield path
    finally:
        with _ROOTS.lock:
            _ROOTS.uses[key] -= 1
            if not _ROOTS.uses[key]:
                del _ROOTS.uses[key], _ROOTS.open[key]
                shutil.rmtree(path, ignore_errors=True)
                lock.release()
                with suppress(OSError):  # not empty
                    top.rmdir()


def _make(top: Path) -> None:
    """The root, which nobody else can write into."""
    with suppress(FileExistsError):
        top.mkdir(mode=0o700)
    found = top.lstat()  # of the link, where it is one
    foreign = hasattr(os, "getuid") and found.st_uid != os.getuid()
    if not stat.S_ISDIR(found.st_mode):
        wrong = "is not a folder"
    elif foreign:
        wrong = "belongs to somebody else"
    elif hasattr(os, "getuid") and found.st_mode & 0o077:
        wrong = "can be read or written by others"
    else:
        return
    raise UsageError(
        f"the folder of temporary files {top} {wrong}; remove it, or set TMPDIR to another place"
    )


def _begun(top: Path) -> tuple[Path, Lock]:
    """A new folder of this process, and the lock that says that the process lives."""
    while True:
        _make(top)
        path = top / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir(mode=0o700)
            return path, Lock(path / _LOCK).take()
        except (HeldError, FileNotFoundError):
            continue  # another run removed the root, or took this for one that was left behind


def _sweep(top: Path) -> None:
    """Remove what processes have left that no longer live, here and in other folders."""
    for path in sorted(top.iterdir()):
        if not path.is_dir() or path.is_symlink():
            continue
        # What cannot be locked belongs to a process that lives, or is being removed by another run;
        # what cannot be removed now, such as a part of an output folder on a disk that is not
        # there, stays for a later run.
        with suppress(HeldError, OSError), Lock(path / _LOCK):
            for place in _notes(path / _FOLDERS):
                swap.recover(place)
            for place in _notes(path / _FILES):
                if place.suffix == ".part":
                    place.unlink(missing_ok=True)
            shutil.rmtree(path)


def _notes(folder: Path) -> list[Path]:
    contents = [note.read_bytes() for note in folder.iterdir()] if folder.is_dir() else []
    return [Path(os.fsdecode(each[:-1])) for each in contents if each.endswith(b"\n")]


@contextmanager
def _noted(notes: Path, path: Path) -> Iterator[None]:
    note = notes / uuid.uuid4().hex
    with _usable(note):
        notes.mkdir(exist_ok=True)
        note.write_bytes(os.fsencode(path.absolute()) + b"\n")  # without its end it is not followed
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"temporary files cannot be written to {path.parent} ({error.strerror}); set TMPDIR to"
            " another place"
        ) from error
