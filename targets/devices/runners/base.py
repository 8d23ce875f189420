"""What it means to reach a device: the protocol that every runner follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from lrfc.protocols import Artifact
from lrfc.targets.devices.measure import Measurement

if TYPE_CHECKING:
    from lrfc.costs.workload import Workload
    from lrfc.ir.graph import Graph
    from lrfc.targets.ethos_u.vela import Compiled


@dataclass(frozen=True)
class Facts:
    """What a device says about itself.

    ``machine``: its architecture ('x86_64', 'aarch64', 'ethos-u55-128'). ``system``: its operating
    system, or the program that stands for it. ``python``: the version there; None where none is
    used. ``runtimes``: format → runtime and version ('tflite' → 'LiteRT 2.1.0'). ``free_bytes``:
    room for files there; None where it is not known.
    """

    machine: str
    system: str
    python: str | None
    runtimes: Mapping[str, str]
    free_bytes: int | None = None


class DeviceRunner(Protocol):
    """A device, reached inside a ``with`` block.

    At its end, however it ends, nothing of ours is left on the device.
    """

    def __enter__(self) -> Self:
        """Reach the device.

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
        """Stop what runs there and remove what was put there."""
        ...

    def check(self) -> Facts:
        """Ask the device what it is.

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
        """Measure the files side by side, as ``lrfc.targets.devices.measure.compare`` does on this machine; the same errors."""
        ...


class OpRunner(DeviceRunner, Protocol):
    """A device whose compiler tells the cycles of single ops."""

    def compiled(self, file: Artifact, *, timeout: float = 600.0) -> Compiled:
        """All that the compiler makes of a file."""
        ...

    def price(self, ops: Iterable[Workload], *, timeout: float = 600.0) -> dict[Workload, float]:
        """Cycles of ops before there is a network; those that it cannot tell are left out."""
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
    """A device whose runtime tells how long the parts of a file take."""

    def times(
        self,
        files: Sequence[Artifact],
        *,
        turns: int = 12,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> list[list[float]]:
        """Milliseconds of an inference of each of many small files of one format, in each turn; the errors of ``compare``."""
        ...

    def profile(
        self, file: Artifact, *, runs: int = 50, threads: int = 1, timeout: float = 600.0
    ) -> Mapping[str, float]:
        """Microseconds (medians) of each part: of a .tflite file each signature, of an .onnx file each node that is executed, by name."""
        ...
