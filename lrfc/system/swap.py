"""Replace a folder by a finished one, so that one of the two exists at every moment.

Three paths next to the folder NAME are in use: ``.NAME.lrfc-lock`` while a process writes it;
``.NAME.partial`` with files that are being written or removed; and ``.NAME.old``, the complete
previous folder, where the file system cannot exchange two folders and the process was killed
between two renames. The next start moves that one back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from lrfc.system.locks import HeldError, Lock

#: Constants of linux/fs.h and linux/fcntl.h.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def staging(final: Path) -> Path:
    """Return the folder that is written first and then replaces ``final``."""
    return final.with_name(f".{final.name}.partial")


def lock(final: Path) -> Lock:
    """Return the lock for writing ``final``.

    Its name is the longest of the three: where it is not too long, none is.
    """
    return Lock(final.with_name(f".{final.name}.lrfc-lock"))


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def replace(final: Path) -> None:
    """Replace ``final`` by the staged folder. The caller holds the lock.

    When a step fails with an error, the old folder is back in its place.
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
    """Move an old folder back where needed, and remove leftovers. The caller holds the lock."""
    work, old = staging(final), _aside(final)
    shutil.rmtree(work, ignore_errors=True)
    if old.exists():
        if final.exists():
            old.rename(work)  # so that a partly removed folder never passes for the old one
            shutil.rmtree(work, ignore_errors=True)
        else:
            old.rename(final)


def recover(final: Path) -> None:
    """Settle ``final`` after a process was killed, unless another process is writing it."""
    guard = lock(final)
    if any(os.path.lexists(path) for path in (staging(final), _aside(final), guard.path)):
        try:
            with guard:
                settle(final)
        except HeldError:
            return


def exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; False where the system cannot."""
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
    """Flush a folder and its contents to the disk, so that a rename never precedes them."""
    for entry in (*(path.rglob("*") if contents else ()), path):
        if entry.is_symlink() or (os.name == "nt" and entry.is_dir()):
            continue
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:  # as some network file systems report for folders
                raise
        finally:
            os.close(descriptor)
