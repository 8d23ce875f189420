"""report.html: one self-contained page drawn from the manifest alone, so that it can say nothing that was not recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lrfc.manifest import Latency, Manifest

if TYPE_CHECKING:
    from lrfc.targets.measure import Ratio

#: What stands where nothing was measured.
NONE = "—"
#: The plot's size and margins, in SVG units: left, right, top, bottom.
_WIDTH, _HEIGHT = 640, 300
_MARGIN = (70, 20, 16, 44)

_RUNGS = {
    "before": "Original",
    "factorized": "Factorized",
    "recalibrated": "BatchNorm re-estimated",
    "refitted": "Factors refitted",
    "finetuned": "Fine-tuned",
    "artifact": "Emitted file",
}


@dataclass(frozen=True)
class Row:
    """One quantity before and after, as text; ``note`` says how it was measured."""

    name: str
    before: str
    after: str
    kept: str = NONE
    saved: str = NONE
    factor: str = NONE
    note: str = ""


def render(manifest: Manifest, ratio: Ratio, points: Sequence[Mapping[str, Any]], problem: str | None) -> str:
    """The page as text.

    ``ratio``: the measured speed-up of the factorized file over the original's. ``points``: the Pareto front, dicts with ``macs``, ``params`` and
    ``predicted_divergence``. ``problem``: why the build does not end well (a budget not met, no gain), shown above everything else.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "size": size, "percent": percent, "decimal": decimal, "option": option, "ranks": ranks}
    kept_original = problem is not None and all(layer.method is None for layer in manifest.layers)
    return environment.get_template("page.html.j2").render(
        m=manifest,
        title=Path(manifest.input.path).name,
        verdict=verdict(manifest, ratio, kept_original=kept_original),
        problem=problem,
        kept_original=kept_original,
        ratio=ratio,
        speed=speed(ratio),
        rows=rows(manifest),
        ladder=[(_RUNGS[rung], manifest.accuracy.shown(value)) for rung, value in manifest.accuracy.ladder().items()],
        changed=sum(layer.method is not None for layer in manifest.layers),
        points=sorted(points, key=lambda point: point["macs"]),
        plot=plot(points, manifest.after.macs) if points else None,
        NONE=NONE,
    )


# -- sentences and rows ------------------------------------------------------------------------------------------------------------


def speed(ratio: Ratio) -> str:
    """What the measured ratio says: a difference only when the whole interval does, and when it shows in two decimals."""
    if f"{ratio.median:.2f}" == "1.00":
        return "as fast as the original"
    if ratio.low > 1:
        return f"{ratio.median:.2f} times as fast"
    if ratio.high < 1:
        return f"slower, at {ratio.median:.2f} times the speed"
    return "not measurably faster or slower"


def verdict(manifest: Manifest, ratio: Ratio, *, kept_original: bool) -> str:
    """The outcome in one sentence."""
    if kept_original:
        return "Factorization brought no gain, so the original model was kept."
    before, after = manifest.before, manifest.after
    said = [
        f"{percent(after.macs / before.macs)} of the MACs" if before.macs else "",
        f"{percent(after.params / before.params)} of the parameters" if before.params else "",
    ]
    if before.file_bytes and after.file_bytes is not None:
        said.append(f"{percent(after.file_bytes / before.file_bytes)} of the file size")
    told = ", ".join(part for part in said if part)
    sentence = f"The compressed model keeps {told or 'the size of the original'}, and is {speed(ratio)}"
    if before.accuracy is None or after.accuracy is None:
        return f"{sentence}; its accuracy was not measured."
    scores = manifest.accuracy
    change = f"{points_of(after.accuracy - before.accuracy)}" if scores.percent else f"{scores.shown(before.accuracy)} before"
    return f"{sentence}; its {scores.metric or 'accuracy'} is {scores.shown(after.accuracy)} ({change})."


def rows(manifest: Manifest) -> list[Row]:
    """The before/after table."""
    before, after = manifest.before, manifest.after
    found = [
        _row("MACs", before.macs, after.macs, count),
        _row("Parameters", before.params, after.params, count),
        _row("File size", before.file_bytes, after.file_bytes, size),
        _row("Planned activation arena", before.arena_bytes, after.arena_bytes, size),
    ]
    for name, quantile in (("Latency, median", "p50"), ("Latency, 90th percentile", "p90")):
        first, second = (None if figures.latency_ms is None else getattr(figures.latency_ms, quantile) for figures in (before, after))
        found.append(_row(name, first, second, lambda value: f"{decimal(value)} ms", _how(before.latency_ms, after.latency_ms)))
    if before.cycles is None:
        found.append(_row("Peak resident memory", before.peak_rss_bytes, after.peak_rss_bytes, size, "of the process, runtime included"))
    else:
        found.append(_row("NPU cycles", before.cycles, after.cycles, count, "computed by its compiler"))
        found.append(_row("SRAM", before.sram_bytes, after.sram_bytes, size))
        found.append(_row("Flash", before.flash_bytes, after.flash_bytes, size))
    scores = manifest.accuracy
    score = _row((scores.metric or "accuracy").capitalize(), before.accuracy, after.accuracy, scores.shown)
    if scores.percent and before.accuracy is not None and after.accuracy is not None:  # a score is not saved: its change is in points
        score = Row(score.name, score.before, f"{score.after} ({points_of(after.accuracy - before.accuracy)})", score.kept)
    return [*found, score]


def _row(name: str, before: float | None, after: float | None, show: Callable[[Any], str], note: str = "") -> Row:
    first, second = (NONE if value is None else show(value) for value in (before, after))
    if before is None or after is None or not before:
        return Row(name, first, second, note=note)
    kept = after / before
    return Row(name, first, second, percent(kept), percent(1 - kept), f"×{decimal(before / after, 3)}" if after else NONE, note)


def _how(before: Latency | None, after: Latency | None) -> str:
    sides = [
        "estimated, no device was timed" if side.estimated else f"n = {side.n}, {side.threads} thread{'s' if side.threads > 1 else ''}"
        for side in (before, after)
        if side is not None
    ]
    return " / ".join(dict.fromkeys(sides))


# -- numbers as text ---------------------------------------------------------------------------------------------------------------


def count(value: float | None) -> str:
    """12,345."""
    return NONE if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in a unit that people read, with the exact number behind it."""
    if value is None:
        return NONE
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:,.1f} {unit} ({value:,} bytes)"
    return f"{value:,} bytes"


def percent(value: float | None) -> str:
    """A fraction in percent, with two decimals where they say something."""
    return NONE if value is None else _minus(f"{100 * value:.2f} %" if abs(value) > 0 else "0 %")


def points_of(change: float) -> str:
    """A change of a fraction, in percentage points."""
    return _minus(f"{100 * change:+.2f} pp")


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits."""
    return NONE if value is None else _minus(f"{value:.{digits}g}")


def ranks(value: Sequence[int] | None) -> str:
    """4 × 8."""
    return " × ".join(map(str, value)) if value else NONE


def option(value: Any) -> str:
    """The value of an option as it is written on the command line; a budget that is a share shows its percentage."""
    if isinstance(value, Mapping) and set(value) == {"value", "relative"}:
        return f"{100 * value['value']:.4g}%" if value["relative"] else f"{value['value']:.10g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(option, value)) or NONE
    return NONE if value is None else str(value)


def _minus(text: str) -> str:
    return text.replace("-", "−")


# -- the plot ----------------------------------------------------------------------------------------------------------------------


def plot(points: Sequence[Mapping[str, Any]], chosen: float) -> dict[str, Any]:
    """Coordinates of the front (MACs to the right, divergence upwards from 0), of the axes' ticks, and of the built model's MACs."""
    left, right, top, bottom = _MARGIN
    most_macs = max(*(point["macs"] for point in points), chosen, 1)
    most = max(point["predicted_divergence"] for point in points) or 1

    def x(macs: float) -> str:
        return f"{left + (_WIDTH - left - right) * macs / most_macs:.1f}"

    def y(divergence: float) -> str:
        return f"{_HEIGHT - bottom - (_HEIGHT - top - bottom) * divergence / most:.1f}"

    marks = [(x(point["macs"]), y(point["predicted_divergence"]), point) for point in sorted(points, key=lambda point: point["macs"])]
    steps = (0, 0.25, 0.5, 0.75, 1)
    return {
        "width": _WIDTH, "height": _HEIGHT, "left": left, "right": _WIDTH - right, "top": top, "bottom": _HEIGHT - bottom,
        "marks": marks,
        "line": " ".join(f"{a},{b}" for a, b, _ in marks),
        "x_ticks": [(x(step * most_macs), f"{decimal(step * most_macs / _scale(most_macs)[0], 3)}{_scale(most_macs)[1]}") for step in steps],
        "y_ticks": [(y(step * most), decimal(step * most, 2)) for step in steps],
        "chosen": x(chosen),
    }  # fmt: skip


def _scale(most: float) -> tuple[float, str]:
    return next(((factor, unit) for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if most >= factor), (1.0, ""))
