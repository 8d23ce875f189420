"""Put a finished folder into the place of another, so that one of the two is always there.

Beside the folder NAME lie ``.NAME.lrfc-lock`` while a process writes it, ``.NAME.partial`` with
what is being written or removed, and ``.NAME.old``, always whole, where the file system cannot
exchange two folders and the process was killed between two renames. The next start puts that one
back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from lrfc.system.locks import HeldError, Lock

#: linux/fs.h, linux/fcntl.h
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def staging(final: Path) -> Path:
    """The folder that is written before it becomes ``final``."""
    return final.with_name(f".{final.name}.partial")


def lock(final: Path) -> Lock:
    """The lock of those who write ``final``. Its name is the longest: where it fits, all do."""
    return Lock(final.with_name(f".{final.name}.lrfc-lock"))


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def replace(final: Path) -> None:
    """Move the staged folder into its place and remove the one before. For the lock's holder.

    When a step fails with an error, the old folder is in its place again.
    """
    work, old = staging(final), _aside(final)
    _write_through(work)
    try:
        if not final.exists():
            work.rename(final)
        elif not exchange(work, final):
            final.rename(old)
            work.rename(final)
    finally:
        settle(final)
    _write_through(final.parent, contents=False)


def settle(final: Path) -> None:
    """Put back an old folder that stands aside, and remove what is left. For the lock's holder."""
    work, old = staging(final), _aside(final)
    shutil.rmtree(work, ignore_errors=True)
    if old.exists():
        if final.exists():
            old.rename(work)  # what is partly removed must not be taken for the old folder
            shutil.rmtree(work, ignore_errors=True)
        else:
            old.rename(final)


def recover(final: Path) -> None:
    """Put in order what a killed process has left beside a folder that no other process writes."""
    guard = lock(final)
    if any(os.path.lexists(path) for path in (staging(final), _aside(final), guard.path)):
        try:
            with guard:
                settle(final)
        except HeldError:
            return


def exchange(a: Path, b: Path) -> bool:
    """Let two names trade what they stand for, in one step; False where the system cannot."""
    if sys.platform != "linux" or not hasattr(
        libc := ctypes.CDLL(None, use_errno=True), "renameat2"
    ):
        return False
    sys.audit("os.rename", a, b, -1, -1)
    names = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b))
    if libc.renameat2(*names, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))


def _write_through(path: Path, *, contents: bool = True) -> None:
    """Have the disk hold a folder, with what is in it, before a name leads to it."""
    for each in (*(path.rglob("*") if contents else ()), path):
        if each.is_symlink() or (os.name == "nt" and each.is_dir()):
            continue
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:  # some network file systems, for folders
                raise
        finally:
            os.close(descriptor)
