"""report.html: one self-contained page drawn from the files of an output folder alone, so that it can say nothing that was not recorded."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, ValidationError

from lrfc import anatomy, choices
from lrfc.anatomy import Anatomy, OpCost
from lrfc.errors import UsageError
from lrfc.manifest import GREATEST, Latency, Layer, Manifest, Speedup
from lrfc.reader import contents, json_object, kind, refused
from lrfc.report import figures
from lrfc.report.chart import legend
from lrfc.report.command import command
from lrfc.report.text import NONE, change, count, decimal, minus, ms, option, percent, points_of, ranks, short_size, size

NAME = "report.html"
#: The one script: sorts tables, and shows one layer's curves at a time. Without it everything is there, unsorted.
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")

_RUNGS = {
    "before": "Original, in float",
    "factorized": "Factorized",
    "pruned": "Filters cut",
    "recalibrated": "BatchNorm re-estimated",
    "refitted": "Layers refitted",
    "finetuned": "Fine-tuned",
    "artifact": "Emitted file",
}


@dataclass(frozen=True)
class Content:
    """What a page is drawn from. ``points`` and ``by_latency``: the Pareto fronts of pareto.json. ``ops``: None for the folder of an older lrfc."""

    manifest: Manifest
    points: Sequence[Mapping[str, Any]] = ()
    by_latency: Sequence[Mapping[str, Any]] = ()
    candidates: Sequence[choices.Row] = ()
    ops: Anatomy | None = None


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


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table: what the manifest says, and of its ops their kernels, bytes and predicted milliseconds before and after."""

    layer: Layer
    kernels: tuple[tuple[str, ...], tuple[str, ...]]
    bytes: tuple[int | None, int | None]
    ms: tuple[float | None, float | None]


@dataclass(frozen=True)
class NPURow:
    """What an NPU's compiler says of a layer with all of its factors, before and after; ``cpu``: the operators that are left to the CPU."""

    name: str
    before: Mapping[str, int | None]
    after: Mapping[str, int | None]
    cpu: tuple[str, ...]


def write(folder: Path) -> Path:
    """Draw the page of an output folder anew. UsageError when the folder is none."""
    path = folder / NAME
    text = render(read(folder))
    if path.is_symlink():  # a folder from somebody else must not decide which file is overwritten
        raise UsageError(f"'{path}' is a link, and what it leads to is not overwritten; remove it")
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path) -> Content:
    """What an output folder recorded."""
    manifest = Manifest.read(folder)
    rows = choices.read(folder) if kind(folder / choices.NAME) is not None else ()
    ops = Anatomy.read(folder) if kind(folder / anatomy.NAME) is not None else None
    fronts = _fronts(folder / "pareto.json") if kind(folder / "pareto.json") is not None else _Fronts()
    return Content(manifest, [p.model_dump() for p in fronts.points], [p.model_dump() for p in fronts.by_latency], rows, ops)


_Figure = Annotated[int | float, Field(ge=0, le=GREATEST, allow_inf_nan=False)]


class _Point(BaseModel):
    """A plan of a Pareto front, as far as the page shows it."""

    macs: _Figure
    params: _Figure
    predicted_divergence: _Figure


class _Timed(_Point):
    latency: _Figure


class _Fronts(BaseModel):
    """pareto.json, as far as the page shows it."""

    points: tuple[_Point, ...] = ()
    by_latency: tuple[_Timed, ...] = ()


def _fronts(path: Path) -> _Fronts:
    try:
        return _Fronts.model_validate(json_object(contents(path), f"'{path}'"))
    except ValidationError as error:
        raise UsageError(f"'{path}' is damaged: {refused(error)}") from error


def render(content: Content) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": count, "size": size, "short_size": short_size, "percent": percent, "decimal": decimal, "option": option, "ranks": ranks,
    }  # fmt: skip
    environment.globals |= {"change": change, "count": count, "short_size": short_size, "ms": ms}
    manifest, ops = content.manifest, content.ops
    kept_original = manifest.problem is not None and not manifest.filters and all(layer.method is None for layer in manifest.layers)
    # Nothing was weighed against the layers as they are: there are no other plans to show.
    only_cut = manifest.config.get("prune") == "only"
    clocked = None if ops is None else by_cycles(manifest, ops)
    times = clocked or ops
    times_told = f"predicted for {option(manifest.device)} from its cost profile, not measured"
    if clocked is not None:
        times_told = f"the cycles that the compiler of {option(manifest.device)} counts, at its clock"
    curves, key = figures.similarities(() if only_cut else content.candidates)
    points, by_latency = ((), ()) if only_cut else (content.points, content.by_latency)
    return environment.get_template("page.html.j2").render(
        m=manifest,
        title=Path(manifest.input.path).name,
        verdict=verdict(manifest, manifest.speedup, kept_original=kept_original),
        kept_original=kept_original,
        cards=[] if kept_original else cards(manifest),
        speed=None if manifest.speedup is None else speed(manifest.speedup),
        rows=rows(manifest),
        precision=manifest.config.get("precision"),
        baselines=baselines(manifest),
        ladder=[(_RUNGS[rung], manifest.accuracy.shown(value)) for rung, value in manifest.accuracy.ladder().items()],
        changed=sum(layer.method is not None for layer in manifest.layers),
        cut=sum(layer.cut for layer in manifest.layers),
        counted=any(layer.filters_before is not None for layer in manifest.layers),
        layers=layers(manifest, times, kept_original=kept_original),
        only_cut=only_cut,
        points=sorted(points, key=lambda point: point["macs"]),
        by_latency=by_latency,
        front=figures.front(points, by_latency, manifest) if points or by_latency else None,
        files=figures.files(manifest),
        curves=curves,
        first_curve=next((curve for curve in curves if curve.changed), curves[0] if curves else None),
        curves_key=key,
        bars=figures.waterfall(times) if times is not None else [],
        times_told=times_told,
        by_cycles=clocked is not None,
        npu=npu(ops) if ops is not None else [],
        memory=figures.memory(ops) if ops is not None else None,
        memory_key=legend(["before", "after"]),
        rounds=figures.rounds(manifest),
        tuning=figures.tuning(manifest),
        command=command(manifest),
        quoted_input=shlex.quote(manifest.input.path),
        script=SCRIPT,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        NONE=NONE,
    )


def layers(manifest: Manifest, ops: Anatomy | None, *, kept_original: bool = False) -> list[LayerRow]:
    """The table of layers."""
    found = []
    for layer in manifest.layers:
        sides = [[op for op in side if op.layer == layer.name] for side in ((ops.before, ops.after) if ops is not None else ((), ()))]
        if kept_original:  # the ops are those of a file that was not kept
            sides[1] = sides[0]
        kernels, stored, times = zip(*map(_side, sides), strict=True)
        found.append(LayerRow(layer, kernels, stored, times))
    return found


def _side(ops: Sequence[OpCost]) -> tuple[tuple[str, ...], int | None, float | None]:
    kernels = tuple("×".join(map(str, op.kernel)) for op in ops if op.kernel)
    times = [op.predicted_ms for op in ops if op.predicted_ms is not None]
    return kernels, sum(op.weight_bytes for op in ops) if ops else None, sum(times) if times else None


def by_cycles(manifest: Manifest, ops: Anatomy) -> Anatomy | None:
    """The ops with the time of their cycles in the place of the predicted one: together they take what the file takes. None where cycles are not known."""
    before = manifest.before
    if not before.cycles or before.latency_ms is None or not all(any(op.cycles is not None for op in side) for side in (ops.before, ops.after)):
        return None
    ms_per_cycle = before.latency_ms.p50 / before.cycles  # one clock for both files

    def side(listed: Sequence[OpCost]) -> tuple[OpCost, ...]:
        return tuple(op.model_copy(update={"predicted_ms": None if op.cycles is None else op.cycles * ms_per_cycle}) for op in listed)

    return Anatomy(overhead_ms=0.0, before=side(ops.before), after=side(ops.after))


def npu(ops: Anatomy) -> list[NPURow]:
    """Cycles and memory layer by layer; empty where no compiler told them."""
    found = []
    for name in dict.fromkeys(op.layer for op in (*ops.before, *ops.after) if op.cycles is not None):
        before, after = ([op for op in side if op.layer == name] for side in (ops.before, ops.after))
        cpu = dict.fromkeys(operator for op in (*before, *after) for operator in op.cpu)
        found.append(NPURow(name, _spent(before), _spent(after), tuple(cpu)))
    return found


def _spent(ops: Sequence[OpCost]) -> dict[str, int | None]:
    how: dict[str, Callable[[Sequence[int]], int]] = {"cycles": sum, "sram_bytes": max, "flash_bytes": sum}
    known = {quantity: [value for op in ops if (value := getattr(op, quantity)) is not None] for quantity in how}
    return {quantity: merge(known[quantity]) if known[quantity] else None for quantity, merge in how.items()}


# -- sentences and rows ------------------------------------------------------------------------------------------------------------


def speed(ratio: Speedup) -> str:
    """What the measured ratio says: a difference only when the whole interval does, and when it shows in two decimals."""
    if f"{ratio.median:.2f}" == "1.00":
        return "as fast as the original"
    if ratio.low > 1:
        return f"{ratio.median:.2f} times as fast"
    if ratio.high < 1:
        return f"slower, at {ratio.median:.2f} times the speed"
    return "not measurably faster or slower"


def verdict(manifest: Manifest, ratio: Speedup | None, *, kept_original: bool) -> str:
    """The outcome in one sentence."""
    if kept_original:
        return "Compression brought no gain, so the original model was kept."
    before, after = manifest.before, manifest.after
    said = [
        f"{percent(after.macs / before.macs)} of the MACs" if before.macs else "",
        f"{percent(after.params / before.params)} of the parameters" if before.params else "",
    ]
    if before.file_bytes and after.file_bytes is not None:
        said.append(f"{percent(after.file_bytes / before.file_bytes)} of the file size")
    told = ", ".join(part for part in said if part)
    sentence = f"The compressed model keeps {told or 'the size of the original'}, and is {'of unknown speed' if ratio is None else speed(ratio)}"
    if before.accuracy is None or after.accuracy is None:
        return f"{sentence}; its accuracy was not measured."
    scores = manifest.accuracy
    difference = points_of(after.accuracy - before.accuracy) if scores.percent else f"{scores.shown(before.accuracy)} before"
    if scores.percent and manifest.original_file is not None:
        difference += " against the original's file"
    return f"{sentence}; its {scores.metric or 'accuracy'} is {scores.shown(after.accuracy)} ({difference})."


def baselines(manifest: Manifest) -> str:
    """Where the original's file has another score than the original, or kernels add to the drop: what each difference is taken from."""
    scores, file = manifest.accuracy, manifest.original_file
    kernels = scores.kernels if scores.kernels is not None and scores.kernels.counted else None
    if scores.before is None or scores.artifact is None or (file is None and kernels is None):
        return ""
    said = f"The drop is counted from the original in float, which has {scores.shown(scores.before)}."
    if scores.kept is not None and scores.percent and scores.higher_is_better:
        lost, more = scores.before - scores.artifact, 0.0 if kernels is None else kernels.optimised - kernels.reference
        said = f"The drop: {scores.shown(scores.before)} of the original in float less {scores.shown(scores.artifact)} of the emitted file is {_points(lost)}"
        said += "." if kernels is None else f"; with the {_points(more)} that the reference kernels lose, {_points(scores.kept.drop)}."
    if file is not None:
        said += f" “Before and after” compares files: that of the original has {scores.shown(file)}."
    return said


def _points(lost: float) -> str:
    return minus(f"{100 * lost:.2f} pp")


def cards(manifest: Manifest) -> list[tuple[str, str, str]]:
    """The figures that people look for first: what each is, what is kept, and what that saves or how sure it is."""
    before, after, ratio, scores = manifest.before, manifest.after, manifest.speedup, manifest.accuracy
    found = []
    for name, quantity in (("MACs", "macs"), ("Parameters", "params"), ("File size", "file_bytes"), ("Activation memory", "arena_bytes")):
        first, second = getattr(before, quantity), getattr(after, quantity)
        if first and second is not None:
            kept, saved = f"{100 * second / first:.1f} % kept", f"{100 * (1 - second / first):.1f} % saved"
            if second > first:
                kept, saved = f"×{second / first:.2f}", f"{100 * (second / first - 1):.1f} % more than before"
            found.append((name, kept, saved))
    if ratio is not None:
        estimated = after.latency_ms is not None and after.latency_ms.estimated
        spread = "estimated, no device was timed" if estimated else f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
        found.append(("Speed-up", f"×{ratio.median:.2f}", spread))
    if after.accuracy is not None:
        sure = "on the test data" if before.accuracy is None else f"{scores.shown(before.accuracy)} before"
        if (held := scores.kept) is not None:
            unit = held.unit or ("pp" if scores.percent else "%")
            drop, low, high = (minus(f"{100 * value:.2f}") for value in (held.drop, held.low, held.high))
            since = ""
            if manifest.original_file is not None and scores.before is not None:
                sure += ", the original's file"
                since = f" against {scores.shown(scores.before)} of the original in float"
            since += ", reference kernels included" if scores.kernels is not None and scores.kernels.counted else ""
            sure += f"; lost {drop} {unit}{since}, {100 * held.confidence:g} % interval {low} to {high}, {held.samples:,} samples"
        found.append(((scores.metric or "accuracy").capitalize(), scores.shown(after.accuracy), sure))
    return found


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
        first, second = (None if side.latency_ms is None else getattr(side.latency_ms, quantile) for side in (before, after))
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
