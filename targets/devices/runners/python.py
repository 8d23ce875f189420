"""A device with Python: its workers speak to this machine as local ones do, over whatever connects them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from lrfc.errors import DeviceError
from lrfc.protocols import Artifact
from lrfc.targets.devices import measure
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.process import Transport, Worker
from lrfc.targets.devices.runners.base import Facts

#: Seconds that a device gets to import its runtimes.
PATIENCE = 120.0


class PythonRunner:
    """Runs targets/devices/worker.py on a device, over a connection to it."""

    def __init__(self, device: Device, transport: Transport) -> None:
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

    def check(self) -> Facts:
        """The facts.

        DeviceError when a runtime of the profile's formats is missing, or the architecture is not
        the profile's.
        """
        name = self._device.name
        with Worker(
            self._transport, f"look at device '{name}'", PATIENCE, time.monotonic() + PATIENCE
        ) as worker:
            said = worker.ask({"facts": self._transport.folder})
        found = Facts(
            said["machine"], said["system"], said["python"], said["runtimes"], said["free_bytes"]
        )
        if self._device.machine not in (None, found.machine):
            raise DeviceError(
                f"device '{name}' says that it is {found.machine}, its profile says"
                f" {self._device.machine}: mend host or machine there"
            )
        for form in self._device.formats:
            if form not in found.runtimes:
                raise DeviceError(
                    f"device '{name}': {said['missing'][form]}; or take '{form}' out of formats in"
                    " its profile"
                )
        return found

    def compare(
        self,
        files: Sequence[Artifact],
        *,
        runs: int = 200,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> tuple[Measurement, ...]:
        """Measure the files side by side there."""
        return measure.compare(
            files, runs=runs, threads=threads, timeout=timeout, transport=self._transport
        )

    def times(
        self,
        files: Sequence[Artifact],
        *,
        turns: int = 12,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> list[list[float]]:
        """Milliseconds of an inference of each of many small files of one format there, in each turn."""
        return measure.times(
            files, turns=turns, threads=threads, timeout=timeout, transport=self._transport
        )

    def profile(
        self, file: Artifact, *, runs: int = 50, threads: int = 1, timeout: float = 600.0
    ) -> Mapping[str, float]:
        """Microseconds of each part of the file there."""
        return measure.profile(
            file, runs=runs, threads=threads, timeout=timeout, transport=self._transport
        )
