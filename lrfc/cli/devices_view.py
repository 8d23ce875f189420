"""Output of ``lrfc devices`` and ``lrfc measure``: profiles, checks and measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfc.text import NONE, count, decimal, factor, percent, size

if TYPE_CHECKING:
    from lrfc.cli.console import Terminal
    from lrfc.costs.measurements import Entry
    from lrfc.targets.calibrate import CalibrationReport
    from lrfc.targets.devices.device import Device
    from lrfc.targets.devices.measure import Measurement
    from lrfc.targets.devices.runners.base import Facts

#: The share of outliers above which a measurement gets a note.
OUTLIERS = 0.05


def profiles(
    terminal: Terminal, known: Sequence[tuple[str, Path, Device]], shipped: Path, *, as_json: bool
) -> None:
    """Print a line for each device."""
    if as_json:
        rows = [
            {"path": str(path), "shipped": path.parent == shipped, **device.model_dump(mode="json")}
            for _, path, device in known
        ]
        terminal.json({"devices": rows})
        return
    table = [
        (
            name,
            device.connection.kind,
            " ".join(device.formats),
            " ".join(device.precisions),
            str(device.threads),
            "shipped" if path.parent == shipped else "yours",
        )
        for name, path, device in known
    ]
    terminal.table("", ("device", "connection", "runs", "precision", "threads", ""), table)


def profile(terminal: Terminal, path: Path, device: Device, *, as_json: bool) -> None:
    """Print every key of a profile."""
    values = device.model_dump(mode="json")
    if as_json:
        terminal.json({"path": str(path), **values})
        return
    terminal.line(f"{device.name}: {device.description}")
    terminal.line(f"{path}")
    flat = {
        **{
            key: value
            for key, value in values.items()
            if key not in ("name", "description", "connection")
        },
        **_under("connection", values["connection"]),
    }
    terminal.table("", ("key", "value"), [(key, _text(value)) for key, value in flat.items()])


def _under(name: str, table: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in table.items()}


def _text(value: Any) -> str:
    return (
        NONE
        if value in (None, [])
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def facts(terminal: Terminal, device: Device, facts: Facts, *, as_json: bool) -> None:
    """Print the machine, the runtimes and the free storage of a device."""
    if as_json:
        terminal.json(
            {
                "device": device.name,
                "machine": facts.machine,
                "system": facts.system,
                "python": facts.python,
                "runtimes": dict(facts.runtimes),
                "free_bytes": facts.free_bytes,
            }
        )
        return
    rows = [("machine", facts.machine), ("system", facts.system), ("python", facts.python or NONE)]
    rows += [(f"runs .{form}", runtime) for form, runtime in facts.runtimes.items()]
    terminal.table(device.name, ("", ""), [*rows, ("free", size(facts.free_bytes))])
    terminal.line(f"device '{device.name}' is ready")


def measurements(terminal: Terminal, rows: Sequence[Measurement], *, as_json: bool) -> None:
    """Print latency and memory of each file, and its speed relative to the first one."""
    from lrfc.metrics.source import MEASURED

    if as_json:
        terminal.json({"measurements": [row.to_json() for row in rows]})
        return
    (_measured if rows[0].source == MEASURED else _computed)(terminal, rows)
    for row in rows:
        notes = list(row.notes)
        if row.outliers > OUTLIERS:
            outliers = percent(row.outliers, 0)
            notes.append(f"{outliers} of the runs are outliers; they do not affect median and IQR")
        for note in notes:
            terminal.line(f"{row.path.name}: {note}")


def _measured(terminal: Terminal, rows: Sequence[Measurement]) -> None:
    """Print a table of files that were measured on a device."""
    from lrfc.targets.devices.speed import speedup

    first = rows[0]
    table = []
    for row in rows:
        ratio = speedup(first, row)
        table.append(
            (
                row.path.name,
                decimal(row.median_ms),
                decimal(row.p90_ms),
                decimal(row.iqr_ms, 3),
                decimal(row.cold_start_ms),
                size(row.file_bytes),
                size(row.peak_rss_bytes),
                f"{factor(ratio.median)} ({ratio.low:.2f}–{ratio.high:.2f})",
            )
        )
    terminal.table(
        "",
        ("file", "p50 ms", "p90 ms", "IQR ms", "cold ms", "size", "peak RSS", "speed (95 %)"),
        table,
    )
    processes = max(1, len(first.processes))
    terminal.line(
        f"measured by {first.runtime} {first.runtime_version}, {first.threads} thread(s)"
        f"{_cores(first)}, batch 1, {first.n} interleaved runs of each file in {processes} fresh"
        f" process{'es' if processes > 1 else ''}"
    )


def _cores(measured: Measurement) -> str:
    """The processor cores that a measurement was bound to; empty without a binding."""
    if not measured.cores:
        return ""
    cores = " ".join(map(str, measured.cores))
    if len(measured.cores) <= measured.threads:
        return f", bound to core {cores}"
    return f", bound to {measured.threads} core(s) out of {cores}"


def _computed(terminal: Terminal, rows: Sequence[Measurement]) -> None:
    """Print a table of files whose figures were estimated or compiled."""
    from lrfc.targets.devices.speed import speedup

    first = rows[0]
    measured = first.arena_head_bytes is not None
    names = ("arena head", "arena tail") if measured else ("cycles", "SRAM", "flash")
    table = [
        (
            row.path.name,
            decimal(row.median_ms),
            *(
                (size(row.arena_head_bytes), size(row.arena_tail_bytes))
                if measured
                else (count(row.cycles), size(row.sram_bytes), size(row.flash_bytes))
            ),
            factor(speedup(first, row).median),
        )
        for row in rows
    ]
    terminal.table("", ("file", "ms", *names, "speed"), table)
    runtime = " ".join(part for part in (first.runtime, first.runtime_version) if part)
    memory = "; arena measured with TensorFlow Lite Micro" if measured else ""
    terminal.line(f"{first.source} by {runtime}, batch 1; no device was timed{memory}")


def calibration(terminal: Terminal, report: CalibrationReport, *, as_json: bool) -> None:
    """Print the errors of the fitted cost profiles on held-out networks and ops."""
    if as_json:
        terminal.json(report.to_json())
        return
    rows = [
        (
            f"{fitted.format} {fitted.precision}, {fitted.threads} thread(s)",
            subject,
            str(error.n),
            percent(error.mean),
            percent(error.p90),
        )
        for fitted in report.profiles
        for subject, error in fitted.held_out.items()
    ]
    terminal.table(report.device, ("profile", "held out", "n", "mean error", "p90"), rows)
    terminal.line(
        f"{report.ops} ops in small networks: {report.measured} networks measured, {report.reused}"
        f" reused; {report.seconds:.0f} s"
    )
    terminal.line(f"written: {report.path}")


def history(terminal: Terminal, entries: Sequence[Entry], *, as_json: bool) -> None:
    """Print the stored measurements, a line for each workload or network."""
    if as_json:
        from dataclasses import asdict

        terminal.json(
            {
                "measurements": [
                    {**asdict(entry.key), **asdict(entry.sample), "source": entry.key.source}
                    for entry in entries
                ]
            }
        )
        return
    rows = [
        (
            entry.key.subject,
            entry.key.device,
            f"{entry.key.runtime} {entry.key.runtime_version}",
            entry.key.precision,
            str(entry.key.threads),
            decimal(entry.sample.median),
            str(entry.sample.n),
            entry.sample.when,
        )
        for entry in entries
    ]
    terminal.table(
        "",
        ("subject", "device", "runtime", "precision", "threads", "median", "n", "when (UTC)"),
        rows,
    )
    kinds = Counter(entry.key.source for entry in entries)
    counts = ", ".join(f"{number} {source}" for source, number in kinds.items())
    terminal.line(f"{len(entries)} figures: {counts}" if entries else "nothing was measured yet")
