"""A process on a device that runs targets/devices/worker.py, spoken to line by line; where the device is, a Transport knows."""

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
#: Of what a process says on stderr, so many bytes at its end are looked at.
LAST_BYTES = 64 << 10


class Transport(Protocol):
    """How files come to a device and processes start there.

    Open inside a ``with`` block; its end removes everything that came to the device.
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
        """Remove what was put there."""
        ...

    @property
    def folder(self) -> str:
        """A folder there, to write into."""
        ...

    def put(self, file: Path, timeout: float) -> str:
        """Bring a file there, within ``timeout`` seconds; its path there."""
        ...

    def command(self, timeout: float) -> list[str]:
        """The command on this machine that starts a worker there, its stdin and stdout those of the command."""
        ...

    def death(self, code: int, said: str) -> str:
        """What it means that the command ended with that exit code and that last line on stderr: the predicate of a sentence."""
        ...


class Here:
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
        """The file is there."""
        return str(file)

    def command(self, timeout: float) -> list[str]:
        """A process of Python."""
        return [
            self._python or sys.executable,
            "-W",
            "ignore",
            str(SCRIPT),
        ]  # whatever PYTHONWARNINGS says

    def death(self, code: int, said: str) -> str:
        """The signal or the exit code."""
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        return f"{how}: {said}" if said else how


class Worker:
    """A process that answers requests; killed and waited for when the block ends, however it ends.

    ``task``: what it does, for messages.
    """

    def __init__(self, transport: Transport, task: str, timeout: float, deadline: float) -> None:
        self._transport, self._task, self._timeout, self._deadline = (
            transport,
            task,
            timeout,
            deadline,
        )
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
        """Seconds until the time is up."""
        return max(self._deadline - time.monotonic(), 0.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in lines(cast("TextIO", self._process.stdout), CHARACTERS):
            if line.startswith("{"):  # not what a login shell prints
                self._answers.put(line)
        self._answers.put("")  # the process is gone

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The process's answer; DeviceError when it is an error, makes no sense, does not come in time, or cannot come."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            line = self._answers.get(timeout=self.left())
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            raise DeviceError(
                f"it took more than {self._timeout:g} s to {self._task}; allow more time or fewer"
                " runs"
            ) from None
        if not line:
            raise DeviceError(f"the process to {self._task} {self._death()}")
        return answer(request, line, self._task)

    def _death(self) -> str:
        code = self._process.wait()
        said = [line.strip() for line in ended(self._errors).splitlines() if line.strip()]
        return self._transport.death(code, shown(said[-1], 500) if said else "")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self._process)
        self._reader.join()
        for pipe in (self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()


def lines(stream: TextIO, longest: int) -> Iterator[str]:
    """The lines of a stream until its end, or until one has more than so many characters: what writes such a line never ends it."""
    while line := stream.readline(longest + 1):
        yield line
        if len(line) > longest:
            return


def ended(file: IO[str]) -> str:
    """The end of what a process wrote into a file of its own."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - LAST_BYTES, 0))
    return file.read()


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process of a session of its own, and what it started: a wrapper of Python may have a child."""
    if process.poll() is None and hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # an unsent request is of no use to a dead process
        process.stdin.close()
