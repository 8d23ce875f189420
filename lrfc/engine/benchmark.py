"""Benchmarks of plans on a device, each against the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from lrfc.config.precision import listed
from lrfc.costs import npu
from lrfc.costs.latency import CostProfile, load
from lrfc.costs.measurements import Key, Sample, Store, now, of_model, of_op
from lrfc.costs.workload import Workload
from lrfc.engine.estimate import estimated, with_arena
from lrfc.engine.growth import Ram
from lrfc.errors import DeviceError
from lrfc.ir.batch import Batch
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact, Target
from lrfc.results.folder import sha256
from lrfc.search.pricing import Reading
from lrfc.system.spans import span
from lrfc.targets.catalog import target as target_of
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.runners import runner
from lrfc.targets.devices.runners.base import DeviceRunner, OpRunner
from lrfc.targets.devices.speed import Ratio, speedup
from lrfc.targets.ethos_u.vela import Compiled, owners, version
from lrfc.targets.micro import tflm

#: Timings of each file, enough to tell which is slower.
RUNS = 60


@dataclass(frozen=True)
class Timing:
    """The measurement of a plan against the original.

    ``time``: of one inference, in the unit of the cost profile and at the speed that the device had
    when the original was measured alone. ``ops``: the workloads of the plan. ``known``: the times
    of single ops, where the device reports them.
    """

    ratio: Ratio
    time: float
    ops: tuple[Workload, ...]
    known: Mapping[Workload, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent:
    """Costs of an op in a file by an NPU's compiler; see ``lrfc.targets.ethos_u.vela.Layer``.

    ``cpu``: the operators that run on the CPU, whose cycles the compiler does not count.
    """

    cycles: int
    sram_bytes: int
    flash_bytes: int
    cpu: tuple[str, ...]


class Bench:
    """Emits graphs for one target and measures them on one device, against the original's file.

    ``runner``: None for a device that cannot be reached; all times are then estimated from the
    profile. ``calibration``: a few inputs, for int8. All times are in the unit of the profile.
    Measurements are saved in the ``store``. ``ram``: the limit on the memory of a plan.
    """

    @span("original on the device")
    def __init__(
        self,
        target: Target,
        device: Device,
        runner: DeviceRunner | None,
        profile: CostProfile,
        original: Graph,
        calibration: Batch,
        threads: int,
        folder: Path,
        store: Store,
        ram: Ram,
    ) -> None:
        self._target, self._device, self._runner, self.profile = target, device, runner, profile
        self._calibration, self._threads = calibration, threads
        self._folder, self._store = folder, store
        self.reading = self._reading()
        whole = inference_form(original)
        self.original = target.emit(whole, folder / f"original{target.suffix}", calibration)
        self._graph = whole
        (alone,) = self.measure([self.original], [whole], RUNS)
        #: Time of the original, milliseconds of one unit, and the workloads of the original.
        self.time = self._time(alone)
        self.ms_per_unit = alone.median_ms / self.time
        self.ops = self._ops(whole)
        #: Times of single ops in the original, where the device reports them.
        self.known = self._known(self.original, whole)
        self._hold(alone, ram)

    def __call__(self, graph: Graph) -> Timing:
        """Emit the graph of a plan and measure it."""
        folded = inference_form(graph)
        path = self._folder / f"plan{self._target.suffix}"
        emitted = self._target.direct(folded, path) if self._writes_directly else None
        if emitted is None:
            emitted = self._target.emit(folded, path, self._calibration)
        before, after = self.measure([self.original, emitted], [self._graph, folded], RUNS)
        ratio = speedup(before, after)
        time = self.time / ratio.median
        return Timing(ratio, time, self._ops(folded), self._known(emitted, folded))

    @span("measurement")
    def measure(
        self, files: Sequence[Artifact], graphs: Sequence[Graph], runs: int = 200
    ) -> tuple[Measurement, ...]:
        """Measure files in turns, ``runs`` timings each.

        ``graphs``: those that the files were emitted from.
        """
        if self._runner is None:
            return tuple(
                self._computed(file, graph) for file, graph in zip(files, graphs, strict=True)
            )
        measured = self._runner.compare(files, runs=runs, threads=self._threads)
        when, samples = now(), {}
        for file, result in zip(files, measured, strict=True):
            model = of_model(sha256(file.path))
            key = self._key(result.runtime, result.runtime_version, model)
            samples[replace(key, precision=file.precision)] = Sample(
                result.median_ms, result.p90_ms, result.iqr_ms, result.n, when
            )
        self._store.put(samples)
        return measured

    @cached_property
    def _writes_directly(self) -> bool:
        """Whether the converter is not needed for files that are only measured.

        Then the original's file, written without it, has the operators and, bit by bit, the outputs
        of the converter's.
        """
        path = self._folder / f"original-direct{self._target.suffix}"
        file = self._target.direct(self._graph, path)
        if file is None or not self._target.same_operators(self.original, file):
            return False
        outputs = [self._target.load(each)(self._calibration) for each in (self.original, file)]
        return all(np.array_equal(one, two) for one, two in zip(*outputs, strict=True))

    @property
    def no_float(self) -> str | None:
        """Reason why the original's file in fp32 cannot be timed here; None where it can."""
        if "fp32" not in self._device.precisions:
            return (
                f"{self._device.name} computes in {listed(self._device.precisions, 'and')}, not in"
                " float"
            )
        if self._runner is None and self._prices_in("fp32") is None:
            return f"the cost profile of {self._device.name} has no prices in fp32"
        return None

    @cached_property
    def in_float(self) -> Artifact:
        """The original's file in fp32, emitted once."""
        path = self._folder / f"original-fp32{self._target.suffix}"
        return target_of(self._target.name, "fp32").emit(self._graph, path, self._calibration)

    def _key(self, runtime: str, version: str, subject: str) -> Key:
        return Key(
            self._device.name,
            runtime,
            version,
            self._target.name,
            self._target.precision,
            self._threads,
            subject,
        )

    def _time(self, measured: Measurement) -> float:
        if self.profile.unit == "cycles" and measured.cycles is not None:
            return float(measured.cycles)
        return measured.median_ms

    def prices(self, workloads: Sequence[Workload]) -> Mapping[Workload, float]:
        """Times of single ops that the device reports without a network; none by default.

        They are in the unit of the profile.
        """
        return {}

    def spent(self, file: Artifact, graph: Graph) -> Mapping[str, Spent]:
        """Costs of each op of a file, where the device has a compiler that reports them.

        An operator that belongs to no op of the graph is listed under its own name.
        """
        return {}

    def compiled(self, file: Artifact) -> bytes | None:
        """The file compiled for the device; None where the device runs the file itself."""
        return None

    def _known(self, file: Artifact, graph: Graph) -> Mapping[Workload, float]:
        return {}

    def _reading(self) -> Reading:
        return Reading()

    def _hold(self, original: Measurement, ram: Ram) -> None:
        """Keep the files of plans within the limit, where the device's compiler can."""

    def _ops(self, graph: Graph) -> tuple[Workload, ...]:
        return tuple(workload for _, workload in self.reading.workloads(graph))

    def _prices_in(self, precision: str) -> CostProfile | None:
        if precision == self._target.precision:
            return self.profile
        return load(self._device.name, self._target.name, precision, self._threads)

    def _computed(self, file: Artifact, graph: Graph) -> Measurement:
        profile = self._prices_in(file.precision)
        assert profile is not None  # no_float rules this out
        ms = profile.predict(self._file_ops(file) if file.patches else self._ops(graph))
        row = estimated(file.path, ms, self.profile, self._threads)
        return with_arena(row, self._device)

    def _file_ops(self, file: Artifact) -> tuple[Workload, ...]:
        """The operators of a file, which its graph does not show where it has patches."""
        found = self._target.operators(file.path)
        assert found is not None  # only formats with a reader have patches
        workloads: tuple[Workload, ...] = found.workloads
        return workloads


class NPUBench(Bench):
    """Benchmark of an Arm Ethos-U, whose compiler counts the cycles of ops and networks."""

    _runner: OpRunner

    @property
    def no_float(self) -> str | None:
        """Reason why there is no time in fp32: an Ethos-U computes in integers only."""
        return f"{self._device.name} is an Ethos-U, and a float network cannot run there"

    def prices(self, workloads: Sequence[Workload]) -> Mapping[Workload, float]:
        """Cycles of single ops, from the store or else from probe networks that are compiled."""
        keys = {self._key("Vela", version(), of_op(workload)): workload for workload in workloads}
        stored = {keys[key]: sample.median for key, sample in self._store.get(keys).items()}
        compiled = self._runner.price(op for op in workloads if op not in stored)
        when = now()
        self._store.put(
            {
                key: Sample(compiled[op], compiled[op], 0.0, 1, when)
                for key, op in keys.items()
                if op in compiled
            }
        )
        return {**stored, **compiled}

    def spent(self, file: Artifact, graph: Graph) -> Mapping[str, Spent]:
        """Costs of each op by Vela."""
        return spent(self._runner.compiled(file), graph)

    def compiled(self, file: Artifact) -> bytes | None:
        """The file that Vela compiles, for TFLite Micro with the Ethos-U driver."""
        return self._runner.compiled(file).content

    def _key(self, runtime: str, version: str, subject: str) -> Key:
        return super()._key(runtime, f"{version} {self._configuration}", subject)

    @cached_property
    def _configuration(self) -> str:
        """All that the figures depend on besides the version of Vela."""
        return self._device.connection.configuration

    def _known(self, file: Artifact, graph: Graph) -> Mapping[Workload, float]:
        return self._runner.observed(file, graph)

    def _reading(self) -> Reading:
        return Reading(npu.workloads, npu.chain)

    def _hold(self, original: Measurement, ram: Ram) -> None:
        if original.sram_bytes and (limit := ram.limit(original.sram_bytes)) is not None:
            self._runner.hold(limit)


def spent(result: Compiled, graph: Graph) -> dict[str, Spent]:
    """Costs by Vela of each op of the graph that the file was emitted from."""
    return {
        name: Spent(
            cycles=sum(layer.cycles for layer in layers),
            sram_bytes=max(layer.sram_bytes for layer in layers),
            flash_bytes=sum(layer.flash_bytes for layer in layers),
            cpu=tuple(dict.fromkeys(layer.operator for layer in layers if not layer.on_npu)),
        )
        for name, layers in owners(result, graph).items()
    }


def fallbacks(
    target: Target, device: Device, graph: Graph, inputs: Batch, folder: Path
) -> str | None:
    """Compile a network for an NPU, and list the ops that stay on the CPU, in one line.

    None where no op does. DeviceError where all ops do.
    """
    folded, file = _whole(target, graph, inputs, folder)
    with runner(device) as npu_runner:
        result = cast("OpRunner", npu_runner).compiled(file)
    on_cpu = {name: cost.cpu for name, cost in spent(result, folded).items() if cost.cpu}
    if not on_cpu:
        return None
    ops = ", ".join(f"{name} ({', '.join(operators)})" for name, operators in on_cpu.items())
    return f"{device.name} leaves to the CPU, and counts no cycles for: {ops}"


def check_operators(
    target: Target, device: Device, graph: Graph, inputs: Batch, folder: Path
) -> None:
    """Have the runtime of a microcontroller load a network, where that is installed here.

    DeviceError, in one line, that names all operators which it lacks, or says that it does not
    survive the file.
    """
    if not tflm.installed():
        return
    _, file = _whole(target, graph, inputs, folder)
    try:
        tflm.arena(file.path)
    except DeviceError as error:
        raise DeviceError(f"device '{device.name}': {error}") from error


def _whole(target: Target, graph: Graph, inputs: Batch, folder: Path) -> tuple[Graph, Artifact]:
    """A network as it is emitted, and its file, calibrated on two samples."""
    folded = inference_form(graph)
    path = folder / f"original{target.suffix}"
    return folded, target.emit(folded, path, tuple(x[:2] for x in inputs))
