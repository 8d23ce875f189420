"""An Android device over adb, with Python there (as in Termux) or with benchmark_model."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from lrfc.errors import DependencyError, DeviceError, UsageError
from lrfc.system.reader import kind, located
from lrfc.targets.devices.device import ADB, Device
from lrfc.targets.devices.process import SCRIPT
from lrfc.targets.devices.runners.base import DeviceRunner
from lrfc.targets.devices.runners.benchmark_model import BenchmarkRunner
from lrfc.targets.devices.runners.python import PythonRunner
from lrfc.targets.devices.runners.remote import RemoteTransport, size
from lrfc.targets.devices.runners.remote_folder import (
    NotOpenedError,
    RemoteFolder,
    disk_full,
    script,
)

#: Seconds that adb gets to answer; it may have to start its server.
PATIENCE = 30.0
#: Messages of adb that mean a lost connection.
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
    """The runner of an Android device: Python, where the profile names one, or benchmark_model."""
    assert isinstance(device.connection, ADB)
    if device.connection.python is not None:
        return PythonRunner(device, ADBTransport(device))
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
    return BenchmarkRunner(device, ADBTransport(device), program)


class ADBTransport(RemoteTransport):
    """A connection to a device that adb knows."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, ADB)
        self._connection = device.connection
        super().__init__(device.name, self._connection.folder)

    def _connect(self, stack: ExitStack) -> RemoteFolder:
        program = shutil.which("adb")
        if program is None:
            raise DependencyError(
                "the program adb is not installed on this machine; install Android's platform-tools"
                " (Debian: apt-get install adb)"
            )
        self._adb = [program, "-s", self._serial(program)]
        try:
            return RemoteFolder([*self._adb, "shell", "-T", script(self._parent)], PATIENCE)
        except NotOpenedError as failure:
            subject, lines = f"device '{self._name}'", failure.stderr.splitlines()
            if disk_full(failure.stderr):
                raise self._full(subject) from None
            reason = lines[-1] if lines else "no shell answered in time"
            raise DeviceError(
                f"{subject}: no folder can be made in {self._parent}: {reason}"
            ) from None

    def _serial(self, program: str) -> str:
        """The serial number of the device; DeviceError unless it is ready for use."""
        subject, states = f"device '{self._name}'", self._states(program)
        wanted = self._connection.serial or os.environ.get("ANDROID_SERIAL")
        if not states:
            raise DeviceError(
                f"{subject}: adb sees no device; connect it, and allow USB debugging in its"
                " developer options"
            )
        if wanted is None and len(states) > 1:
            raise DeviceError(
                f"{subject}: adb sees several devices ({', '.join(states)}); name one in the"
                " profile (connection.serial)"
            )
        serial = wanted or next(iter(states))
        if serial not in states:
            raise DeviceError(
                f"{subject}: adb sees no device '{serial}'; it sees {', '.join(states)}"
            )
        match (states[serial].split() or [""])[0]:
            case "device":
                return serial
            case "unauthorized":
                raise DeviceError(
                    f"{subject}: '{serial}' does not trust this machine yet; allow USB debugging on"
                    " its screen"
                )
            case "offline":
                raise DeviceError(
                    f"{subject}: '{serial}' is offline; reconnect it, or try adb reconnect"
                )
            case _:
                raise DeviceError(f"{subject}: '{serial}' cannot be used: {states[serial]}")

    def _states(self, program: str) -> dict[str, str]:
        """Serial number → state of every device that adb lists."""
        try:
            done = _run([program, "devices"], PATIENCE)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"device '{self._name}': adb devices did not answer within {PATIENCE:g} s; try adb"
                " kill-server"
            ) from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["without a message"]
            raise DeviceError(f"device '{self._name}': adb devices failed: {lines[-1]}")
        return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)

    def _send(self, file: Path, content: bytes, path: str, timeout: float) -> None:
        done = _run([*self._adb, "push", str(file), path], timeout, own_session=True)
        if not done.returncode:
            return
        output = f"{done.stdout}\n{done.stderr}".strip()
        if disk_full(output):
            raise self._full(f"device '{self._name}'", f" for {size(file, content)}")
        raise self._failed(f"{file.name} was not sent", output)

    def run(self, commands: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run commands of a shell there; return their output and exit code.

        DeviceError when the time is up or the device gone.
        """
        # The number of the process, by which the holder of the folder kills what hangs.
        noted = f"echo $$ > {shlex.quote(self.folder)}/$$.pid; {commands}"
        try:
            done = _run([*self._adb, "shell", "-T", noted], timeout, own_session=True)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"device '{self._name}' did not answer within {timeout:.0f} s; allow more time or"
                " fewer runs"
            ) from None
        if done.returncode == 1 and _lost(done.stderr):
            raise self._failed("the connection was lost", done.stderr)
        return done

    def command(self, timeout: float) -> list[str]:
        """The command of adb that runs the worker script in the remote Python."""
        assert self._connection.python is not None
        words = (self._connection.python, self.put(SCRIPT, timeout), self.folder)
        return [*self._adb, "shell", "-T", f"{shlex.join(words)}; exit $?"]

    def death(self, code: int, stderr: str) -> str:
        """A lost connection, a missing Python, or one that cannot be run."""
        reason = f": {stderr}" if stderr else ""
        if _lost(stderr):
            return f"is gone: the connection to device '{self._name}' was lost{reason}"
        if code in (126, 127):
            return (
                f"did not start: {self._connection.python} cannot be run on device"
                f" '{self._name}'{reason}; correct connection.python in the profile"
            )
        return f"ended with exit code {code} on device '{self._name}'{reason}"

    def _failed(self, event: str, output: str) -> DeviceError:
        """The error of something that failed there, with the last line of adb's output."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return DeviceError(f"device '{self._name}': {event}{f': {lines[-1]}' if lines else ''}")


def _run(
    command: list[str], timeout: float, *, own_session: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run adb to its end. ``own_session``: Ctrl-C does not reach it."""
    return subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        start_new_session=own_session,
    )


def _lost(stderr: str) -> bool:
    """Whether a message of adb itself says that the connection is gone."""
    return stderr.startswith(("error:", "adb:")) and any(phrase in stderr for phrase in _LOST)
