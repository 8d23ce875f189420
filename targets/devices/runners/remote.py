"""The base class of transports to another machine: a connection, and a folder there."""

from __future__ import annotations

import hashlib
import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lrfc.errors import DeviceError
from lrfc.targets.devices.runners.remote_folder import RemoteFolder, left_behind


class RemoteTransport(ABC):
    """A Transport to another machine, through a program on this one.

    A folder there lives as long as the connection. ``name``: the device, for messages. ``parent``:
    the folder in which ours is made.
    """

    def __init__(self, name: str, parent: str) -> None:
        self._name, self._parent = name, parent
        #: SHA-256 of a file → its path on the device.
        self._sent: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = self._connect(stack)
            stack.push(self._closed)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sent.clear()
        self._stack.__exit__(kind, error, trace)

    def _closed(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._folder.close() and error is None:
            raise left_behind(self._name, self.folder)

    @property
    def folder(self) -> str:
        """Our folder on the device."""
        return self._folder.path

    @abstractmethod
    def _connect(self, stack: ExitStack) -> RemoteFolder:
        """Connect and have the folder made.

        ``stack`` is closed when the connection ends. DeviceError when the device cannot be
        reached; DependencyError when the program is not installed.
        """

    @abstractmethod
    def _send(self, file: Path, content: bytes, path: str, timeout: float) -> None:
        """Send a file of that content to that path; DeviceError when it does not arrive."""

    def put(self, file: Path, timeout: float) -> str:
        """Send a file, once; return its path on the device.

        What arrives is checked by whoever loads it.
        """
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._sent:
            path = f"{self.folder}/{len(self._sent)}{file.suffix}"
            try:
                self._send(file, content, path, timeout)
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"device '{self._name}': sending {size(file, content)} took more than"
                    f" {timeout:.0f} s"
                ) from None
            self._sent[digest] = path
        return self._sent[digest]

    def _full(self, subject: str, purpose: str = "") -> DeviceError:
        """The error of a full disk on the device. ``purpose``: ' for' a file."""
        return DeviceError(
            f"{subject}: no space left in {self._parent}{purpose}; make room there, or name"
            " another folder in the profile"
        )


def size(file: Path, content: bytes) -> str:
    """The name of a file and its length, for a message."""
    return f"{file.name} ({len(content):,} bytes)"
