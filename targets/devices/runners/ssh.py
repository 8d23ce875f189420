"""A machine with Python over the system's OpenSSH client: the user's ssh config, agent and jump hosts hold."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lrfc.errors import DependencyError, DeviceError
from lrfc.system import scratch
from lrfc.targets.devices.device import SSH, Device
from lrfc.targets.devices.process import SCRIPT
from lrfc.targets.devices.runners.keeper import Keeper, NotOpenedError, left_behind, no_room, script
from lrfc.targets.devices.runners.python import PythonRunner

#: Times that connecting is tried, and the seconds between.
ATTEMPTS = 3
PAUSE = 1.0
#: Seconds after which a connection without an answer is given up, asked every third of it.
SILENCE = 15
#: ssh's own exit code when the connection fails; any other is that of the command there.
FAILED = 255
#: What ssh says when another try may help.
_PASSING = (
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


class SSHRunner(PythonRunner):
    """targets/devices/worker.py on a machine that is reached by ssh."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, Connected(device))


class Connected:
    """One connection, shared by all commands (ControlMaster), to a machine on which a folder of our own lives as long as the connection."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, SSH)
        self._name, self._connection = device.name, device.connection
        self._there: dict[str, str] = {}

    def __enter__(self) -> Self:
        program = shutil.which("ssh")
        if program is None:
            raise DependencyError(
                "the program ssh is not installed on this machine; install OpenSSH's client"
            )
        connection = self._connection
        with ExitStack() as stack:
            # A short path: that of a socket holds about 100 characters.
            private = stack.enter_context(
                scratch.folder(Path("/tmp") if Path("/tmp").is_dir() else None)  # noqa: S108
            )
            self._ssh = [
                program,
                "-T",
                "-S",
                f"{private}/s",
                "-o",
                "BatchMode=yes",
                "-o",
                "RemoteCommand=none",
                "-o",
                "RequestTTY=no",
                "-o",
                "ClearAllForwardings=yes",
                "-o",
                "PermitLocalCommand=no",
                "-o",
                "ControlPersist=no",
                "-o",
                "UpdateHostKeys=no",
                *(
                    word
                    for option in connection.options
                    for word in ("-o", option.removeprefix("-o").strip())
                ),
                "-o",
                f"ConnectTimeout={max(1, round(connection.connect_timeout))}",
                "-o",
                f"ServerAliveInterval={SILENCE // 3}",
                "-o",
                "ServerAliveCountMax=3",
                *(("-p", str(connection.port)) if connection.port else ()),
            ]
            self._keeper = self._connected()
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

    def _connected(self) -> Keeper:
        """The connection and the folder; tried again where that may help."""
        # After connecting, the login shell and mktemp need time, too.
        command, patience = (
            self._command(script(self._connection.folder), master=True),
            self._connection.connect_timeout + 3 * SILENCE,
        )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return Keeper(command, patience)
            except NotOpenedError as failure:
                passing = failure.code == FAILED and any(
                    words in failure.said.lower() for words in _PASSING
                )
                if attempt < ATTEMPTS and passing:
                    time.sleep(PAUSE * attempt)
                    continue
                raise self._unreachable(failure) from None
        raise AssertionError

    def _command(self, there: str, *, master: bool = False) -> list[str]:
        """The command that runs a POSIX shell's commands there, whatever the login shell is."""
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
            f"exec sh -c {shlex.quote(there)}",
        ]

    def _unreachable(self, failure: NotOpenedError) -> DeviceError:
        host = self._connection.host + (
            f", port {self._connection.port}" if self._connection.port else ""
        )
        start, said = f"device '{self._name}' ({host})", failure.said.lower()
        last = _last(failure.said)
        if failure.code is None:
            return DeviceError(
                f"{start}: connected, but no shell answered in time{f': {last}' if last else ''}"
            )
        if failure.code != FAILED:
            if no_room(said):
                return DeviceError(
                    f"{start}: no space left in {self._connection.folder}; make room there, or name"
                    " another folder in the profile"
                )
            return DeviceError(
                f"{start}: no folder can be made in {self._connection.folder}:"
                f" {last or f'exit code {failure.code}'}"
            )
        if "host key verification failed" in said or "identification has changed" in said:
            if "has changed" in said:
                way = (
                    "if the machine was set up anew, forget the old key (ssh-keygen -R"
                    f" {self._known}) and connect once by hand"
                )
            else:
                way = f"connect once by hand (ssh {self._connection.host}) and accept its key"
            return DeviceError(f"{start}: its host key is not the one known here; {way}")
        if "permission denied" in said or "too many authentication failures" in said:
            return DeviceError(
                f"{start} refuses the login: {last}; load a key that it knows into the agent, or"
                " copy yours there (ssh-copy-id)"
            )
        return DeviceError(
            f"{start} cannot be reached: {last or 'ssh ended without a word'}; see that it is on"
            f" and ssh {self._connection.host} works by hand"
        )

    @property
    def _known(self) -> str:
        """The host as known_hosts names it."""
        host = self._connection.host.rpartition("@")[2]
        return (
            f"'[{host}]:{self._connection.port}'"
            if self._connection.port not in (None, 22)
            else host
        )

    def put(self, file: Path, timeout: float) -> str:
        """Send a file, once; what arrives is checked by the worker that loads it."""
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._there:
            path = f"{self.folder}/{len(self._there)}{file.suffix}"
            command = self._command(f"cat > {shlex.quote(path)} && wc -c < {shlex.quote(path)}")
            try:
                done = subprocess.run(  # noqa: S603
                    command,
                    input=content,
                    capture_output=True,
                    timeout=timeout,
                    check=False,
                    start_new_session=True,
                )
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"device '{self._name}': sending {file.name} ({len(content):,} bytes) took more"
                    f" than {timeout:.0f} s"
                ) from None
            said = done.stderr.decode(errors="replace")
            if done.returncode == FAILED:
                raise DeviceError(
                    f"device '{self._name}': the connection was lost while {file.name} was"
                    f" sent{_colon(said)}"
                )
            if no_room(said) or done.returncode == 128 + signal.SIGXFSZ:
                raise DeviceError(
                    f"device '{self._name}': no space left in {self._connection.folder} for {file.name}"
                    f" ({len(content):,} bytes); make room there, or name another folder in the"
                    " profile"
                )
            arrived = done.stdout.split()[-1:]
            if done.returncode or arrived != [str(len(content)).encode()]:
                count = arrived[0].decode(errors="replace") if arrived else "nothing"
                raise DeviceError(
                    f"device '{self._name}': of {file.name} {count} of {len(content):,} bytes"
                    f" arrived{_colon(said)}"
                )
            self._there[digest] = path
        return self._there[digest]

    def command(self, timeout: float) -> list[str]:
        """Python there, with the worker script."""
        path, home = self.put(SCRIPT, timeout), "~/"
        python = self._connection.python
        interpreter = (
            f'"$HOME"/{shlex.quote(python.removeprefix(home))}'
            if python.startswith(home)
            else shlex.quote(python)
        )
        # Not exec: the shell has to live on, to tell of a signal. ssh itself would say no more than
        # that the connection is gone.
        return self._command(
            f"{interpreter} {shlex.quote(path)} {shlex.quote(self.folder)}; exit $?"
        )

    def death(self, code: int, said: str) -> str:
        """A lost connection, a missing Python, one for another processor, or a signal there."""
        on, python = f"on device '{self._name}'", self._connection.python
        if code == FAILED:
            return f"is gone: the connection to device '{self._name}' was lost{_colon(said)}"
        if code == 127:
            return (
                f"did not start: there is no Python at {python} {on}; install it, or name another"
                " in the profile (connection.python)"
            )
        if code == 126:
            return (
                f"did not start: {python} cannot be run {on}, it may be made for another"
                f" architecture{_colon(said)}"
            )
        if code > 128 and code - 128 in {int(number) for number in signal.Signals}:
            name = signal.Signals(code - 128).name
            hint = (
                ": its runtime is made for another processor"
                if name == "SIGILL"
                else ": its memory may be too small"
                if name == "SIGKILL"
                else ""
            )
            return f"was killed by {name} {on}{hint}"
        return f"ended with exit code {code} {on}{_colon(said)}"


def _last(said: str) -> str:
    """The last line that tells something."""
    lines = [
        line.strip()
        for line in said.splitlines()
        if line.strip() and not line.startswith(("Warning:", "** "))
    ]
    return lines[-1] if lines else ""


def _colon(said: str) -> str:
    last = _last(said)
    return f": {last}" if last else ""
