"""report.html: one self-contained page, rendered from the files of an output folder alone."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, ValidationError

from lrfc.errors import UsageError
from lrfc.metrics.outcome import GREATEST
from lrfc.results import candidates as choices
from lrfc.results import op_costs
from lrfc.results import verdict as verdicts
from lrfc.results.manifest import STAGES, Manifest
from lrfc.results.op_costs import OpProfile
from lrfc.results.report import figures, memory, tables, times
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
    ranks,
    relative_change,
    size,
)

NAME = "report.html"
#: The page's only script: it sorts tables and shows the curves of one layer at a time. Without it
#: the page is complete, but unsorted.
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Content:
    """The content of an output folder, as far as the page shows it.

    ``points``, ``by_latency``, ``by_ram``: the Pareto fronts of pareto.json. ``ops``: the per-op
    profile; None from an older lrfc.
    """

    manifest: Manifest
    points: Sequence[Mapping[str, Any]] = ()
    by_latency: Sequence[Mapping[str, Any]] = ()
    by_ram: Sequence[Mapping[str, Any]] = ()
    candidates: Sequence[choices.Row] = ()
    ops: OpProfile | None = None


def write(folder: Path) -> Path:
    """Render the page of an output folder and write it there. UsageError for any other folder."""
    path = folder / NAME
    if path.is_symlink():  # a folder from somebody else must not decide which file is overwritten
        raise UsageError(f"'{path}' is a link, and its target is not overwritten; remove the link")
    return files.write(path, render(read(folder)), way_out="copy the folder to another place")


def read(folder: Path) -> Content:
    """Read the content of an output folder."""
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
        [p.model_dump() for p in fronts.by_ram],
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


class _Fitting(_Point):
    share: Annotated[float, Field(gt=0, le=1)]
    of: Literal["latency", "macs"]
    ram: _Figure
    tail: _Figure = 0
    latency: _Figure | None = None


class _Fronts(BaseModel):
    """pareto.json, as far as the page shows it."""

    points: tuple[_Point, ...] = ()
    by_latency: tuple[_Timed, ...] = ()
    by_ram: tuple[_Fitting, ...] = ()


def _fronts(path: Path) -> _Fronts:
    try:
        return _Fronts.model_validate(json_object(contents(path), f"'{path}'"))
    except ValidationError as error:
        raise UsageError(f"'{path}' is damaged: {refused(error)}") from error


def render(content: Content) -> str:
    """Return the page as text."""
    manifest = content.manifest
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            m=manifest,
            title=Path(manifest.input.path).name,
            source=None if manifest.after.latency_ms is None else manifest.after.latency_ms.source,
            precision=manifest.config.get("precision"),
            tuning=figures.tuning(manifest),
            rounds=figures.rounds(manifest),
            files=figures.files(manifest),
            command=command(manifest),
            quoted_input=shlex.quote(manifest.input.path),
            script=SCRIPT,
            script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
            NONE=NONE,
            **_verdict(manifest),
            **_layers(manifest, content.ops),
            **_choices(content),
            **_times(manifest),
        )
    )


def _environment() -> Environment:
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
    return environment


def _verdict(manifest: Manifest) -> dict[str, Any]:
    """The verdict, the table of figures and the accuracy by stage."""
    verdict = manifest.verdict or verdicts.judged(manifest)
    kept_original = verdicts.kept_original(manifest)
    return {
        "verdict": verdicts.headline(verdict),
        "details": verdicts.details(verdict),
        "kept_original": kept_original,
        "cards": [] if kept_original else tables.cards(manifest),
        "sure": None if manifest.speedup is None else verdicts.sure(manifest.speedup),
        "rows": tables.figures(manifest),
        "baselines": tables.baselines(manifest),
        "stages": [
            (f"{STAGES[stage][0].upper()}{STAGES[stage][1:]}", manifest.accuracy.shown(value))
            for stage, value in manifest.accuracy.ladder().items()
        ],
    }


def _layers(manifest: Manifest, ops: OpProfile | None) -> dict[str, Any]:
    """The table of layers with their times, and the charts of the per-op profile."""
    in_cycles = None if ops is None else tables.by_cycles(manifest, ops)
    times = in_cycles or ops
    device = option(manifest.device)
    times_source = f"predicted for {device} from its cost profile, not measured"
    if in_cycles is not None:
        times_source = f"compiled: the cycles that the compiler of {device} counts, at its clock"
    return {
        "changed": sum(layer.method is not None for layer in manifest.layers),
        "cut": sum(layer.cut for layer in manifest.layers),
        "counted": any(layer.filters_before is not None for layer in manifest.layers),
        "layers": tables.layers(manifest, times, kept_original=verdicts.kept_original(manifest)),
        "bars": figures.waterfall(times) if times is not None else [],
        "times_source": times_source,
        "by_cycles": in_cycles is not None,
        "npu": tables.npu(ops) if ops is not None else [],
        "timeline": memory.timeline(None if ops is None else ops.memory),
        "memory": memory.alive(ops) if ops is not None else None,
        "memory_key": legend(["before", "after"]),
    }


def _choices(content: Content) -> dict[str, Any]:
    """The Pareto fronts and the candidates of each layer; none of them with --prune only."""
    manifest = content.manifest
    only_cut = manifest.config.get("prune") == "only"
    curves, key = figures.similarities(() if only_cut else content.candidates)
    points, by_latency = ((), ()) if only_cut else (content.points, content.by_latency)
    by_ram = () if only_cut else content.by_ram
    first = next((curve for curve in curves if curve.changed), curves[0] if curves else None)
    return {
        "only_cut": only_cut,
        "points": sorted(points, key=lambda point: point["macs"]),
        "by_latency": by_latency,
        "by_ram": by_ram,
        "ram_front": memory.front(by_ram, manifest.after),
        "front": figures.front(points, by_latency, manifest) if points or by_latency else None,
        "curves": curves,
        "first_curve": first,
        "curves_key": key,
    }


def _times(manifest: Manifest) -> dict[str, Any]:
    """The tables on where the time of the build went; empty unless it was recorded."""
    profile = manifest.profile
    if profile is None:
        return {"time_stages": (), "time_plans": (), "time_layers": ()}
    return {
        "time_stages": times.stages(profile),
        "time_plans": times.plans(profile),
        "time_layers": times.layers(profile),
    }
