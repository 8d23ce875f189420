"""A folder on a device that removes itself: a shell there makes it, says its name and waits; when the connection ends, however it ends, it is removed."""

from __future__ import annotations

import queue
import shlex
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO, cast

from lrfc.errors import DeviceError
from lrfc.system import scratch
from lrfc.system.reader import shown
from lrfc.targets.devices.process import ended, lines

#: Characters that a line of the shell there may have.
LONGEST = 1 << 16
#: Seconds that the shell gets to remove the folder.
PATIENCE = 15.0


def script(parent: str) -> str:
    """The commands for a POSIX shell. It ends with 73 when no folder can be made in ``parent``.

    A signal must not end the shell before it has removed the folder. A worker that hangs does not
    see its stdin end: those whose number stands in a file .pid of the folder are killed.
    """
    template = shlex.quote(f"{parent.rstrip('/')}/lrfc-XXXXXX")
    return (
        f'umask 077; trap "" HUP INT TERM PIPE; d=$(mktemp -d {template}) || exit 73; echo'
        ' "lrfc-folder $d"; cat > /dev/null; for p in "$d"/*.pid; do kill -9 "$(cat "$p")"; done'
        ' 2> /dev/null; rm -rf "$d" || { sleep 1; rm -rf "$d"; } && echo lrfc-removed'
    )


class NotOpenedError(Exception):
    """The command ended, or said nothing, before it gave a folder.

    ``code`` is None when the time was up.
    """

    def __init__(self, code: int | None, said: str) -> None:
        super().__init__(said)
        self.code, self.said = code, said


class Keeper:
    """The process on this machine whose life is the life of the folder there."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self._errors = scratch.unnamed("w+", encoding="utf-8", errors="replace")  # closed by kill
        self._process = subprocess.Popen(  # noqa: S603 - a session of its own: Ctrl-C comes to this process alone
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.folder = self._opened(timeout)
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in lines(cast("TextIO", self._process.stdout), LONGEST):
            if line.startswith("lrfc-"):  # a login shell may print something, too
                self._lines.put(line.strip())
        self._lines.put("")

    def _opened(self, timeout: float) -> str:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise NotOpenedError(None, self.said()) from None
        if not line:
            code = self._process.wait()
            raise NotOpenedError(code, self.said())
        _, _, folder = line.partition("lrfc-folder ")
        if not folder or folder.startswith("-") or not folder.isprintable():
            raise NotOpenedError(
                0, f"it says that the folder is '{shown(folder)}', which is no path"
            )
        return folder

    def said(self) -> str:
        """What the command said on stderr."""
        return ended(self._errors).strip()

    def close(self) -> bool:
        """Have the folder removed; whether that is certain."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            removed = self._lines.get(timeout=PATIENCE) == "lrfc-removed"
        except (BrokenPipeError, queue.Empty):
            removed = False
        self.kill()
        return removed

    def kill(self) -> None:
        """End the connection. The shell there sees that, and removes the folder."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join()
        for pipe in (self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()


def no_room(said: str) -> bool:
    """Whether a command's words mean that the disk there is full, or a quota or a limit reached."""
    words = (
        "no space left",
        "quota exceeded",
        "file too large",
        "file size limit",
        "not enough space",
        "no space on device",
    )
    return any(word in said.lower() for word in words)


def left_behind(name: str, folder: str) -> DeviceError:
    """The folder could not be removed, for all that is known."""
    return DeviceError(
        f"device '{name}': the connection ended badly; see whether {folder} is still there, and"
        " remove it"
    )
