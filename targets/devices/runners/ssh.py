"""A machine with Python, over the system's OpenSSH client.

The user's ssh config, agent and jump hosts apply.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from lrfc.errors import DependencyError, DeviceError
from lrfc.system import scratch
from lrfc.targets.devices.device import SSH, Device
from lrfc.targets.devices.process import SCRIPT
from lrfc.targets.devices.runners.python import PythonRunner
from lrfc.targets.devices.runners.remote import RemoteTransport, size
from lrfc.targets.devices.runners.remote_folder import (
    NotOpenedError,
    RemoteFolder,
    disk_full,
    script,
)

#: Attempts to connect, and the seconds between them.
ATTEMPTS = 3
PAUSE = 1.0
#: Seconds without an answer after which a connection is given up. It is probed every third of that.
SILENCE = 15
#: ssh's own exit code when the connection fails; any other is that of the remote command.
FAILED = 255
#: Messages of ssh after which another attempt may succeed.
_TRANSIENT = (
    "connection refused",
    "timed out",
    "no route to host",
    "network is unreachable",
    "connection reset",
    "connection closed",
    "closed by remote host",
    "kex_exchange_identification",
    "banner exchange",
    "temporary failure",
    "broken pipe",
)
#: Options of every connection.
_OPTIONS = (
    "BatchMode=yes",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "ControlPersist=no",
    "UpdateHostKeys=no",
)


class SSHRunner(PythonRunner):
    """Runs targets/devices/worker.py on a machine over ssh."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, SSHTransport(device))


class SSHTransport(RemoteTransport):
    """A connection that all commands share (ControlMaster)."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, SSH)
        self._connection = device.connection
        super().__init__(device.name, self._connection.folder)

    def _connect(self, stack: ExitStack) -> RemoteFolder:
        program = shutil.which("ssh")
        if program is None:
            raise DependencyError(
                "the program ssh is not installed on this machine; install OpenSSH's client"
            )
        # A short path: that of a socket holds about 100 characters.
        parent = Path("/tmp") if Path("/tmp").is_dir() else None  # noqa: S108
        private = stack.enter_context(scratch.folder(parent))
        self._ssh = [program, "-T", "-S", f"{private}/s", *self._options()]
        return self._opened()

    def _options(self) -> list[str]:
        """The options of the client. Of two with one name the first applies."""
        options = (
            *_OPTIONS,
            *(option.removeprefix("-o").strip() for option in self._connection.options),
            f"ConnectTimeout={max(1, round(self._connection.connect_timeout))}",
            f"ServerAliveInterval={SILENCE // 3}",
            "ServerAliveCountMax=3",
        )
        port = ("-p", str(self._connection.port)) if self._connection.port else ()
        return [*(word for option in options for word in ("-o", option)), *port]

    def _opened(self) -> RemoteFolder:
        """Connect and have the folder made, with further attempts where they may succeed."""
        command = self._command(script(self._parent), master=True)
        # After connecting, the login shell and mktemp need time, too.
        patience = self._connection.connect_timeout + 3 * SILENCE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return RemoteFolder(command, patience)
            except NotOpenedError as failure:
                stderr = failure.stderr.lower()
                transient = any(phrase in stderr for phrase in _TRANSIENT)
                if attempt == ATTEMPTS or failure.code != FAILED or not transient:
                    raise self._unreachable(failure) from None
                time.sleep(PAUSE * attempt)
        raise AssertionError

    def _command(self, remote: str, *, master: bool = False) -> list[str]:
        """The command that runs commands of a POSIX shell there, whatever the login shell is."""
        # The control socket cannot be had on Windows; each command then connects by itself.
        control = (
            ["-o", f"ControlMaster={'yes' if master else 'no'}"]
            if os.name != "nt"
            else ["-o", "ControlPath=none"]
        )
        return [
            self._ssh[0],
            *control,
            *self._ssh[1:],
            "--",
            self._connection.host,
            f"exec sh -c {shlex.quote(remote)}",
        ]

    def _unreachable(self, failure: NotOpenedError) -> DeviceError:
        """The error that says why no folder was opened, and what to do."""
        port = f", port {self._connection.port}" if self._connection.port else ""
        subject = f"device '{self._name}' ({self._connection.host}{port})"
        last = _last(failure.stderr)
        if failure.code is None:
            reason = f": {last}" if last else ""
            return DeviceError(f"{subject}: connected, but no shell answered in time{reason}")
        if failure.code == FAILED:
            return self._refused(subject, failure.stderr)
        if disk_full(failure.stderr):
            return self._full(subject)
        return DeviceError(
            f"{subject}: no folder can be made in {self._parent}:"
            f" {last or f'exit code {failure.code}'}"
        )

    def _refused(self, subject: str, stderr: str) -> DeviceError:
        """The error of a connection that failed, with what to do."""
        host, last, lower = self._connection.host, _last(stderr), stderr.lower()
        if "host key verification failed" in lower or "identification has changed" in lower:
            way_out = f"connect once by hand (ssh {host}) and accept its key"
            if "has changed" in lower:
                way_out = (
                    "if the machine was reinstalled, forget the old key (ssh-keygen -R"
                    f" {self._known_host}) and connect once by hand"
                )
            return DeviceError(f"{subject}: its host key is not the one known here; {way_out}")
        if "permission denied" in lower or "too many authentication failures" in lower:
            return DeviceError(
                f"{subject} refuses the login: {last}; load a key that it knows into the agent, or"
                " copy yours there (ssh-copy-id)"
            )
        return DeviceError(
            f"{subject} cannot be reached: {last or 'ssh ended without a message'}; see that it is"
            f" on and ssh {host} works by hand"
        )

    @property
    def _known_host(self) -> str:
        """The host as known_hosts names it."""
        host, port = self._connection.host.rpartition("@")[2], self._connection.port
        return f"'[{host}]:{port}'" if port not in (None, 22) else host

    def _send(self, file: Path, content: bytes, path: str, timeout: float) -> None:
        done = subprocess.run(  # noqa: S603
            self._command(f"cat > {shlex.quote(path)} && wc -c < {shlex.quote(path)}"),
            input=content,
            capture_output=True,
            timeout=timeout,
            check=False,
            start_new_session=True,
        )
        stderr = done.stderr.decode(errors="replace")
        subject = f"device '{self._name}'"
        if done.returncode == FAILED:
            raise DeviceError(
                f"{subject}: the connection was lost while {file.name} was sent{_reason(stderr)}"
            )
        if disk_full(stderr) or done.returncode == 128 + signal.SIGXFSZ:
            raise self._full(subject, f" for {size(file, content)}")
        arrived = done.stdout.split()[-1:]
        if done.returncode or arrived != [str(len(content)).encode()]:
            count = arrived[0].decode(errors="replace") if arrived else "nothing"
            raise DeviceError(
                f"{subject}: of {file.name} {count} of {len(content):,} bytes"
                f" arrived{_reason(stderr)}"
            )

    def command(self, timeout: float) -> list[str]:
        """The command of ssh that runs the worker script in the remote Python."""
        path, home = self.put(SCRIPT, timeout), "~/"
        python = self._connection.python
        interpreter = (
            f'"$HOME"/{shlex.quote(python.removeprefix(home))}'
            if python.startswith(home)
            else shlex.quote(python)
        )
        # No exec: the shell has to survive, to report a signal. ssh itself would only say that the
        # connection is gone.
        return self._command(
            f"{interpreter} {shlex.quote(path)} {shlex.quote(self.folder)}; exit $?"
        )

    def death(self, code: int, stderr: str) -> str:
        """A lost connection, a missing Python, one for another processor, or a signal there."""
        on, python = f"on device '{self._name}'", self._connection.python
        if code == FAILED:
            return f"is gone: the connection to device '{self._name}' was lost{_reason(stderr)}"
        if code == 127:
            return (
                f"did not start: there is no Python at {python} {on}; install it, or name another"
                " in the profile (connection.python)"
            )
        if code == 126:
            return (
                f"did not start: {python} cannot be run {on}, it may be made for another"
                f" architecture{_reason(stderr)}"
            )
        if code > 128 and code - 128 in {int(number) for number in signal.Signals}:
            name = signal.Signals(code - 128).name
            hints = {
                "SIGILL": ": its runtime is made for another processor",
                "SIGKILL": ": its memory may be too small",
            }
            return f"was killed by {name} {on}{hints.get(name, '')}"
        return f"ended with exit code {code} {on}{_reason(stderr)}"


def _last(stderr: str) -> str:
    """The last line of ssh's stderr that is neither empty nor a warning."""
    lines = [
        line.strip()
        for line in stderr.splitlines()
        if line.strip() and not line.startswith(("Warning:", "** "))
    ]
    return lines[-1] if lines else ""


def _reason(stderr: str) -> str:
    """A colon and the last line of ssh's stderr; empty when there is none."""
    last = _last(stderr)
    return f": {last}" if last else ""
