"""The runner of an Arm Ethos-U: figures of its compiler Vela, without a device."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from lrfc.costs.npu import workloads
from lrfc.costs.workload import Workload
from lrfc.errors import DeviceError, UsageError
from lrfc.ir.graph import Graph
from lrfc.metrics.source import COMPILED
from lrfc.protocols import Artifact
from lrfc.system import scratch
from lrfc.targets.devices.device import Device, Vela
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.runners.base import Facts
from lrfc.targets.ethos_u import pricing as npu
from lrfc.targets.ethos_u import vela
from lrfc.targets.imports import need
from lrfc.targets.tflite import probe


class VelaRunner:
    """Vela's figures of files and ops.

    A file is compiled once, as its figures do not change. After ``hold`` Vela keeps files within
    a size of the SRAM where it can: it then trades cycles for memory by itself.
    """

    def __init__(self, device: Device) -> None:
        if not isinstance(device.connection, Vela):
            raise UsageError(
                f"device '{device.name}' is reached by {device.connection.kind}, not by vela"
            )
        self._name, self._connection = device.name, device.connection
        self._compiled: dict[str, vela.Compiled] = {}
        self._prices: dict[Workload, float] = {}

    def __enter__(self) -> Self:
        need("ethosu.vela", "'lrfc[npu]'")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None  # every compilation removes its own folder

    def check(self) -> Facts:
        """Compile a small network; return the accelerator and Vela's version.

        DeviceError when Vela refuses the configuration.
        """
        with scratch.folder() as folder:
            path = folder / "probe.tflite"
            path.write_bytes(probe.smallest())
            self.compiled(Artifact(path, "tflite", "int8"))
        return Facts(
            machine=self._connection.accelerator,
            system=f"Vela {vela.version()}",
            python=None,
            runtimes={"tflite": f"Vela {vela.version()}"},
        )

    def compare(
        self,
        files: Sequence[Artifact],
        *,
        runs: int = 200,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> tuple[Measurement, ...]:
        """The compiled figures of each file, without spread and without the memory of a process.

        ``runs`` and ``threads`` have no effect.
        """
        deadline = time.monotonic() + timeout
        return tuple(
            measurement(file, self.compiled(file, timeout=max(deadline - time.monotonic(), 0.0)))
            for file in files
        )

    def hold(self, sram_bytes: int) -> None:
        """Compile all further files for an SRAM of that size."""
        self._connection = self._connection.model_copy(update={"arena_cache_bytes": sram_bytes})

    def compiled(self, file: Artifact, *, timeout: float = 600.0) -> vela.Compiled:
        """Vela's file and report for a file.

        With a size to hold, Vela optimises for cycles; a result above that size is compiled once
        more, optimised for size, and the smaller one counts. The errors of
        ``lrfc.targets.ethos_u.vela.compiled``.
        """
        try:
            key = hashlib.sha256(file.path.read_bytes()).hexdigest()
        except OSError as error:
            raise DeviceError(f"{file.path} cannot be read: {error.strerror}") from error
        if key not in self._compiled:
            result = vela.compiled(file, self._connection, timeout=timeout)
            held = self._connection.arena_cache_bytes
            if held is not None and result.sram_bytes > held:
                size = self._connection.model_copy(update={"optimise": "Size"})
                other = vela.compiled(file, size, timeout=timeout)
                result = min(result, other, key=lambda each: each.sram_bytes)
            self._compiled[key] = result
        return self._compiled[key]

    def price(self, ops: Iterable[Workload], *, timeout: float = 600.0) -> dict[Workload, float]:
        """Cycles of ops before any network is compiled; see ``lrfc.targets.ethos_u.pricing.price``.

        Each op is compiled once.
        """
        unique = dict.fromkeys(ops)
        new = [op for op in unique if op not in self._prices]
        self._prices |= npu.price(new, self._connection, timeout=timeout)
        return {op: self._prices[op] for op in unique if op in self._prices}

    def observed(
        self, file: Artifact, graph: Graph, *, timeout: float = 600.0
    ) -> dict[Workload, float]:
        """Cycles of each op in the file that was emitted from this graph.

        See ``lrfc.targets.ethos_u.pricing.observed``.
        """
        deadline = time.monotonic() + timeout
        result = self.compiled(file, timeout=timeout)
        ops = [workload for _, workload in workloads(graph)]
        prices = self.price(ops, timeout=max(deadline - time.monotonic(), 0.0))
        return npu.observed(result, graph, prices)


def measurement(file: Artifact, result: vela.Compiled) -> Measurement:
    """Vela's figures of a file as a measurement."""
    operators = ", ".join(dict.fromkeys(layer.operator for layer in result.fallbacks))
    count = len(result.fallbacks)
    note = f"{count} operators run on the CPU, which Vela does not count: {operators}"
    return Measurement(
        path=file.path,
        median_ms=result.ms,
        p90_ms=result.ms,
        iqr_ms=0.0,
        n=1,
        inner=1,
        rounds_ms=(result.ms,),
        threads=1,
        cold_start_ms=None,
        runtime="Vela",
        runtime_version=vela.version(),
        baseline_rss_bytes=None,
        peak_rss_bytes=None,
        source=COMPILED,
        cycles=result.cycles,
        sram_bytes=result.sram_bytes,
        flash_bytes=result.flash_bytes,
        file_bytes=file.bytes,
        notes=(note,) if operators else (),
    )
