"""Worker processes: targets/devices/worker.py on a device, started and fed through a Transport."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, TextIO, cast

from lrfc.errors import DeviceError
from lrfc.system import scratch
from lrfc.system.reader import shown
from lrfc.targets.devices.answers import CHARACTERS, answer

SCRIPT = Path(__file__).with_name("worker.py")
#: Bytes that are read at the end of a process's stderr.
LAST_BYTES = 64 << 10


class Transport(Protocol):
    """Sends files to a device and starts processes there.

    Open inside a ``with`` block, whose end removes everything that was sent to the device.
    """

    def __enter__(self) -> Self:
        """Connect; DeviceError when that fails."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove all that was sent."""
        ...

    @property
    def folder(self) -> str:
        """A writable folder there."""
        ...

    def put(self, file: Path, timeout: float) -> str:
        """Send a file within ``timeout`` seconds; return its path there."""
        ...

    def command(self, timeout: float) -> list[str]:
        """The command on this machine that starts a worker there, with its stdin and stdout."""
        ...

    def death(self, code: int, stderr: str) -> str:
        """The predicate of a sentence that says how a command ended.

        ``code``: its exit code. ``stderr``: the last line there.
        """
        ...


class LocalTransport:
    """This machine. ``python``: another interpreter than the one that runs lrfc."""

    def __init__(self, python: str | None = None) -> None:
        self._python = python
        self._stack = ExitStack()
        self.folder = ""

    def __enter__(self) -> Self:
        self.folder = str(self._stack.enter_context(scratch.folder()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def put(self, file: Path, timeout: float) -> str:
        """The path of the file: it is there already."""
        return str(file)

    def command(self, timeout: float) -> list[str]:
        """The command of a Python process."""
        # Without warnings, whatever PYTHONWARNINGS says.
        return [self._python or sys.executable, "-W", "ignore", str(SCRIPT)]

    def death(self, code: int, stderr: str) -> str:
        """The signal or the exit code."""
        end = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        return f"{end}: {stderr}" if stderr else end


class Worker:
    """A process that answers requests; killed and waited for when the block ends, however it ends.

    ``task``: its task in the infinitive, for messages. ``deadline``: on the clock of
    ``time.monotonic``; ``timeout``: the seconds that this was at first, for messages.
    """

    def __init__(self, transport: Transport, task: str, timeout: float, deadline: float) -> None:
        self._transport, self._task = transport, task
        self._timeout, self._deadline = timeout, deadline
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Self:
        command = self._transport.command(self.left())
        self._errors = scratch.unnamed("w+", encoding="utf-8", errors="replace")
        try:  # a session of its own: Ctrl-C comes to this process alone
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(
                f"no process can be started to {self._task}: {command[0]}: {error.strerror}"
            ) from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def left(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(self._deadline - time.monotonic(), 0.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in lines(cast("TextIO", self._process.stdout), CHARACTERS):
            if line.startswith("{"):  # a login shell may print something, too
                self._answers.put(line)
        self._answers.put("")  # the process is gone

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer.

        DeviceError when the answer is an error or makes no sense, does not come in time, or cannot
        come because the process has died.
        """
        assert self._process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # what it said before it died is still to come
                self._process.stdin.write(json.dumps(request) + "\n")
            line = self._answers.get(timeout=self.left())
        except queue.Empty:
            raise DeviceError(
                f"it took more than {self._timeout:g} s to {self._task}; allow more time or fewer"
                " runs"
            ) from None
        if not line:
            self._answers.put("")  # for further requests
            raise DeviceError(f"the process to {self._task} {self._death()}")
        return answer(request, line, self._task)

    def _death(self) -> str:
        code = self._process.wait()
        errors = [line.strip() for line in last_output(self._errors).splitlines() if line.strip()]
        return self._transport.death(code, shown(errors[-1], 500) if errors else "")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        kill(self._process)
        self._reader.join()
        for pipe in (self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()


def lines(stream: TextIO, longest: int) -> Iterator[str]:
    """The lines of a stream, until its end or until one has more than ``longest`` characters.

    A program that writes such a line may never end it.
    """
    while line := stream.readline(longest + 1):
        yield line
        if len(line) > longest:
            return


def last_output(file: IO[str]) -> str:
    """The last LAST_BYTES of the file that a process writes its output to."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - LAST_BYTES, 0))
    return file.read()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process that has a session of its own, and its children: Python may be a wrapper."""
    if process.poll() is None and hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # an unsent request is of no use to a dead process
        process.stdin.close()
