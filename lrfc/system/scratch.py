"""Temporary files, in a folder of the process; after a kill, a later run removes it."""

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
#: Subfolders of notes on paths elsewhere: temporary files, and output folders being replaced.
_FILES, _FOLDERS = "files", "folders"


def root(within: Path | None = None) -> Path:
    """Return the path of this user's temporary files, ``lrfc-UID``.

    Its parent is ``within``, or the system's folder for temporary files (TMPDIR).
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    return (within or _ROOTS.system or _system()) / f"lrfc-{user}"


def _system() -> Path:
    """Return the folder that ``tempfile`` would choose, without writing its test file there.

    That file would stay if the process was killed at that moment.
    """
    if tempfile.tempdir is not None or os.name == "nt":
        return Path(tempfile.gettempdir())
    candidates = [os.environ.get(variable) for variable in ("TMPDIR", "TEMP", "TMP")]
    # S108: files are created in a private subfolder only.
    for path in (*candidates, "/tmp", "/var/tmp", "/usr/tmp"):  # noqa: S108
        if path and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):  # noqa: PTH112
            return Path(path).absolute()
    raise UsageError(
        "there is no folder for temporary files that can be written; name one in TMPDIR"
    )


@contextmanager
def folder(within: Path | None = None) -> Iterator[Path]:
    """Context manager: create a folder, and remove it with its contents.

    After a kill, a later run removes it. UsageError when no temporary files can be written.
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
    """Open a file without a name, which vanishes once it is closed and unmapped."""
    with _opened(None) as own, _usable(own):
        return tempfile.TemporaryFile(mode, dir=own, **options)


def kept(prefix: str, suffix: str) -> IO[str]:
    """Create a text file that is not removed, for logs of failures."""
    with _opened(None) as own, _usable(own):
        name = f"{prefix}{uuid.uuid4().hex[:8]}{suffix}"
        return (own.parent / name).open("x", encoding="utf-8")


def free() -> int:
    """Return the free space for temporary files, in bytes."""
    with _opened(None) as own:
        return shutil.disk_usage(own).free


@contextmanager
def file_elsewhere(path: Path) -> Iterator[None]:
    """Context manager for a temporary file, NAME.part, outside of this process's folder.

    If the process is killed within the block, a later run removes the file.
    """
    with _opened(None) as own, _noted(own / _FILES, path):
        yield


@contextmanager
def folder_elsewhere(path: Path) -> Iterator[None]:
    """Context manager for writing an output folder.

    If the process is killed within the block, a later run calls ``lrfc.system.swap.recover``.
    """
    with _opened(None) as own, _noted(own / _FOLDERS, path):
        yield


@contextmanager
def for_all() -> Iterator[Path]:
    """Context manager: redirect temporary files of libraries and child processes here, too.

    Only for programs that run nothing but lrfc: the folder is removed at the end of the block.
    """
    with folder() as own, _TMPDIR.to(own):
        yield own


def _read_tmpdir() -> tuple[str | None, str | None]:
    _ROOTS.system = _system()
    return tempfile.tempdir, os.environ.get("TMPDIR")


def _set_tmpdir(own: Path) -> None:
    tempfile.tempdir = os.environ["TMPDIR"] = str(own)


def _restore_tmpdir(saved: tuple[str | None, str | None]) -> None:
    _ROOTS.system = None
    tempfile.tempdir, variable = saved
    os.environ.pop("TMPDIR", None)
    if variable is not None:
        os.environ["TMPDIR"] = variable


_TMPDIR: Override[tuple[str | None, str | None], Path] = Override(
    _read_tmpdir, _set_tmpdir, _restore_tmpdir
)


# -- the folder of a process -----------------------------------------------------------------------


class _Roots:
    """The open folders of this process, and the number of blocks that use each."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.system: Path | None = None
        self.open: dict[tuple[Path, int], tuple[Path, Lock]] = {}
        self.uses: dict[tuple[Path, int], int] = {}


_ROOTS = _Roots()


@contextmanager
def _opened(within: Path | None) -> Iterator[Path]:
    """Context manager: the folder of this process; its last user removes it."""
    top = root(within)
    key = (top, os.getpid())  # a forked process has a folder of its own
    with _ROOTS.lock:
        if key not in _ROOTS.open:
            with _usable(top):
                _ROOTS.open[key] = _create(top)
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


def _create_root(top: Path) -> None:
    """Create the root; UsageError when anyone else owns it, or may read or write it."""
    with suppress(FileExistsError):
        top.mkdir(mode=0o700)
    status = top.lstat()  # of a link itself, not of its target
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if not stat.S_ISDIR(status.st_mode):
        fault = "is not a folder"
    elif foreign:
        fault = "belongs to somebody else"
    elif hasattr(os, "getuid") and status.st_mode & 0o077:
        fault = "can be read or written by others"
    else:
        return
    raise UsageError(
        f"the folder of temporary files {top} {fault}; remove it, or set TMPDIR to another place"
    )


def _create(top: Path) -> tuple[Path, Lock]:
    """Create a folder for this process, with the lock that shows that the process is alive."""
    while True:
        _create_root(top)
        path = top / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir(mode=0o700)
            return path, Lock(path / _LOCK).take()
        except (HeldError, FileNotFoundError):
            continue  # another run removed the root, or took this folder for a leftover


def _sweep(top: Path) -> None:
    """Remove the leftovers of killed processes, here and in other folders."""
    for path in sorted(top.iterdir()):
        if not path.is_dir() or path.is_symlink():
            continue
        # A locked folder belongs to a live process, or is being removed by another run. A file that
        # cannot be removed now, such as one on a disk that is not mounted, stays for a later run.
        with suppress(HeldError, OSError), Lock(path / _LOCK):
            for output in _notes(path / _FOLDERS):
                swap.recover(output)
            for part in _notes(path / _FILES):
                if part.suffix == ".part":
                    part.unlink(missing_ok=True)
            shutil.rmtree(path)


def _notes(folder: Path) -> list[Path]:
    """Return the paths that the notes in a folder name; a truncated note is ignored."""
    contents = [note.read_bytes() for note in folder.iterdir()] if folder.is_dir() else []
    return [Path(os.fsdecode(line[:-1])) for line in contents if line.endswith(b"\n")]


@contextmanager
def _noted(notes: Path, path: Path) -> Iterator[None]:
    """Context manager: keep a note of the path in the folder ``notes``."""
    note = notes / uuid.uuid4().hex
    with _usable(note):
        notes.mkdir(exist_ok=True)
        note.write_bytes(os.fsencode(path.absolute()) + b"\n")  # the line end marks it complete
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Context manager: turn OSError from creating ``path`` into UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"temporary files cannot be written to {path.parent} ({error.strerror}); set TMPDIR to"
            " another place"
        ) from error
