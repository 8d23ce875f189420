"""A folder on a device that removes itself.

A shell on the device makes it, prints its name and waits. When the connection ends, however it
ends, the shell removes the folder.
"""

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
from lrfc.targets.devices.process import last_output, lines

#: Characters that a line of the remote shell may have.
LONGEST = 1 << 16
#: Seconds that the shell gets to remove the folder.
PATIENCE = 15.0


def script(parent: str) -> str:
    """Return the POSIX shell commands that make, hold and remove a folder in ``parent``.

    They end with exit code 73 when no folder can be made. A signal must not end the shell before
    it has removed the folder. A worker that hangs does not see its stdin end: the processes whose
    numbers are in the .pid files of the folder are killed.
    """
    template = shlex.quote(f"{parent.rstrip('/')}/lrfc-XXXXXX")
    return (
        f'umask 077; trap "" HUP INT TERM PIPE; d=$(mktemp -d {template}) || exit 73; echo'
        ' "lrfc-folder $d"; cat > /dev/null; for p in "$d"/*.pid; do kill -9 "$(cat "$p")"; done'
        ' 2> /dev/null; rm -rf "$d" || { sleep 1; rm -rf "$d"; } && echo lrfc-removed'
    )


class NotOpenedError(Exception):
    """The command ended, or was silent for too long, before it printed the name of a folder.

    ``code``: its exit code; None after a timeout. ``stderr``: its messages.
    """

    def __init__(self, code: int | None, stderr: str) -> None:
        super().__init__(stderr)
        self.code, self.stderr = code, stderr


class RemoteFolder:
    """The process on this machine that holds the folder on the device.

    ``path``: the folder there. NotOpenedError when the command prints none within ``timeout``
    seconds.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self._errors = scratch.unnamed("w+", encoding="utf-8", errors="replace")  # closed by kill
        # A session of its own: Ctrl-C comes to this process alone.
        self._process = subprocess.Popen(  # noqa: S603 - the command is ours
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
            self.path = self._opened(timeout)
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
        """Wait for the path of the folder."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise NotOpenedError(None, self.stderr()) from None
        if not line:
            code = self._process.wait()
            raise NotOpenedError(code, self.stderr())
        _, _, path = line.partition("lrfc-folder ")
        if not path or path.startswith("-") or not path.isprintable():
            raise NotOpenedError(0, f"it says that the folder is '{shown(path)}', which is no path")
        return path

    def stderr(self) -> str:
        """The end of the command's stderr."""
        return last_output(self._errors).strip()

    def close(self) -> bool:
        """Have the folder removed; return whether the device confirmed it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            removed = self._lines.get(timeout=PATIENCE) == "lrfc-removed"
        except (BrokenPipeError, queue.Empty):
            removed = False
        self.kill()
        return removed

    def kill(self) -> None:
        """End the connection. The remote shell sees that, and removes the folder."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join()
        for pipe in (self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()


def disk_full(output: str) -> bool:
    """Whether the output of a command says that a disk is full, or a quota or limit reached."""
    phrases = (
        "no space left",
        "quota exceeded",
        "file too large",
        "file size limit",
        "not enough space",
        "no space on device",
    )
    return any(phrase in output.lower() for phrase in phrases)


def left_behind(name: str, folder: str) -> DeviceError:
    """The error of a folder that may still be on the device ``name``."""
    return DeviceError(
        f"device '{name}': the connection ended badly; see whether {folder} is still there, and"
        " remove it"
    )
