"""Measure small networks on a device and fit its cost profile to them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lrfc.costs import fitting, latency, measurements, microbench
from lrfc.costs.latency import CostFile, CostProfile
from lrfc.costs.measurements import Key, Sample, Store
from lrfc.costs.workload import workloads
from lrfc.errors import DeviceError, UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact
from lrfc.state import Progress
from lrfc.system import files, scratch
from lrfc.targets.catalog import target as target_of
from lrfc.targets.devices import measure
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.runners import runner
from lrfc.targets.devices.runners.base import DeviceRunner, Facts, Profiler

#: Networks that are emitted, measured and stored together.
TOGETHER = 30


@dataclass(frozen=True)
class CalibrationReport:
    """The result of a calibration.

    ``path``: the file of the profiles. ``measured`` and ``reused``: the numbers of networks that
    were measured now, and by earlier calibrations. ``ops``: the number of ops in them.
    """

    device: str
    path: Path
    profiles: tuple[CostProfile, ...]
    measured: int
    reused: int
    ops: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One JSON object; of each profile its settings and its held-out errors."""
        settings = (
            "format",
            "precision",
            "threads",
            "runtime",
            "runtime_version",
            "machine",
            "unit",
        )
        profiles = [
            {
                **{key: getattr(profile, key) for key in settings},
                "held_out": {name: error.model_dump() for name, error in profile.held_out.items()},
            }
            for profile in self.profiles
        ]
        return {
            "device": self.device,
            "path": str(self.path),
            "networks_measured": self.measured,
            "networks_reused": self.reused,
            "ops": self.ops,
            "seconds": round(self.seconds, 1),
            "profiles": profiles,
        }


def calibrate(
    device: Device,
    *,
    formats: Sequence[str] | None = None,
    precision: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    networks: int = microbench.COUNT,
    store: Store | None = None,
) -> CalibrationReport:
    """Measure small networks on a device, and write the user's cost file of the device.

    That file goes before the one that ships. ``formats``, ``precision``, ``threads``: the device's
    own by default. ``fresh``: measure again what earlier calibrations have measured. Measurements
    are stored even when the device goes away later. UsageError for a device whose times are not
    measured, or a format that it does not run; DeviceError from its runner.
    """
    began = time.monotonic()
    formats = _checked(device, formats)
    progress = progress or Progress()
    store = store or Store(log=progress.log)
    path = latency.user_file(device.name)
    files.check(path, way_out=files.CONFIG)
    graphs = list(microbench.networks(networks))
    measured, profiles = 0, []
    with runner(device) as connected:
        facts = connected.check()
        for form in formats:
            run = _Run(
                device,
                connected,
                facts,
                form,
                precision or device.precisions[0],
                threads or device.threads,
            )
            samples, count = run.samples(graphs, store, progress, fresh=fresh)
            measured += count
            profiles.append(run.fitted(graphs, samples))
    file = latency.read(path) if path.is_file() else CostFile(profiles=())
    for profile in profiles:
        file = file.with_profile(profile)
    file.write(path)
    return CalibrationReport(
        device.name,
        path,
        tuple(profiles),
        measured,
        reused=len(graphs) * len(formats) - measured,
        ops=sum(1 for graph in graphs for _ in workloads(graph)) * len(formats),
        seconds=time.monotonic() - began,
    )


def _checked(device: Device, formats: Sequence[str] | None) -> tuple[str, ...]:
    """The formats to calibrate; UsageError where the device cannot be calibrated for them."""
    if not device.measured:
        why = device.connection.not_timed
        raise UsageError(f"device '{device.name}' has nothing to calibrate: {why}")
    for form in formats or ():
        if form not in device.formats:
            raise UsageError(
                f"device '{device.name}' does not run {form}; it runs {', '.join(device.formats)}"
            )
    return tuple(formats or device.formats)


@dataclass(frozen=True)
class _Run:
    """The calibration of one format at one precision."""

    device: Device
    runner: DeviceRunner
    facts: Facts
    form: str
    precision: str
    threads: int

    def samples(
        self, graphs: Sequence[Graph], store: Store, progress: Progress, *, fresh: bool
    ) -> tuple[list[Sample], int]:
        """The sample of each graph, and the number of graphs that were measured.

        ``fresh``: measure all of them, not only those that are not in the store.
        """
        keys = [self._key(graph) for graph in graphs]
        known = {} if fresh else store.get(keys)
        missing = [
            (key, graph) for key, graph in zip(keys, graphs, strict=True) if key not in known
        ]
        advance = progress.stage(f"Measure {self.form} on {self.device.name}", len(missing))
        for start in range(0, len(missing), TOGETHER):
            part = missing[start : start + TOGETHER]
            samples = self._measured([graph for _, graph in part])
            new = dict(zip((key for key, _ in part), samples, strict=True))
            store.put(new)
            known |= new
            advance(len(part))
        return [known[key] for key in keys], len(missing)

    def fitted(self, graphs: Sequence[Graph], samples: Sequence[Sample]) -> CostProfile:
        """The cost profile of the samples; DeviceError when no model explains them."""
        key = self._key(graphs[0])
        ops = [tuple(workload for _, workload in workloads(graph)) for graph in graphs]
        try:
            return fitting.fit(
                list(zip(ops, (sample.median for sample in samples), strict=True)),
                layouts=target_of(self.form, self.precision).layouts,
                device=self.device.name,
                format=self.form,
                precision=self.precision,
                threads=self.threads,
                machine=f"{self.facts.machine}, {self.facts.system.partition(' ')[0]}",
                runtime=key.runtime,
                runtime_version=key.runtime_version,
            )
        except UsageError as error:
            raise DeviceError(
                f"the measurements on device '{self.device.name}' cannot be explained: {error}"
            ) from error

    def _key(self, graph: Graph) -> Key:
        """The key of the graph's sample in the store."""
        runtime, _, version = self.facts.runtimes[self.form].rpartition(" ")
        model = measurements.of_model(_digest(graph))
        return Key(
            self.device.name, runtime, version, self.form, self.precision, self.threads, model
        )

    def _measured(self, graphs: Sequence[Graph]) -> Iterator[Sample]:
        """Emit the graphs, time them, and yield their samples."""
        target = target_of(self.form, self.precision)
        with scratch.folder() as folder:
            artifacts = [
                target.emit(graph, folder / f"{number}{target.suffix}", _inputs(graph))
                for number, graph in enumerate(graphs)
            ]
            for times in self._times(artifacts):
                median, p90, iqr, _ = measure.statistics(np.asarray(times))
                yield Sample(median, p90, iqr, len(times), measurements.now())

    def _times(self, artifacts: Sequence[Artifact]) -> Sequence[Sequence[float]]:
        """Milliseconds of each file in each turn.

        All in one process where the device has such workers, otherwise in one process each.
        """
        if hasattr(self.runner, "times"):
            return cast("Profiler", self.runner).times(artifacts, threads=self.threads)
        return [
            self.runner.compare([file], runs=measure.ROUNDS, threads=self.threads)[0].rounds_ms
            for file in artifacts
        ]


def _digest(graph: Graph) -> str:
    """The SHA-256 of the graph's text, which decides its time. Weights do not."""
    return hashlib.sha256(str(graph).encode()).hexdigest()


def _inputs(graph: Graph) -> Batch:
    """Two random samples, for the ranges of int8."""
    rng = np.random.default_rng(0)
    return tuple(
        rng.random((2, *(size or 1 for size in graph.tensors(name)[0].shape[1:])), np.float32)
        for name in graph.inputs
    )
