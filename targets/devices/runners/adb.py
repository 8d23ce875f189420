"""An Android device over adb: how to reach it, with Python there (as in Termux) or with TensorFlow Lite's benchmark_model."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lrfc.errors import DependencyError, DeviceError, UsageError
from lrfc.system.reader import kind, located
from lrfc.targets.devices.device import ADB, Device
from lrfc.targets.devices.process import SCRIPT
from lrfc.targets.devices.runners.base import DeviceRunner
from lrfc.targets.devices.runners.benchmark_model import BenchmarkRunner
from lrfc.targets.devices.runners.keeper import Keeper, NotOpenedError, left_behind, no_room, script
from lrfc.targets.devices.runners.python import PythonRunner

#: Seconds that adb gets to answer; it may have to start its server.
PATIENCE = 30.0
_LOST = (
    "not found",
    "offline",
    "no devices",
    "error: closed",
    "device unauthorized",
    "protocol fault",
    "cannot connect to daemon",
)


def adb_runner(device: Device) -> DeviceRunner:
    """The runner of an Android device: Python there, where the profile names one, or benchmark_model."""
    assert isinstance(device.connection, ADB)
    if device.connection.python is not None:
        return PythonRunner(device, Attached(device))
    if device.connection.benchmark_model is None:
        raise UsageError(
            f"device '{device.name}': its profile names neither python nor benchmark_model under"
            " [connection]; one of them measures there"
        )
    program = located(device.connection.benchmark_model)
    if kind(program) != "a file":
        raise UsageError(
            f"device '{device.name}': connection.benchmark_model = '{program}' is no file; it is"
            " TensorFlow Lite's benchmark_model, built for the device"
        )
    return BenchmarkRunner(device, Attached(device), program)


class Attached:
    """A device that adb knows, and a folder of our own there that lives as long as a shell of ours."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, ADB)
        self._name, self._connection = device.name, device.connection
        self._there: dict[str, str] = {}

    def __enter__(self) -> Self:
        program = shutil.which("adb")
        if program is None:
            raise DependencyError(
                "the program adb is not installed on this machine; install Android's platform-tools"
                " (Debian: apt-get install adb)"
            )
        self._adb = [program, "-s", self._serial(program)]
        try:
            self._keeper = Keeper(
                [*self._adb, "shell", "-T", script(self._connection.folder)], PATIENCE
            )
        except NotOpenedError as failure:
            if no_room(failure.said):
                raise self._full() from None
            reason = failure.said.splitlines()[-1] if failure.said else "no shell answered in time"
            raise DeviceError(
                f"device '{self._name}': no folder can be made in {self._connection.folder}: {reason}"
            ) from None
        with ExitStack() as stack:
            stack.push(self._closed)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._there.clear()
        self._stack.__exit__(kind, error, trace)

    def _closed(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._keeper.close() and error is None:
            raise left_behind(self._name, self.folder)

    @property
    def folder(self) -> str:
        """Our folder there."""
        return self._keeper.folder

    def _serial(self, program: str) -> str:
        """The serial number of the device, ready to be used."""
        start = f"device '{self._name}'"
        try:
            done = subprocess.run(  # noqa: S603
                [program, "devices"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{start}: adb devices did not answer within {PATIENCE:g} s; try adb kill-server"
            ) from None
        if done.returncode:
            raise DeviceError(
                f"{start}: adb devices failed:"
                f" {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"
            )
        states = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
        wanted = self._connection.serial or os.environ.get("ANDROID_SERIAL")
        if not states:
            raise DeviceError(
                f"{start}: adb sees no device; connect it, and allow USB debugging in its developer"
                " options"
            )
        if wanted is None and len(states) > 1:
            raise DeviceError(
                f"{start}: adb sees several devices ({', '.join(states)}); name one in the profile"
                " (connection.serial)"
            )
        serial = wanted or next(iter(states))
        if serial not in states:
            raise DeviceError(
                f"{start}: adb sees no device '{serial}'; it sees {', '.join(states)}"
            )
        match (states[serial].split() or [""])[0]:
            case "device":
                return serial
            case "unauthorized":
                raise DeviceError(
                    f"{start}: '{serial}' does not trust this machine yet; allow USB debugging on"
                    " its screen"
                )
            case "offline":
                raise DeviceError(
                    f"{start}: '{serial}' is offline; reconnect it, or try adb reconnect"
                )
            case _:
                raise DeviceError(f"{start}: '{serial}' cannot be used: {states[serial]}")

    def put(self, file: Path, timeout: float) -> str:
        """Send a file, once."""
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._there:
            path = f"{self.folder}/{len(self._there)}{file.suffix}"
            try:
                done = subprocess.run(  # noqa: S603
                    [*self._adb, "push", str(file), path],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=timeout,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"device '{self._name}': sending {file.name} ({len(content):,} bytes) took more"
                    f" than {timeout:.0f} s"
                ) from None
            said = f"{done.stdout}\n{done.stderr}".strip()
            if done.returncode:
                raise (
                    self._full(f" for {file.name} ({len(content):,} bytes)")
                    if no_room(said)
                    else self.lost(f"{file.name} was not sent", said)
                )
            self._there[digest] = path
        return self._there[digest]

    def run(self, there: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """What the commands of a shell there said, and their exit code; DeviceError when the time is up or the device gone."""
        # The number of the process, by which the keeper of the folder kills what hangs.
        marked = f"echo $$ > {shlex.quote(self.folder)}/$$.pid; {there}"
        try:
            done = subprocess.run(  # noqa: S603
                [*self._adb, "shell", "-T", marked],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"device '{self._name}' did not answer within {timeout:.0f} s; allow more time or"
                " fewer runs"
            ) from None
        if (
            done.returncode == 1
            and done.stderr.startswith(("error:", "adb:"))
            and any(word in done.stderr for word in _LOST)
        ):
            raise self.lost("the connection was lost", done.stderr)
        return done

    def command(self, timeout: float) -> list[str]:
        """Python there, with the worker script."""
        assert self._connection.python is not None
        words = (self._connection.python, self.put(SCRIPT, timeout), self.folder)
        return [*self._adb, "shell", "-T", f"{shlex.join(words)}; exit $?"]

    def death(self, code: int, said: str) -> str:
        """A device that is gone, a missing Python, or one that cannot be run."""
        python = self._connection.python
        if any(word in said for word in _LOST) and said.startswith(("error:", "adb:")):
            return f"is gone: the connection to device '{self._name}' was lost: {said}"
        if code in (126, 127):
            return (
                f"did not start: {python} cannot be run on device"
                f" '{self._name}'{f': {said}' if said else ''}; mend connection.python in the profile"
            )
        return f"ended with exit code {code} on device '{self._name}'{f': {said}' if said else ''}"

    def lost(self, what: str, said: str) -> DeviceError:
        """Something did not work there, with the last word of adb."""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return DeviceError(f"device '{self._name}': {what}{f': {lines[-1]}' if lines else ''}")

    def _full(self, what: str = "") -> DeviceError:
        return DeviceError(
            f"device '{self._name}': no space left in {self._connection.folder}{what}; make room there,"
            " or name another folder in the profile"
        )
