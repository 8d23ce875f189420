"""File locks that the system releases when their process ends, even when it is killed."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

#: The byte that Windows locks: behind the holder's name, so that others can read the name.
_LOCKED_BYTE = 1 << 20


class HeldError(Exception):
    """The lock is held by another process, or by another thread of this one."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


class Lock:
    """An exclusive lock, held from ``take`` to ``release`` or to the end of the process.

    Taking the lock creates the file, and releasing it removes the file. After a kill the file stays
    behind, unlocked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> Self:
        """Take the lock without waiting.

        HeldError when it is held already; OSError where the file cannot be created or its file
        system has no locks.
        """
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self.path, flags, 0o666)
            try:
                _lock(descriptor)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                raise HeldError(holder or "another process") from None
            except OSError:
                os.close(descriptor)
                raise
            if self._is_at_the_path(descriptor):
                break
            os.close(descriptor)  # the previous holder removed it between the two calls
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        return self

    def _is_at_the_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and release the lock."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):  # a folder that was removed or became read-only meanwhile
            self.path.unlink()
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self.take()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error

else:

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
