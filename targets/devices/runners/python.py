"""A device with Python: worker processes there measure, over any transport."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from lrfc.errors import DeviceError
from lrfc.protocols import Artifact
from lrfc.targets.devices import measure
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.process import Transport, Worker
from lrfc.targets.devices.runners.base import Facts, TransportRunner

#: Seconds that a device gets to import its runtimes.
PATIENCE = 120.0


class PythonRunner(TransportRunner[Transport]):
    """Runs targets/devices/worker.py on a device."""

    def check(self) -> Facts:
        """Ask a worker for the facts of the device.

        DeviceError when a runtime of the profile's formats is missing, or the architecture is not
        the profile's.
        """
        name = self._device.name
        deadline = time.monotonic() + PATIENCE
        with Worker(self._transport, f"look at device '{name}'", PATIENCE, deadline) as worker:
            answer = worker.ask({"facts": self._transport.folder})
        facts = Facts(
            answer["machine"],
            answer["system"],
            answer["python"],
            answer["runtimes"],
            answer["free_bytes"],
        )
        self._check_machine(facts.machine)
        for form in self._device.formats:
            if form not in facts.runtimes:
                raise DeviceError(
                    f"device '{name}': {answer['missing'][form]}; or take '{form}' out of formats"
                    " in its profile"
                )
        return facts

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
        """Milliseconds of one inference of each of many small files of one format, by turn."""
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
