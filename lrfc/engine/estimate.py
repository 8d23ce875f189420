"""Estimated latencies of emitted files, on a device that cannot be reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrfc.config.precision import listed
from lrfc.costs.latency import CostProfile
from lrfc.engine.destinations import destination
from lrfc.engine.preflight import Goal
from lrfc.errors import UsageError
from lrfc.metrics.source import ESTIMATED
from lrfc.system.reader import shown
from lrfc.targets.catalog import target
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.micro import tflm


def estimates(
    files: Sequence[tuple[Path, str]], device: Device, threads: int | None
) -> tuple[Measurement, ...]:
    """An estimate for each file; ``files``: each with its format.

    UsageError when the device does not run such files, or has no profile of their latencies.
    """
    rows = [_estimate(path, form, device, threads or device.threads) for path, form in files]
    return tuple(with_arena(row, device) for row in rows)


def estimated(
    path: Path, ms: float, profile: CostProfile, threads: int, notes: tuple[str, ...] = ()
) -> Measurement:
    """The measurement record of a latency that was computed from a cost profile."""
    return Measurement(
        path=path,
        median_ms=ms,
        p90_ms=ms,
        iqr_ms=0.0,
        n=1,
        inner=1,
        rounds_ms=(ms,),
        threads=threads,
        cold_start_ms=None,
        runtime=profile.runtime or "cost profile",
        runtime_version=profile.runtime_version,
        baseline_rss_bytes=None,
        peak_rss_bytes=None,
        source=ESTIMATED,
        file_bytes=path.stat().st_size,
        notes=notes,
    )


def with_arena(measured: Measurement, device: Device) -> Measurement:
    """The measurement with the arena of its file, for a device whose memory is measured.

    With a note instead where the package is missing. The errors of
    ``lrfc.targets.micro.tflm.arena``.
    """
    if not device.measures_arena:
        return measured
    if not tflm.installed():
        note = f"the memory on {device.name} is not measured: {tflm.REMEDY}"
        return replace(measured, notes=(*measured.notes, note))
    arena = tflm.arena(measured.path)
    return replace(measured, arena_head_bytes=arena.head_bytes, arena_tail_bytes=arena.tail_bytes)


def _estimate(path: Path, form: str, device: Device, threads: int) -> Measurement:
    """The estimate for one file."""
    operators = target(form).operators(path)
    if operators is None:
        raise UsageError(
            f"device '{device.name}' cannot be reached, and the times of {shown(path)} cannot be"
            " computed: give a .tflite file"
        )
    precision = operators.precision
    if precision not in device.precisions:
        raise UsageError(
            f"device '{device.name}' computes in {listed(device.precisions, 'and')}, and"
            f" {shown(path)} is in {precision}; emit it with lrfc build --device {device.name}"
        )
    profile, note = destination(Goal(form, precision, device, threads, device.name)).profile()
    if profile.unit != "ms":
        raise UsageError(
            f"device '{device.name}' has a cost profile in {profile.unit}, of which no time is"
            " known; lrfc devices calibrate makes another"
        )
    notes = () if note is None else (note,)
    return estimated(path, profile.predict(operators.workloads), profile, threads, notes)
