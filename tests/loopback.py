"""An OpenSSH server of its own on this machine, as the device that is reached by ssh."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from lrfc.targets.devices.device import SSH, Device

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


class Server:
    """sshd as the current user, on a free port of the loopback, with its own keys.

    ``command`` runs in place of each command (ForceCommand).
    """

    def __init__(self, folder: Path, command: str | None = None, port: int | None = None) -> None:
        if SSHD is None or shutil.which("ssh") is None:
            pytest.skip("no OpenSSH server is installed (sshd): apt-get install openssh-server")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port()
        self.client, self.known, self.remote = (
            key(folder / "client"),
            folder / "known_hosts",
            folder / "there",
        )
        self.remote.mkdir()
        host = key(folder / "host")
        self.known.write_text(f"[127.0.0.1]:{self.port} {host.with_suffix('.pub').read_text()}")
        settings = (
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {host}",
            f"AuthorizedKeysFile {self.client}.pub",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100",
            *([f"ForceCommand {command}"] if command else ()),
        )
        (folder / "sshd_config").write_text("\n".join(settings) + "\n")

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(
                exist_ok=True
            )  # where the server of root empties its privileges; Debian makes it at its start
        self.log = (self.folder / "log").open("w+")
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", self.folder / "sshd_config"], stderr=self.log
        )
        for _ in range(200):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self.log.close()

    def kill(self) -> None:
        """Kill the server and its sessions at once, as when a device loses power.

        The programs of the sessions live on.
        """
        for pid in [*descendants(self.process.pid), self.process.pid]:
            if name(pid).startswith("sshd"):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def device(self, **connection: Any) -> Device:
        """The profile of this machine behind the server."""
        options = (
            f"IdentityFile={self.client}",
            "IdentitiesOnly=yes",
            f"GlobalKnownHostsFile={self.known}",
        )
        given = {
            "host": "127.0.0.1",
            "port": self.port,
            "python": sys.executable,
            "folder": str(self.remote),
            "options": options,
            "connect_timeout": 20.0,
        }
        return Device(
            name="loopback",
            description="",
            formats=("tflite", "onnx"),
            precisions=("fp32", "int8"),
            connection=SSH(**given | connection),
        )

    def left(self) -> list[str]:
        """What is there of ours: files and processes, after the moment that they need to go."""
        found: list[str] = []
        for _ in range(100):
            found = [
                *(path.name for path in self.remote.iterdir()),
                *(line for line in commands() if str(self.remote) in line),
            ]
            if not found:
                break
            time.sleep(0.1)
        return found


def descendants(pid: int) -> Iterator[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in map(int, children.read_text().split() if children.exists() else ()):
        yield from descendants(child)
        yield child


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def commands() -> Iterator[str]:
    """The command lines of all processes, without this one's and those of clients."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        line = b" ".join(words).decode(errors="replace")
        if int(path.parent.name) != os.getpid() and "sshd" not in line:
            yield line
