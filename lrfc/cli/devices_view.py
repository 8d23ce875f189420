"""What the command line shows of devices: profiles, what they say about themselves, and what was measured on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfc.cli.console import Terminal, shown, size

if TYPE_CHECKING:
    from lrfc.costs.measurements import Entry
    from lrfc.targets.calibrate import CalibrationReport
    from lrfc.targets.devices.device import Device
    from lrfc.targets.devices.measure import Measurement
    from lrfc.targets.devices.runners.base import Facts


def profiles(
    terminal: Terminal, known: Sequence[tuple[str, Path, Device]], shipped: Path, *, as_json: bool
) -> None:
    """One line a device."""
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
            "ships" if path.parent == shipped else "yours",
        )
        for name, path, device in known
    ]
    terminal.table("", ("device", "reached by", "runs", "precision", "threads", ""), table)


def profile(terminal: Terminal, path: Path, device: Device, *, as_json: bool) -> None:
    """Every key of a profile."""
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
        "—"
        if value in (None, [])
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def facts(terminal: Terminal, device: Device, found: Facts, *, as_json: bool) -> None:
    """What a device says about itself."""
    if as_json:
        terminal.json(
            {
                "device": device.name,
                "machine": found.machine,
                "system": found.system,
                "python": found.python,
                "runtimes": dict(found.runtimes),
                "free_bytes": found.free_bytes,
            }
        )
        return
    rows = [("machine", found.machine), ("system", found.system), ("python", found.python or "—")]
    rows += [(f"runs .{form}", runtime) for form, runtime in found.runtimes.items()]
    terminal.table(device.name, ("", ""), [*rows, ("free", shown(found.free_bytes, size))])
    terminal.line(f"device '{device.name}' is ready")


def measurements(terminal: Terminal, rows: Sequence[Measurement], *, as_json: bool) -> None:
    """Latency and memory of each file, and its speed beside the first."""
    from lrfc.metrics.source import MEASURED
    from lrfc.targets.devices.speed import speedup

    if as_json:
        terminal.json({"measurements": [row.to_json() for row in rows]})
        return
    first = rows[0]
    ratios = [speedup(first, row) for row in rows]
    if first.source != MEASURED:
        table = [
            (
                row.path.name,
                f"{row.median_ms:.4g}",
                shown(row.cycles, "{:,}".format),
                shown(row.sram_bytes, size),
                shown(row.flash_bytes, size),
                f"×{ratio.median:.2f}",
            )
            for row, ratio in zip(rows, ratios, strict=True)
        ]
        terminal.table("", ("file", "ms", "cycles", "SRAM", "flash", "speed"), table)
        by = " ".join(part for part in (first.runtime, first.runtime_version) if part)
        terminal.line(f"{first.source} by {by}, batch 1; no device was timed")
    else:
        timed = [
            (
                row.path.name,
                f"{row.median_ms:.4g}",
                f"{row.p90_ms:.4g}",
                f"{row.iqr_ms:.3g}",
                shown(row.cold_start_ms, "{:.4g}".format),
                shown(row.file_bytes, size),
                shown(row.peak_rss_bytes, size),
                f"×{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
            )
            for row, ratio in zip(rows, ratios, strict=True)
        ]
        terminal.table(
            "",
            ("file", "p50 ms", "p90 ms", "IQR ms", "cold ms", "size", "peak RSS", "speed (95 %)"),
            timed,
        )
        cores = "" if not first.cores else " ".join(map(str, first.cores))
        bound = (
            f", bound to core {cores}" if first.cores and len(first.cores) <= first.threads else ""
        )
        bound = (
            f", bound to {first.threads} core(s) out of {cores}" if cores and not bound else bound
        )
        processes = max(1, len(first.processes))
        conditions = (
            f"{first.threads} thread(s){bound}, batch 1, {first.n} timings of each file in"
            f" {processes} fresh process{'es' if processes > 1 else ''} of its own, interleaved"
        )
        terminal.line(f"measured by {first.runtime} {first.runtime_version}, {conditions}")
    for row in rows:
        far = (
            (f"{100 * row.outliers:.0f} % of the timings are far out; the median does not mind",)
            if row.outliers > 0.05
            else ()
        )
        for note in (*row.notes, *far):
            terminal.line(f"{row.path.name}: {note}")


def calibration(terminal: Terminal, report: CalibrationReport, *, as_json: bool) -> None:
    """How well the fitted profiles predict what the fit had not seen."""
    if as_json:
        terminal.json(report.to_json())
        return
    rows = [
        (
            f"{each.format} {each.precision}, {each.threads} thread(s)",
            what,
            str(error.n),
            f"{100 * error.mean:.1f} %",
            f"{100 * error.p90:.1f} %",
        )
        for each in report.profiles
        for what, error in each.held_out.items()
    ]
    terminal.table(report.device, ("profile", "held out", "n", "mean error", "p90"), rows)
    terminal.line(
        f"{report.ops} ops in small networks: {report.measured} networks measured, {report.reused}"
        f" known already; {report.seconds:.0f} s"
    )
    terminal.line(f"written: {report.path}")


def history(terminal: Terminal, entries: Sequence[Entry], *, as_json: bool) -> None:
    """What is known of a device, measured there or compiled for it, one line a subject."""
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
            f"{entry.sample.median:.4g}",
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
