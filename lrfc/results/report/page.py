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

from lrfc.errors import UsageError
from lrfc.metrics.outcome import GREATEST, Speedup
from lrfc.metrics.source import COMPILED, EXPLAINED, MEASURED
from lrfc.results import candidates as choices
from lrfc.results import op_costs
from lrfc.results import verdict as verdicts
from lrfc.results.manifest import Latency, Layer, Manifest
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.results.report import figures
from lrfc.results.report.chart import legend
from lrfc.results.report.command import command, option
from lrfc.system import files
from lrfc.system.reader import contents, json_object, kind, refused
from lrfc.text import (
    NONE,
    count,
    decimal,
    exact_size,
    factor,
    milliseconds,
    percent,
    points,
    ranks,
    relative_change,
    shape,
    size,
)

NAME = "report.html"
#: The one script: sorts tables, and shows one layer's curves at a time. Without it everything is
#: there, unsorted.
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
    """What a page is drawn from.

    ``points`` and ``by_latency``: the Pareto fronts of pareto.json. ``ops``: None for the folder of
    an older lrfc.
    """

    manifest: Manifest
    points: Sequence[Mapping[str, Any]] = ()
    by_latency: Sequence[Mapping[str, Any]] = ()
    candidates: Sequence[choices.Row] = ()
    ops: OpProfile | None = None


@dataclass(frozen=True)
class Row:
    """One quantity before and after, as text; ``note`` says where the figures come from."""

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
    if path.is_symlink():  # a folder from somebody else must not decide which file is overwritten
        raise UsageError(f"'{path}' is a link, and what it leads to is not overwritten; remove it")
    return files.write(path, render(read(folder)), way_out="copy the folder to another place")


def read(folder: Path) -> Content:
    """What an output folder recorded."""
    manifest = Manifest.read(folder)
    rows = choices.read(folder) if kind(folder / choices.NAME) is not None else ()
    ops = OpProfile.read(folder) if kind(folder / op_costs.NAME) is not None else None
    fronts = (
        _fronts(folder / "pareto.json") if kind(folder / "pareto.json") is not None else _Fronts()
    )
    return Content(
        manifest,
        [p.model_dump() for p in fronts.points],
        [p.model_dump() for p in fronts.by_latency],
        rows,
        ops,
    )


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
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "size": size,
        "exact_size": exact_size,
        "percent": percent,
        "decimal": decimal,
        "factor": factor,
        "milliseconds": milliseconds,
        "option": option,
        "ranks": ranks,
    }
    environment.globals |= {
        "relative_change": relative_change,
        "count": count,
        "size": size,
        "decimal": decimal,
    }
    manifest, ops = content.manifest, content.ops
    kept_original = verdicts.kept_original(manifest)
    found = manifest.verdict or verdicts.judged(manifest)
    # Nothing was weighed against the layers as they are: there are no other plans to show.
    only_cut = manifest.config.get("prune") == "only"
    clocked = None if ops is None else by_cycles(manifest, ops)
    times = clocked or ops
    times_told = f"predicted for {option(manifest.device)} from its cost profile, not measured"
    if clocked is not None:
        times_told = (
            f"compiled: the cycles that the compiler of {option(manifest.device)} counts, at its"
            " clock"
        )
    curves, key = figures.similarities(() if only_cut else content.candidates)
    points, by_latency = ((), ()) if only_cut else (content.points, content.by_latency)
    return environment.get_template("page.html.j2").render(
        m=manifest,
        title=Path(manifest.input.path).name,
        verdict=verdicts.headline(found),
        details=verdicts.details(found),
        kept_original=kept_original,
        cards=[] if kept_original else cards(manifest),
        source=None if manifest.after.latency_ms is None else manifest.after.latency_ms.source,
        sure=None if manifest.speedup is None else verdicts.sure(manifest.speedup),
        rows=rows(manifest),
        precision=manifest.config.get("precision"),
        baselines=baselines(manifest),
        ladder=[
            (_RUNGS[rung], manifest.accuracy.shown(value))
            for rung, value in manifest.accuracy.ladder().items()
        ],
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
        first_curve=next(
            (curve for curve in curves if curve.changed), curves[0] if curves else None
        ),
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


def layers(
    manifest: Manifest, ops: OpProfile | None, *, kept_original: bool = False
) -> list[LayerRow]:
    """The table of layers."""
    found = []
    for layer in manifest.layers:
        sides = [
            [op for op in side if op.layer == layer.name]
            for side in ((ops.before, ops.after) if ops is not None else ((), ()))
        ]
        if kept_original:  # the ops are those of a file that was not kept
            sides[1] = sides[0]
        kernels, stored, times = zip(*map(_side, sides), strict=True)
        found.append(LayerRow(layer, kernels, stored, times))
    return found


def _side(ops: Sequence[OpCost]) -> tuple[tuple[str, ...], int | None, float | None]:
    kernels = tuple(shape(op.kernel) for op in ops if op.kernel)
    times = [op.predicted_ms for op in ops if op.predicted_ms is not None]
    return (
        kernels,
        sum(op.weight_bytes for op in ops) if ops else None,
        sum(times) if times else None,
    )


def by_cycles(manifest: Manifest, ops: OpProfile) -> OpProfile | None:
    """The ops with the time of their cycles in the place of the predicted one: together they take what the file takes.

    None where cycles are not known.
    """
    before = manifest.before
    if (
        not before.cycles
        or before.latency_ms is None
        or not all(any(op.cycles is not None for op in side) for side in (ops.before, ops.after))
    ):
        return None
    ms_per_cycle = before.latency_ms.p50 / before.cycles  # one clock for both files

    def side(listed: Sequence[OpCost]) -> tuple[OpCost, ...]:
        return tuple(
            op.model_copy(
                update={"predicted_ms": None if op.cycles is None else op.cycles * ms_per_cycle}
            )
            for op in listed
        )

    return OpProfile(overhead_ms=0.0, before=side(ops.before), after=side(ops.after))


def npu(ops: OpProfile) -> list[NPURow]:
    """Cycles and memory layer by layer; empty where no compiler told them."""
    found = []
    for name in dict.fromkeys(
        op.layer for op in (*ops.before, *ops.after) if op.cycles is not None
    ):
        before, after = (
            [op for op in side if op.layer == name] for side in (ops.before, ops.after)
        )
        cpu = dict.fromkeys(operator for op in (*before, *after) for operator in op.cpu)
        found.append(NPURow(name, _spent(before), _spent(after), tuple(cpu)))
    return found


def _spent(ops: Sequence[OpCost]) -> dict[str, int | None]:
    how: dict[str, Callable[[Sequence[int]], int]] = {
        "cycles": sum,
        "sram_bytes": max,
        "flash_bytes": sum,
    }
    known = {
        quantity: [value for op in ops if (value := getattr(op, quantity)) is not None]
        for quantity in how
    }
    return {
        quantity: merge(known[quantity]) if known[quantity] else None
        for quantity, merge in how.items()
    }


# -- sentences and rows ----------------------------------------------------------------------------


def baselines(manifest: Manifest) -> str:
    """The parts of the drop, and what it is counted from where the original's file differs."""
    scores, file = manifest.accuracy, manifest.original_file
    said = []
    if scores.kept is not None and (summed := verdicts.parts(scores.kept)):
        said.append(f"The drop is a sum: {summed}.")
    if file is not None and scores.before is not None:
        said.append(
            f"It is counted from the original in float, which has {scores.shown(scores.before)};"
            f" the original's own file has {scores.shown(file)}."
        )
    return " ".join(said)


def cards(manifest: Manifest) -> list[tuple[str, str, str]]:
    """The figures that people look for first: what each is, what is kept, and what that saves or how sure it is."""
    before, after, ratio, scores = (
        manifest.before,
        manifest.after,
        manifest.speedup,
        manifest.accuracy,
    )
    found = []
    for name, quantity in (
        ("MACs", "macs"),
        ("Parameters", "params"),
        ("File size", "file_bytes"),
        ("Activation memory", "arena_bytes"),
    ):
        first, second = getattr(before, quantity), getattr(after, quantity)
        if first and second is not None:
            kept, saved = (
                f"{percent(second / first)} kept",
                f"{percent(1 - second / first)} saved",
            )
            if second > first:
                kept, saved = (
                    factor(second / first),
                    f"{percent(second / first - 1)} more than before",
                )
            found.append((name, kept, saved))
    if ratio is not None:
        found.append(("Speed-up", factor(ratio.median), verdicts.sure(ratio)))
    whole = manifest.float_original
    if whole is not None and whole.speedup is not None:
        over = whole.speedup
        word = "SLOWER than the float original; " if over.pace == "slower" else ""
        found.append(("Beside fp32", factor(over.median), f"{word}{verdicts.sure(over)}"))
    if after.accuracy is not None:
        since = (
            "on the test data"
            if scores.before is None
            else f"{scores.shown(scores.before)} before, in float"
        )
        if scores.kept is not None:
            since += f"; {verdicts.contract(scores.kept, percent=scores.percent)}"
        found.append(
            ((scores.metric or "accuracy").capitalize(), scores.shown(after.accuracy), since)
        )
    return found


def rows(manifest: Manifest) -> list[Row]:
    """The before/after table.

    The drop in it is the contract's, and the factor of the latency is the speed-up: there is one of
    each on the page.
    """
    before, after = manifest.before, manifest.after
    found = [
        _row("MACs", before.macs, after.macs, count),
        _row("Parameters", before.params, after.params, count),
        _row("File size", before.file_bytes, after.file_bytes, exact_size),
        _row("Planned activation arena", before.arena_bytes, after.arena_bytes, exact_size),
        *_latencies(manifest),
    ]
    timed = after.latency_ms is None or after.latency_ms.source == MEASURED
    if before.cycles is None and timed:
        note = "measured, of the process, runtime included"
        found.append(
            _row(
                "Peak resident memory",
                before.peak_rss_bytes,
                after.peak_rss_bytes,
                exact_size,
                note,
            )
        )
    elif before.cycles is not None:
        found.append(_row("NPU cycles", before.cycles, after.cycles, count, EXPLAINED[COMPILED]))
        found.append(
            _row("SRAM", before.sram_bytes, after.sram_bytes, exact_size, EXPLAINED[COMPILED])
        )
        found.append(
            _row("Flash", before.flash_bytes, after.flash_bytes, exact_size, EXPLAINED[COMPILED])
        )
    return [*found, _score(manifest)]


def _latencies(manifest: Manifest) -> list[Row]:
    old, new = manifest.before.latency_ms, manifest.after.latency_ms
    whole = manifest.float_original
    if old is None or new is None:
        return [Row("Latency, median", NONE, NONE)]
    ratio = manifest.speedup if manifest.after != manifest.before else None
    if new.source != MEASURED:
        found = [_timed(f"Latency, {new.source}", old.p50, new.p50, ratio, _how(old, new))]
    else:
        found = [_timed("Latency, median", old.p50, new.p50, ratio, _how(old, new))]
        found.append(_timed("Latency, 90th percentile", old.p90, new.p90, None, _how(old, new)))
    if whole is not None and whole.latency_ms is not None:
        note = _how(whole.latency_ms, new)
        name = "Latency, beside the original in fp32"
        found.append(_timed(name, whole.latency_ms.p50, new.p50, whole.speedup, note))
    return found


def _timed(name: str, before: float, after: float, ratio: Speedup | None, note: str) -> Row:
    first, second = (milliseconds(value) for value in (before, after))
    if ratio is None:
        return Row(name, first, second, note=note)
    kept = 1 / ratio.median
    return Row(name, first, second, percent(kept), percent(1 - kept), factor(ratio.median), note)


def _score(manifest: Manifest) -> Row:
    """The score in float before and of the file, as the contract compares them."""
    scores, after = manifest.accuracy, manifest.after.accuracy
    name = (scores.metric or "accuracy").capitalize()
    known = None if after is None else scores.shown(after)
    if scores.before is None or known is None:
        return Row(
            name, NONE if scores.before is None else scores.shown(scores.before), known or NONE
        )
    if scores.kept is not None:  # a score is not saved: its change is the drop
        known += f" (drop {points(scores.kept.drop, scores.kept.unit)})"
    return Row(name, scores.shown(scores.before), known, note="before: the original in float")


def _row(
    name: str, before: float | None, after: float | None, show: Callable[[Any], str], note: str = ""
) -> Row:
    first, second = (NONE if value is None else show(value) for value in (before, after))
    if before is None or after is None or not before:
        return Row(name, first, second, note=note)
    kept = after / before
    return Row(
        name,
        first,
        second,
        percent(kept),
        percent(1 - kept),
        factor(before / after if after else None),
        note,
    )


def _how(*sides: Latency) -> str:
    told = [
        (
            EXPLAINED[side.source]
            if side.source != MEASURED
            else f"measured, n = {side.n}, {side.threads} thread{'s' if side.threads > 1 else ''}"
        )
        for side in sides
    ]
    return " / ".join(dict.fromkeys(told))
