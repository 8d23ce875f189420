"""Output of the commands on models: builds, explorations, explanations and profiles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrfc.cli import time_view
from lrfc.metrics.source import MEASURED
from lrfc.text import NONE, count, decimal, factor, milliseconds, percent, shape, size

if TYPE_CHECKING:
    from lrfc.cli.console import Terminal
    from lrfc.engine.package import Result
    from lrfc.passes.profile import Profile
    from lrfc.results.candidates import Explanation, Row
    from lrfc.results.exploration import Survey
    from lrfc.results.manifest import Accuracy, Layer, Manifest

#: The largest number of pruned layers that are named.
NAMED = 12
#: Columns of the bar for a similarity of 1.
BAR = 20

# -- builds ----------------------------------------------------------------------------------------


def results(terminal: Terminal, built: Sequence[Result], *, as_json: bool) -> None:
    """Print each build: its tables or, as JSON, its manifest.

    Several manifests are a list under 'builds'.
    """
    if not as_json:
        for result in built:
            _result(terminal, result)
        return
    manifests = [
        {
            **result.manifest.to_json(),
            "out": str(result.out),
            "problem": None if result.failure is None else str(result.failure),
        }
        for result in built
    ]
    if manifests:
        terminal.json(manifests[0] if len(manifests) == 1 else {"builds": manifests})


def _result(terminal: Terminal, result: Result) -> None:
    from lrfc.results import verdict as verdicts

    manifest = result.manifest
    latency = manifest.before.latency_ms
    threads = "" if latency is None else f", {latency.threads} thread(s)"
    terminal.table(
        f"{manifest.target} {manifest.config['precision']}{threads}",
        ("", "original", "compressed", "kept", "saved", "factor"),
        [
            (name, show(before), show(after), *ratios)
            for name, show, before, after, ratios in _figures(manifest)
        ],
    )
    for line in _accuracy(manifest):
        terminal.line(line)
    methods = Counter(layer.method or "not factorized" for layer in manifest.layers)
    numbers = ", ".join(f"{number} {method}" for method, number in methods.most_common())
    terminal.line(f"layers: {numbers}; reasons: {result.out / 'layers.csv'}")
    if pruned := [layer for layer in manifest.layers if layer.cut]:
        terminal.line(_filters(pruned))
    verdict = manifest.verdict or verdicts.judged(manifest)
    terminal.line(f"verdict: {verdicts.headline(verdict)}")
    for sentence in verdicts.details(verdict):
        terminal.line(f"  {sentence}")
    paths = ", ".join(file.path for file in manifest.artifacts)
    terminal.line(f"written: {result.out}{os.sep} ({paths}, manifest.json, report.html)")
    if manifest.profile is not None:
        time_view.time_profile(terminal, manifest.profile)


_Ratios = tuple[str, str, str]
_Show = Callable[[float | None], str]
_Figure = tuple[str, _Show, float | None, float | None, _Ratios]
_UNKNOWN: _Ratios = (NONE, NONE, NONE)


def _figures(manifest: Manifest) -> Iterator[_Figure]:
    """The rows of the table of a build: name, format, value before, value after, ratios.

    The ratios are what is kept, what is saved, and the factor. Those of the latency are the
    speed-up, so that the output has only one.
    """

    def row(name: str, show: _Show, before: float | None, after: float | None) -> _Figure:
        return name, show, before, after, _ratios(before, after)

    before, after = manifest.before, manifest.after
    yield row("MACs", count, before.macs, after.macs)
    yield row("params", count, before.params, after.params)
    yield row("file", size, before.file_bytes, after.file_bytes)
    yield row("arena (planned)", size, before.arena_bytes, after.arena_bytes)
    if (before.workspace_bytes, after.workspace_bytes) != (None, None):
        yield row("XNNPACK workspace", size, before.workspace_bytes, after.workspace_bytes)
    if before.cycles is not None:
        yield row("NPU cycles, compiled", count, before.cycles, after.cycles)
        yield row("SRAM, compiled", size, before.sram_bytes, after.sram_bytes)
        yield row("flash, compiled", size, before.flash_bytes, after.flash_bytes)
    elif before.arena_total_bytes is not None:
        yield row("arena head, measured", size, before.arena_head_bytes, after.arena_head_bytes)
        yield row("arena tail, measured", size, before.arena_tail_bytes, after.arena_tail_bytes)
    elif (before.peak_rss_bytes, after.peak_rss_bytes) != (None, None):
        yield row("peak RSS, measured", size, before.peak_rss_bytes, after.peak_rss_bytes)
    yield from _latencies(manifest)


def _latencies(manifest: Manifest) -> Iterator[_Figure]:
    old, new = manifest.before.latency_ms, manifest.after.latency_ms
    if old is None or new is None:
        return
    speed = _UNKNOWN
    if manifest.speedup is not None and manifest.after != manifest.before:
        speed = _ratios(manifest.speedup.median, 1.0)
    if new.source == MEASURED:
        yield f"latency p50, n={old.n}", milliseconds, old.p50, new.p50, speed
        yield "latency p90", milliseconds, old.p90, new.p90, _UNKNOWN
    else:
        yield f"latency, {new.source}", milliseconds, old.p50, new.p50, speed
    original = manifest.float_original
    if original is not None and original.latency_ms is not None and original.speedup is not None:
        ratios = _ratios(original.speedup.median, 1.0)
        yield "latency, original in fp32", milliseconds, original.latency_ms.p50, new.p50, ratios


def _ratios(before: float | None, after: float | None) -> _Ratios:
    if not before or not after:
        return _UNKNOWN
    return percent(after / before), percent(1 - after / before), factor(before / after)


def _accuracy(manifest: Manifest) -> Iterator[str]:
    """The lines on the accuracy of a build."""
    from lrfc.results.manifest import STAGES

    scores = manifest.accuracy
    if not scores.ladder():
        yield "accuracy: not measured (no data)"
        return
    stages = " → ".join(
        f"{STAGES[stage]} {scores.shown(value)}" for stage, value in scores.ladder().items()
    )
    few = scores.stage_samples
    between = "" if few is None else f" (stages in between by {count(few)} samples)"
    yield f"{scores.metric or 'accuracy'}: {stages}{between}"
    if (file := manifest.original_file) is not None:
        yield (
            f"the drop is relative to the original in float; the original's own"
            f" {manifest.config['precision']} file has {scores.shown(file)}"
        )
    if (attempts := len(manifest.search.attempts)) > 1:
        yield f"attempts to meet the accuracy contract: {attempts}"
    if scores.kernels is not None:
        yield _kernels(scores, manifest.device)


def _kernels(scores: Accuracy, device: str | None) -> str:
    kernels = scores.kernels
    assert kernels is not None
    users = "which microcontrollers follow"
    if kernels.counted:
        users = f"which {device} follows; the difference is part of the drop"
    return (
        f"on {kernels.samples:,} samples {scores.shown(kernels.optimised)} with LiteRT's optimised"
        f" kernels, {scores.shown(kernels.reference)} with its reference kernels, {users}"
    )


def _filters(pruned: Sequence[Layer]) -> str:
    named = ", ".join(
        f"{layer.name} {layer.filters_before} → {layer.filters_after}" for layer in pruned[:NAMED]
    )
    more = f" and {len(pruned) - NAMED} more layers" if len(pruned) > NAMED else ""
    return f"filters: {named}{more}"


# -- explorations ----------------------------------------------------------------------------------


def exploration(terminal: Terminal, survey: Survey, out: Path) -> None:
    """Print the comparison of the methods and the Pareto front."""
    from lrfc.results.exploration import SHARES

    terminal.table(
        "least predicted divergence of the outputs at a share of the MACs",
        ("method", *(percent(share, 0) for share in SHARES)),
        [(name, *(decimal(value, 3) for value in values)) for name, values in survey.table()],
    )
    formats: dict[str, _Show] = {"ram": size, "latency": decimal}
    shared = [quantity for quantity in survey.over if quantity != "ram"]
    rows = [
        (
            *(formats.get(quantity, count)(point[quantity]) for quantity in survey.over),
            *(percent(point[quantity] / survey.whole[quantity]) for quantity in shared),
            decimal(point["predicted_divergence"], 3),
            ", ".join(f"{number} {name}" for name, number in point["methods"].items())
            or "unchanged",
        )
        for point in survey.points
    ]
    kept = [f"{quantity} kept" for quantity in shared]
    terminal.table("Pareto front", (*survey.over, *kept, "divergence", "layers"), rows)
    design = survey.design
    terminal.line(
        f"{design.size:,} candidates on {len(design.spaces)} layers in {survey.seconds:.1f} s,"
        f" {design.undominated:,} of them undominated; {len(design.skipped)} layers cannot be"
        " factorized"
    )
    terminal.line(
        f"written: {out}{os.sep} (explore.html, pareto.json, candidates.csv); for one layer: lrfc"
        f" explain {out} LAYER"
    )
    if survey.profile is not None:
        time_view.time_profile(terminal, survey.profile)


# -- explanations ----------------------------------------------------------------------------------


def explanation(terminal: Terminal, explanation: Explanation) -> None:
    """Print a layer's candidates, the layer as built, and the reasons for the chosen one."""
    built, chosen = explanation.built, explanation.chosen
    pruned = (
        built is not None
        and chosen is not None
        and (built.params_after, built.macs_after) != (chosen.params, chosen.macs)
    )
    if explanation.rows:
        _candidates(terminal, explanation, built if pruned else None)
    elif built is not None:
        terminal.line(
            f"params {built.params_before:,} → {built.params_after:,}, MACs"
            f" {built.macs_before:,} → {built.macs_after:,}"
        )
    if built is None and chosen is None:
        terminal.line("nothing was chosen: this is an exploration")
    else:
        terminal.line(f"chosen: {chosen.label if chosen is not None else 'unchanged'}")
    if built is not None and built.filters_before is not None:
        reason = "" if built.filters_reason is None else f": {built.filters_reason}"
        terminal.line(
            f"filters: {built.filters_after} of {built.filters_before} are left"
            if built.cut
            else f"filters: all {built.filters_before} are kept{reason}"
        )
    if pruned:
        terminal.line("as built: after pruning; the other rows are for the layer before pruning")
    if built is not None and built.reason is not None:
        terminal.line(f"  {built.reason}")
    for sentence in explanation.sentences:
        terminal.line(f"  {sentence}")


def _candidates(terminal: Terminal, explanation: Explanation, built: Layer | None) -> None:
    """Print the undominated candidates of a layer. ``built``: the pruned layer, for a last row."""
    whole = explanation.rows[0].macs
    shown = [row for row in explanation.rows if not row.dominated or row.chosen]
    rows = [_candidate(row, whole, marked=row.chosen and built is None) for row in shown]
    if built is not None:
        macs = built.macs_after
        costs = count(built.params_after), count(macs), _share(macs, whole)
        rows.append(("→ as built", *costs, "", "", ""))
    terminal.table(
        explanation.layer,
        ("candidate", "params", "MACs", "kept", "similarity", "", "divergence"),
        rows,
    )
    if hidden := len(explanation.rows) - len(shown):
        terminal.line(f"not shown: {hidden} candidates that another one beats in every cost")


def _candidate(row: Row, whole: int, *, marked: bool) -> tuple[str, ...]:
    return (
        f"{'→' if marked else ' '} {row.label}",
        count(row.params),
        count(row.macs),
        _share(row.macs, whole),
        f"{row.similarity:.4f}",
        "█" * round(BAR * max(row.similarity, 0)),
        decimal(row.impact, 3),
    )


def _share(macs: int, whole: int) -> str:
    return percent(macs / whole) if whole else ""


# -- profiles --------------------------------------------------------------------------------------


def profile(terminal: Terminal, profile: Profile) -> None:
    """Print the costs of each op and of the whole model."""
    rows = [
        (
            row.name,
            row.kind,
            ", ".join(shape(output[1:]) for output in row.shapes),
            count(row.params),
            count(row.macs),
            size(row.weight_bytes),
            size(row.live_bytes),
        )
        for row in profile.rows
    ]
    terminal.table("", ("op", "kind", "output", "params", "MACs", "weights", "live"), rows)
    terminal.line(
        f"total: {profile.params:,} params, {profile.macs:,} MACs, {size(profile.weight_bytes)}"
        f" of weights; activation arena {size(profile.arena_bytes)} planned (at least"
        f" {size(profile.arena.peak_bytes)}, at {profile.arena.at_op}); {profile.precision},"
        " batch 1"
    )
