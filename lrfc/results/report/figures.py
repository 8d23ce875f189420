"""The charts of a build's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from lrfc.metrics.source import MEASURED
from lrfc.results.candidates import Row
from lrfc.results.manifest import Accuracy, FineTuning, Manifest
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.results.report.chart import chart, legend
from lrfc.text import count, decimal, milliseconds, percent, size

#: Width and height of a chart, narrow enough for its text to be readable on a phone.
SIZE = (480, 300)
#: The largest number of layers with a bar of their own in the waterfall, and the smallest share of
#: the total time of such a layer.
BARS, SHORTEST = 32, 0.002


def front(
    points: Sequence[Mapping[str, Any]], by_latency: Sequence[Mapping[str, Any]], manifest: Manifest
) -> str:
    """Predicted divergence against predicted latency or, without one, against MACs.

    The file that ships is marked.
    """
    if by_latency:
        predicted = [
            round_.predicted_ms
            for round_ in manifest.search.rounds
            if round_.predicted_ms is not None
        ]
        plans = [
            (p["latency"], p["predicted_divergence"], _plan(p, milliseconds(p["latency"])))
            for p in by_latency
        ]
        title = "Predicted divergence of the output against predicted latency"
        return chart(
            {"plans": plans},
            title,
            "predicted latency, ms",
            "predicted divergence",
            lines=True,
            log_y=True,
            size=SIZE,
            guides=[(predicted[-1], "this plan")] if predicted else [],
        )
    plans = [
        (p["macs"], p["predicted_divergence"], _plan(p, f"{p['params']:,} parameters"))
        for p in sorted(points, key=lambda p: p["macs"])
    ]
    title = "Predicted divergence of the output against MACs"
    return chart(
        {"plans": plans},
        title,
        "MACs",
        "predicted divergence",
        lines=True,
        log_y=True,
        size=SIZE,
        guides=[(manifest.after.macs, "the file that ships")],
    )


def _plan(point: Mapping[str, Any], cost: str) -> str:
    """The tooltip of a plan. ``cost``: another of its costs."""
    divergence = decimal(point["predicted_divergence"])
    return f"{count(point['macs'])} MACs, {cost}, divergence {divergence}"


def files(manifest: Manifest) -> list[tuple[str, str]]:
    """The score of each emitted file against its latency and its memory: charts with legends.

    Only the quantities that are known.
    """
    before, after, attempts = manifest.before, manifest.after, manifest.search.attempts
    charts = []
    if before.latency_ms is not None and after.latency_ms is not None:
        source = after.latency_ms.source
        tried = [(a.latency_ms, a.accuracy, a.source or source) for a in attempts]
        costs = before.latency_ms.p50, after.latency_ms.p50
        axis = (f"{source} latency", "ms")
        charts.append(_files(manifest, costs, tried, axis, source, milliseconds))
    if before.ram_bytes is not None and after.ram_bytes is not None:
        kib = [(a.ram_bytes and a.ram_bytes / 1024, a.accuracy, "memory") for a in attempts]
        sizes = before.ram_bytes / 1024, after.ram_bytes / 1024
        axis = ("activation memory", "KiB")
        charts.append(_files(manifest, sizes, kib, axis, "memory", lambda n: size(1024 * n)))
    return [drawn for drawn in charts if drawn is not None]


def _files(
    manifest: Manifest,
    costs: tuple[float, float],
    attempts: Sequence[tuple[float | None, float | None, str]],
    axis: tuple[str, str],
    source: str,
    shown: Callable[[float], str],
) -> tuple[str, str] | None:
    """The score of each emitted file against a cost; None without scores.

    ``costs``: of the original and of the file that ships. ``attempts``: cost, score and source of
    each. ``axis``: the name of the cost and its unit. ``source``: of ``costs``.
    """
    scores, (label, unit) = manifest.accuracy, axis
    if manifest.before.accuracy is None or manifest.after.accuracy is None:
        return None
    scale, percents = (100, ", %") if scores.percent else (1, "")
    name = scores.metric or "accuracy"

    def point(label: str, cost: float, score: float, source: str) -> tuple[float, float, str]:
        return cost, scale * score, f"{label}: {source} {shown(cost)}"

    ships = point("the file that ships", costs[1], manifest.after.accuracy, source)
    tried = [(c, s, by) for c, s, by in attempts if c is not None and s is not None]
    others = [point(f"attempt {number}", *trial) for number, trial in enumerate(tried, 1)]
    series = {
        "original": [point("original", costs[0], manifest.before.accuracy, source)],
        "the file that ships": [ships],
    }
    if rejected := [other for other in others if other[:2] != ships[:2]]:
        series["rejected"] = rejected
    drawing = chart(
        series,
        f"{name} against {label} of the emitted files",
        f"{label}, {unit}",
        name + percents,
        size=SIZE,
        dot=6,
        from_zero=(True, False),
        most_y=100 if scores.percent else inf,
    )
    return drawing, legend(list(series))


@dataclass(frozen=True)
class LayerCurves:
    """The candidates of one layer: chart and caption. ``changed``: whether it is factorized."""

    name: str
    drawing: str
    caption: str
    changed: bool


def similarities(candidates: Sequence[Row]) -> tuple[list[LayerCurves], str]:
    """The similarity of each layer's candidates against their MACs, and the common legend."""
    methods = list(dict.fromkeys(row.method for row in candidates if row.method))
    layers: dict[str, list[Row]] = {}
    for row in candidates:
        layers.setdefault(row.layer, []).append(row)
    # A build that repeats another one has no candidates: its layers have one row, and no chart.
    explored = {
        name: rows for name, rows in layers.items() if any(row.method is None for row in rows)
    }
    curves = [_curves(name, rows, methods) for name, rows in explored.items()]
    return curves, legend([*methods, CHOSEN, SLOWER], rings=[SLOWER])


CHOSEN, SLOWER = "chosen", "slower than the unchanged layer (predicted)"


def _curves(name: str, rows: Sequence[Row], methods: Sequence[str]) -> LayerCurves:
    whole = next(row for row in rows if row.method is None)
    chosen = next((row for row in rows if row.chosen and row.method is not None), None)

    def point(row: Row) -> tuple[float, float, str]:
        share = row.macs / whole.macs if whole.macs else 0.0
        tooltip = f"{row.label}: similarity {row.similarity:.4f}, {percent(share)} of the MACs"
        if row.latency is not None and whole.latency:
            tooltip += f", {percent(row.latency / whole.latency)} of the predicted time"
        return 100 * share, max(row.similarity, 0.0), tooltip

    fronts = {method: _front([row for row in rows if row.method == method]) for method in methods}
    series = {method: [point(row) for row in front] for method, front in fronts.items()}
    series[CHOSEN] = [] if chosen is None else [point(chosen)]
    series[SLOWER] = [
        point(row)
        for front in fronts.values()
        for row in front
        if row.latency and whole.latency and row.latency >= whole.latency
    ]
    drawing = chart(
        series,
        f"{name}: similarity against the MACs that a rank keeps",
        "MACs kept, % (the rank grows to the right)",
        "similarity",
        lines=methods,
        size=SIZE,
        dot=3,
        guides=[(100.0, "break-even")],
        from_zero=(True, False),
        large=[CHOSEN],
        rings=[SLOWER],
    )
    return LayerCurves(name, drawing, _caption(rows, whole), chosen is not None)


def _caption(rows: Sequence[Row], whole: Row) -> str:
    """The number of candidates of a layer, and the chosen one. ``whole``: the unchanged layer."""
    chosen = next((row for row in rows if row.chosen), None)
    text = f"{len(rows) - 1} candidates. Chosen: {'none' if chosen is None else chosen.label}"
    if chosen is not None and chosen.method is not None:
        macs = percent(chosen.macs / whole.macs) if whole.macs else count(chosen.macs)
        text += f", similarity {chosen.similarity:.4f} at {macs} of the MACs"
        if chosen.latency and whole.latency:
            text += f" and {percent(chosen.latency / whole.latency)} of the predicted time"
    return f"{text}."


def _front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in both MACs and similarity, and the chosen one."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.macs, -r.similarity)):
        if not front or row.similarity > front[-1].similarity or row.chosen:
            front.append(row)
    return front


@dataclass(frozen=True)
class Bar:
    """The time of one layer in milliseconds, before and after.

    ``places``: the start and the length of both bars, in percent of the slower file's time.
    """

    name: str
    before: float
    after: float
    places: tuple[tuple[float, float], tuple[float, float]]


def waterfall(ops: OpProfile) -> list[Bar]:
    """The predicted times of the layers in execution order; empty without predictions.

    Each bar begins where the last one ends. Short layers are summed up in one bar.
    """
    old, new = _times(ops.before), _times(ops.after)
    if not old or not new:
        return []
    times = {name: (old.get(name, 0.0), new.get(name, 0.0)) for name in dict.fromkeys([*old, *new])}
    least = SHORTEST * max(sum(old.values()), sum(new.values()))
    longest = sorted(times, key=lambda name: -max(times[name]))[:BARS]
    shown = {name for name in longest if max(times[name]) >= least}
    rows = [(name, *times[name]) for name in times if name in shown]
    rest = [name for name in times if name not in shown]
    if rest:
        before, after = (sum(times[name][side] for name in rest) for side in (0, 1))
        rows.append((f"{len(rest)} others", before, after))
    rows.append(("outside of the ops", ops.overhead_ms or 0.0, ops.overhead_ms or 0.0))
    return _placed(rows)


def _placed(rows: Sequence[tuple[str, float, float]]) -> list[Bar]:
    """The bars of names with their times before and after, end to end."""
    whole = max(sum(row[1] for row in rows), sum(row[2] for row in rows)) or 1.0
    bars, first, second = [], 0.0, 0.0
    for name, before, after in rows:
        if before or after:
            places = (
                (100 * first / whole, 100 * before / whole),
                (100 * second / whole, 100 * after / whole),
            )
            bars.append(Bar(name, before, after, places))
        first, second = first + before, second + after
    return bars


def _times(side: Sequence[OpCost]) -> dict[str, float]:
    """The predicted milliseconds of each layer of one file."""
    times: dict[str, float] = {}
    for op in side:
        if op.predicted_ms is not None:
            times[op.layer] = times.get(op.layer, 0.0) + op.predicted_ms
    return times


def rounds(manifest: Manifest) -> str | None:
    """The measured against the predicted latency of the search's plans; None without plans."""
    after = manifest.after.latency_ms
    default = MEASURED if after is None else after.source
    points = []
    for number, plan in enumerate(manifest.search.rounds, 1):
        predicted, measured = plan.predicted_ms, plan.measured_ms
        if predicted is not None and measured is not None:
            texts = milliseconds(predicted), plan.source or default, milliseconds(measured)
            tooltip = "plan {}: predicted {}, {} {}".format(number, *texts)
            points.append((predicted, measured, tooltip))
    if not points:
        return None
    return chart(
        {f"plan {i}": [point] for i, point in enumerate(points, 1)},
        f"{default.capitalize()} against predicted latency",
        "predicted, ms",
        f"{default}, ms",
        size=SIZE,
        dot=5,
        diagonal=True,
    )


def tuning(manifest: Manifest) -> list[str]:
    """The validation score and the training loss by epoch; empty where nothing was trained."""
    run = manifest.finetune
    if run is None:
        return []
    losses = [
        (epoch, loss, f"epoch {epoch}: loss {decimal(loss)}")
        for epoch, loss in enumerate(run.losses)
        if loss is not None
    ]
    charts = [_validation(run, manifest.accuracy)]
    if losses:
        title = "Training loss by epoch"
        charts.append(
            chart({"loss": losses}, title, "epoch", "loss", lines=True, size=SIZE, whole_x=True)
        )
    return charts


def _validation(run: FineTuning, scores: Accuracy) -> str:
    scale, name, most = 1.0, "minus the divergence from the original", inf
    if run.measure is not None and run.measure != scores.metric:
        name = f"minus the {run.measure}"
    elif scores.metric is not None:
        scale = (100 if scores.percent else 1) * (1 if scores.higher_is_better else -1)
        name, most = (
            scores.metric + (", %" if scores.percent else ""),
            100 if scores.percent else inf,
        )
    values = [
        (epoch, scale * score, f"epoch {epoch}: {decimal(scale * score)}")
        for epoch, score in enumerate(run.scores)
        if score is not None
    ]
    return chart(
        {"validation": values},
        f"Validation {name} by epoch",
        "epoch (0: before the first)",
        name,
        lines=True,
        size=SIZE,
        from_zero=(True, False),
        whole_x=True,
        most_y=most,
        guides=[(run.best, "used")],
    )
