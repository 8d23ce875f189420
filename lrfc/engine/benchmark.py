"""Plans measured on the device, beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from lrfc.config.precision import listed
from lrfc.costs import npu
from lrfc.costs.latency import CostProfile, load
from lrfc.costs.measurements import Key, Sample, Store, now, of_model, of_op
from lrfc.costs.workload import Workload
from lrfc.engine.estimate import estimated
from lrfc.ir.batch import Batch
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact, Target
from lrfc.results.folder import sha256
from lrfc.search.pricing import Reading
from lrfc.targets.catalog import target as target_of
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.runners import runner
from lrfc.targets.devices.runners.base import DeviceRunner, OpRunner
from lrfc.targets.devices.speed import Ratio, speedup
from lrfc.targets.ethos_u.vela import Compiled, owners, version

#: Timings of each file: enough to see which is slower.
RUNS = 60


@dataclass(frozen=True)
class Trial:
    """A plan beside the original.

    ``time``: in the unit of the cost profile, at the speed that the device had when the original
    was measured alone. ``ops``: what it executes. ``known``: the times of single ops, where the
    device tells them.
    """

    ratio: Ratio
    time: float
    ops: tuple[Workload, ...]
    known: Mapping[Workload, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent:
    """What an NPU's compiler says of an op in a file: see ``lrfc.targets.ethos_u.vela.Layer``.

    ``cpu``: the operators that it leaves to the CPU, uncounted.
    """

    cycles: int
    sram_bytes: int
    flash_bytes: int
    cpu: tuple[str, ...]


class Bench:
    """Emits graphs for one target and measures them on one device, beside the original's file.

    ``runner`` is None for a device that cannot be reached: then everything is estimated, from the
    profile. ``calibration``: a few inputs, for int8. All times are in the unit of the profile; what
    is measured is kept in the ``store``.
    """

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
    ) -> None:
        self._target, self._device, self._runner, self.profile = target, device, runner, profile
        self._calibration, self._threads, self._folder, self._store = (
            calibration,
            threads,
            folder,
            store,
        )
        self.reading = self._reading()
        whole = fold_batchnorm(original)
        self.original = target.emit(whole, folder / f"original{target.suffix}", calibration)
        self._graph = whole
        (alone,) = self.measure([self.original], [whole], RUNS)
        #: Time of the original, milliseconds of one unit, and what the original executes.
        self.time = self._time(alone)
        self.ms_per_unit = alone.median_ms / self.time
        self.ops = self._ops(whole)
        #: Times of single ops in the original, where the device tells them.
        self.known = self._known(self.original, whole)

    def __call__(self, graph: Graph) -> Trial:
        """The plan, measured."""
        folded = fold_batchnorm(graph)
        path = self._folder / f"plan{self._target.suffix}"
        emitted = self._target.emit(folded, path, self._calibration)
        before, after = self.measure([self.original, emitted], [self._graph, folded], RUNS)
        ratio = speedup(before, after)
        return Trial(
            ratio, self.time / ratio.median, self._ops(folded), self._known(emitted, folded)
        )

    def measure(
        self, files: Sequence[Artifact], graphs: Sequence[Graph], runs: int = 200
    ) -> tuple[Measurement, ...]:
        """The files side by side; ``graphs`` are what they were emitted from."""
        if self._runner is None:
            return tuple(
                self._computed(file, graph) for file, graph in zip(files, graphs, strict=True)
            )
        found = self._runner.compare(files, runs=runs, threads=self._threads)
        when = now()
        self._store.put(
            {
                replace(
                    self._key(each.runtime, each.runtime_version, of_model(sha256(file.path))),
                    precision=file.precision,
                ): Sample(each.median_ms, each.p90_ms, each.iqr_ms, each.n, when)
                for file, each in zip(files, found, strict=True)
            }
        )
        return found

    @property
    def no_float(self) -> str | None:
        """Why the original's file in fp32 cannot be looked at here; None where it can."""
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
        place = self._folder / f"original-fp32{self._target.suffix}"
        return target_of(self._target.name, "fp32").emit(self._graph, place, self._calibration)

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

    def prices(self, wanted: Sequence[Workload]) -> Mapping[Workload, float]:
        """The times of single ops, in the profile's unit, that the device tells before a network is made of them; here none."""
        return {}

    def spent(self, file: Artifact, graph: Graph) -> Mapping[str, Spent]:
        """What each op of a file takes, where the device's compiler tells; an operator that belongs to no op of the graph stands under its own name."""
        return {}

    def compiled(self, file: Artifact) -> bytes | None:
        """The file as the device takes it; None where it takes the file as it is."""
        return None

    def _known(self, file: Artifact, graph: Graph) -> Mapping[Workload, float]:
        return {}

    def _reading(self) -> Reading:
        return Reading()

    def _ops(self, graph: Graph) -> tuple[Workload, ...]:
        return tuple(each for _, each in self.reading.workloads(graph))

    def _prices_in(self, precision: str) -> CostProfile | None:
        if precision == self._target.precision:
            return self.profile
        return load(self._device.name, self._target.name, precision, self._threads)

    def _computed(self, file: Artifact, graph: Graph) -> Measurement:
        prices = self._prices_in(file.precision)
        assert prices is not None  # no_float says so before
        return estimated(file.path, prices.predict(self._ops(graph)), self.profile, self._threads)


class NPUBench(Bench):
    """An Arm Ethos-U, whose compiler tells the cycles of every op, in the network and before there is one."""

    _runner: OpRunner

    @property
    def no_float(self) -> str | None:
        """An Ethos-U computes in integers, whatever its profile names."""
        return f"{self._device.name} is an Ethos-U, and a float network cannot run there"

    def prices(self, wanted: Sequence[Workload]) -> Mapping[Workload, float]:
        """The cycles of single ops: those kept from an earlier build, the others from probe networks that are compiled for it."""
        keys = {self._key("Vela", version(), of_op(each)): each for each in wanted}
        known = {keys[key]: sample.median for key, sample in self._store.get(keys).items()}
        fresh = self._runner.price(each for each in wanted if each not in known)
        when = now()
        self._store.put(
            {
                key: Sample(fresh[each], fresh[each], 0.0, 1, when)
                for key, each in keys.items()
                if each in fresh
            }
        )
        return {**known, **fresh}

    def spent(self, file: Artifact, graph: Graph) -> Mapping[str, Spent]:
        """What Vela says of each op."""
        return spent(self._runner.compiled(file), graph)

    def compiled(self, file: Artifact) -> bytes | None:
        """The file with Vela's commands in it, for TFLite Micro with the Ethos-U driver."""
        return self._runner.compiled(file).content

    def _key(self, runtime: str, version: str, subject: str) -> Key:
        return super()._key(runtime, f"{version} {self._configuration}", subject)

    @cached_property
    def _configuration(self) -> str:
        """All that the figures depend on, besides the version; read once."""
        return self._device.connection.configuration

    def _known(self, file: Artifact, graph: Graph) -> Mapping[Workload, float]:
        return self._runner.observed(file, graph)

    def _reading(self) -> Reading:
        return Reading(npu.workloads, npu.chain)


def spent(result: Compiled, graph: Graph) -> dict[str, Spent]:
    """What Vela says of each op of the graph that the file was emitted from."""
    return {
        name: Spent(
            cycles=sum(layer.cycles for layer in own),
            sram_bytes=max(layer.sram_bytes for layer in own),
            flash_bytes=sum(layer.flash_bytes for layer in own),
            cpu=tuple(dict.fromkeys(layer.operator for layer in own if not layer.on_npu)),
        )
        for name, own in owners(result, graph).items()
    }


def fallbacks(
    target: Target, device: Device, graph: Graph, inputs: Batch, folder: Path
) -> str | None:
    """One line that names what an NPU leaves of a network to the CPU, found by compiling it; None where there is nothing.

    DeviceError where all is left.
    """
    folded = fold_batchnorm(graph)
    path = folder / f"{device.name}{target.suffix}"
    file = target.emit(folded, path, tuple(x[:2] for x in inputs))
    with runner(device) as there:
        result = cast("OpRunner", there).compiled(file)
    left = {name: each.cpu for name, each in spent(result, folded).items() if each.cpu}
    if not left:
        return None
    named = ", ".join(f"{name} ({', '.join(operators)})" for name, operators in left.items())
    return f"{device.name} leaves to the CPU, and counts no cycles for: {named}"
