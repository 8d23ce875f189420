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

#: Networks that are emitted and measured together, then kept.
TOGETHER = 30


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration found: the profiles, the file they were written to, how many networks were measured now and how many were known already."""

    device: str
    path: Path
    profiles: tuple[CostProfile, ...]
    measured: int
    reused: int
    ops: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One JSON object; of each profile what it is for and its held-out errors."""
        about = ("format", "precision", "threads", "runtime", "runtime_version", "machine", "unit")
        profiles = [
            {
                **{key: getattr(each, key) for key in about},
                "held_out": {name: error.model_dump() for name, error in each.held_out.items()},
            }
            for each in self.profiles
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
    """Measure what is not known yet and write the user's cost file of the device, which is read before the one that ships.

    ``formats``, ``precision``, ``threads``: the device's own by default. ``fresh``: measure again
    what earlier calibrations have measured. What was measured before the device went away is kept.
    UsageError for a device whose times are not measured, or a format that it does not run;
    DeviceError from its runner.
    """
    began = time.monotonic()
    formats, precision, threads = (
        tuple(formats or device.formats),
        precision or device.precisions[0],
        threads or device.threads,
    )
    progress = progress or Progress()
    if not device.measured:
        why = device.connection.not_timed
        raise UsageError(f"device '{device.name}' has nothing to calibrate: {why}")
    for form in formats:
        if form not in device.formats:
            raise UsageError(
                f"device '{device.name}' does not run {form}; it runs {', '.join(device.formats)}"
            )
    store = store or Store(log=progress.log)
    path = latency.user_file(device.name)
    files.check(path, way_out=files.CONFIG)
    graphs = list(microbench.networks(networks))
    counts = {"measured": 0, "reused": 0}
    profiles = []
    with runner(device) as reached:
        facts = reached.check()
        for form in formats:
            name, _, version = facts.runtimes[form].rpartition(" ")
            keys = [
                Key(
                    device.name,
                    name,
                    version,
                    form,
                    precision,
                    threads,
                    measurements.of_model(_digest(graph)),
                )
                for graph in graphs
            ]
            known = {} if fresh else store.get(keys)
            missing = [
                (key, graph) for key, graph in zip(keys, graphs, strict=True) if key not in known
            ]
            counts["measured"] += len(missing)
            counts["reused"] += len(known)
            advance = progress.stage(f"Measure {form} on {device.name}", len(missing))
            for start in range(0, len(missing), TOGETHER):
                some = missing[start : start + TOGETHER]
                found = dict(
                    zip(
                        (key for key, _ in some),
                        _measured([graph for _, graph in some], reached, form, precision, threads),
                        strict=True,
                    )
                )
                store.put(found)
                known |= found
                advance(len(some))
            profiles.append(_fitted(graphs, [known[key] for key in keys], device, keys[0], facts))
    file = latency.read(path) if path.is_file() else CostFile(profiles=())
    for profile in profiles:
        file = file.with_profile(profile)
    file.write(path)
    ops = sum(1 for graph in graphs for _ in workloads(graph)) * len(formats)
    return CalibrationReport(
        device.name,
        path,
        tuple(profiles),
        counts["measured"],
        counts["reused"],
        ops,
        time.monotonic() - began,
    )


def _digest(graph: Graph) -> str:
    """The network by its text: what decides its time. Weights do not."""
    return hashlib.sha256(str(graph).encode()).hexdigest()


def _measured(
    graphs: Sequence[Graph], reached: DeviceRunner, form: str, precision: str, threads: int
) -> Iterator[Sample]:
    target = target_of(form, precision)
    with scratch.folder() as folder:
        places = [folder / f"{number}{target.suffix}" for number in range(len(graphs))]
        files = [
            target.emit(graph, place, _inputs(graph))
            for graph, place in zip(graphs, places, strict=True)
        ]
        for times in _times(reached, files, threads):
            median, p90, iqr, _ = measure.statistics(np.asarray(times))
            yield Sample(median, p90, iqr, len(times), measurements.now())


def _times(
    reached: DeviceRunner, files: Sequence[Artifact], threads: int
) -> Sequence[Sequence[float]]:
    """Milliseconds of each file in each turn: in one process where the device has such workers, otherwise in one process each."""
    if hasattr(reached, "times"):
        return cast("Profiler", reached).times(files, threads=threads)
    return [
        reached.compare([file], runs=measure.ROUNDS, threads=threads)[0].rounds_ms for file in files
    ]


def _inputs(graph: Graph) -> Batch:
    """Inputs for the ranges of int8."""
    rng = np.random.default_rng(0)
    return tuple(
        rng.random((2, *(size or 1 for size in graph.tensors(name)[0].shape[1:])), np.float32)
        for name in graph.inputs
    )


def _fitted(
    graphs: Sequence[Graph], samples: Sequence[Sample], device: Device, key: Key, facts: Facts
) -> CostProfile:
    ops = [tuple(each for _, each in workloads(graph)) for graph in graphs]
    try:
        return fitting.fit(
            list(zip(ops, (sample.median for sample in samples), strict=True)),
            layouts=target_of(key.format, key.precision).layouts,
            device=device.name,
            format=key.format,
            precision=key.precision,
            threads=key.threads,
            machine=f"{facts.machine}, {facts.system.partition(' ')[0]}",
            runtime=key.runtime,
            runtime_version=key.runtime_version,
        )
    except UsageError as error:
        raise DeviceError(
            f"the measurements on device '{device.name}' cannot be explained: {error}"
        ) from error
