"""Protocols of the runners of devices, and the base class of those with a transport."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from lrfc.errors import DeviceError
from lrfc.protocols import Artifact
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.process import Transport

if TYPE_CHECKING:
    from lrfc.costs.workload import Workload
    from lrfc.ir.graph import Graph
    from lrfc.targets.devices.device import Device
    from lrfc.targets.ethos_u.vela import Compiled


@dataclass(frozen=True)
class Facts:
    """A device's description of itself.

    ``machine``: its architecture ('x86_64', 'aarch64', 'ethos-u55-128'). ``system``: its operating
    system, or the program that simulates the device. ``python``: the version there; None where none
    is used. ``runtimes``: format → runtime and version ('tflite' → 'LiteRT 2.1.0').
    ``free_bytes``: disk space there; None where it is unknown.
    """

    machine: str
    system: str
    python: str | None
    runtimes: Mapping[str, str]
    free_bytes: int | None = None


class DeviceRunner(Protocol):
    """A connected device inside a ``with`` block.

    At the end of the block, however it ends, none of our files or processes is left on the device.
    """

    def __enter__(self) -> Self:
        """Connect to the device.

        DeviceError, in one line, when it cannot be reached; DependencyError when a program on this
        machine is missing.
        """
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop our processes there and remove our files."""
        ...

    def check(self) -> Facts:
        """Ask the device for its facts.

        DeviceError when something that its profile promises is missing there.
        """
        ...

    def compare(
        self,
        files: Sequence[Artifact],
        *,
        runs: int = 200,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> tuple[Measurement, ...]:
        """Measure the files side by side.

        As ``lrfc.targets.devices.measure.compare`` does on this machine, with the same errors.
        """
        ...


class OpRunner(DeviceRunner, Protocol):
    """A device whose compiler reports the cycles of single ops."""

    def hold(self, sram_bytes: int) -> None:
        """Compile all further files for an SRAM of that size, where that is possible."""
        ...

    def compiled(self, file: Artifact, *, timeout: float = 600.0) -> Compiled:
        """The compiler's file and report for a file."""
        ...

    def price(self, ops: Iterable[Workload], *, timeout: float = 600.0) -> dict[Workload, float]:
        """Cycles of ops before there is a network; without those that it cannot estimate."""
        ...

    def observed(
        self,
        file: Artifact,
        graph: Graph,
        *,
        timeout: float = 600.0,
    ) -> dict[Workload, float]:
        """Cycles of each op in the file that was emitted from this graph."""
        ...


class Profiler(DeviceRunner, Protocol):
    """A device whose runtime reports the time of the parts of a file."""

    def times(
        self,
        files: Sequence[Artifact],
        *,
        turns: int = 12,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> list[list[float]]:
        """Milliseconds of one inference of each of many small files of one format, by turn.

        The errors of ``compare``.
        """
        ...

    def profile(
        self, file: Artifact, *, runs: int = 50, threads: int = 1, timeout: float = 600.0
    ) -> Mapping[str, float]:
        """Microseconds (medians) of each part of a file, by name.

        Parts are the signatures of a .tflite file, and the executed nodes of an .onnx file.
        """
        ...


AnyTransport = TypeVar("AnyTransport", bound=Transport)


class TransportRunner(Generic[AnyTransport]):
    """A runner over a transport, which is open inside the ``with`` block."""

    def __init__(self, device: Device, transport: AnyTransport) -> None:
        self._device, self._transport = device, transport
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._transport)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _check_machine(self, machine: str) -> None:
        """DeviceError unless the architecture is that of the profile."""
        if self._device.machine not in (None, machine):
            raise DeviceError(
                f"device '{self._device.name}' says that it is {machine}, its profile says"
                f" {self._device.machine}: correct the profile"
            )
