"""The drawings of a build's page, each from what its folder recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from lrfc.metrics.source import MEASURED
from lrfc.results.candidates import Row
from lrfc.results.manifest import Manifest
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.results.report.chart import chart, legend
from lrfc.text import count, decimal, milliseconds, percent

#: Narrow enough for its text to be read on a phone.
SIZE = (480, 300)
#: Layers that have a bar of their own in the waterfall, and what share of the whole they take at
#: least.
BARS, SHORTEST = 32, 0.002


def front(
    points: Sequence[Mapping[str, Any]], by_latency: Sequence[Mapping[str, Any]], manifest: Manifest
) -> str:
    """Predicted divergence against the predicted latency, or against MACs where none was predicted, with the file that ships."""
    if by_latency:
        turns = [
            turn.predicted_ms for turn in manifest.search.rounds if turn.predicted_ms is not None
        ]
        marked = [(turns[-1], "this plan")] if turns else []
        drawn = [
            (p["latency"], p["predicted_divergence"], _plan(p, milliseconds(p["latency"])))
            for p in by_latency
        ]
        title = "Predicted divergence of the output against predicted latency"
        return chart(
            {"plans": drawn},
            title,
            "predicted latency, ms",
            "predicted divergence",
            lines=True,
            log_y=True,
            size=SIZE,
            guides=marked,
        )
    drawn = [
        (p["macs"], p["predicted_divergence"], _plan(p, f"{p['params']:,} parameters"))
        for p in sorted(points, key=lambda p: p["macs"])
    ]
    title = "Predicted divergence of the output against MACs"
    return chart(
        {"plans": drawn},
        title,
        "MACs",
        "predicted divergence",
        lines=True,
        log_y=True,
        size=SIZE,
        guides=[(manifest.after.macs, "the file that ships")],
    )


def _plan(point: Mapping[str, Any], more: str) -> str:
    return (
        f"{count(point['macs'])} MACs, {more}, divergence {decimal(point['predicted_divergence'])}"
    )


def files(manifest: Manifest) -> tuple[str, str] | None:
    """The score of each emitted file against its latency, and the key; None where unknown."""
    before, after, scores = manifest.before, manifest.after, manifest.accuracy
    if (
        before.latency_ms is None
        or before.accuracy is None
        or after.latency_ms is None
        or after.accuracy is None
    ):
        return None
    factor, unit = (100, ", %") if scores.percent else (1, "")
    name = scores.metric or "accuracy"
    timed = after.latency_ms.source
    found = {
        "original": [
            (
                before.latency_ms.p50,
                factor * before.accuracy,
                f"original: {timed} {milliseconds(before.latency_ms.p50)}",
            )
        ]
    }
    tried = [
        a for a in manifest.search.attempts if a.accuracy is not None and a.latency_ms is not None
    ]
    known = [
        (
            a.latency_ms or 0,
            factor * (a.accuracy or 0),
            f"attempt {i}: {a.source or timed} {milliseconds(a.latency_ms)}",
        )
        for i, a in enumerate(tried, 1)
    ]
    kept = (
        after.latency_ms.p50,
        factor * after.accuracy,
        f"the file that ships: {timed} {milliseconds(after.latency_ms.p50)}",
    )
    others = [point for point in known if point[:2] != kept[:2]]
    found |= {"the file that ships": [kept]} | ({"not kept": others} if others else {})
    drawn = chart(
        found,
        f"{name} against {timed} latency of the emitted files",
        f"{timed} latency, ms",
        name + unit,
        size=SIZE,
        dot=6,
        from_zero=(True, False),
        most_y=100 if scores.percent else inf,
    )
    return drawn, legend(list(found))


@dataclass(frozen=True)
class LayerCurves:
    """What could be done with one layer."""

    name: str
    drawn: str
    told: str
    changed: bool


def similarities(candidates: Sequence[Row]) -> tuple[list[LayerCurves], str]:
    """Each layer's similarity against what a rank keeps of its MACs, and the key that they share."""
    methods = list(dict.fromkeys(row.method for row in candidates if row.method))
    layers: dict[str, list[Row]] = {}
    for row in candidates:
        layers.setdefault(row.layer, []).append(row)
    # A build that repeats another has weighed nothing: its layers have one row, and there is
    # nothing to draw.
    weighed = {
        name: rows for name, rows in layers.items() if any(row.method is None for row in rows)
    }
    return [_curves(name, rows, methods) for name, rows in weighed.items()], legend(
        [*methods, TAKEN, SLOWER], rings=[SLOWER]
    )


TAKEN, SLOWER = "taken", "takes longer than the layer as it is (predicted)"


def _curves(name: str, rows: Sequence[Row], methods: Sequence[str]) -> LayerCurves:
    whole = next(row for row in rows if row.method is None)
    taken = next((row for row in rows if row.chosen), None)

    def point(row: Row) -> tuple[float, float, str]:
        cost = 100 * row.macs / whole.macs if whole.macs else 0.0
        time = (
            ""
            if row.latency is None or not whole.latency
            else f", {percent(row.latency / whole.latency)} of the predicted time"
        )
        return (
            cost,
            max(row.similarity, 0.0),
            f"{row.label}: similarity {row.similarity:.4f}, {percent(cost / 100)} of the MACs{time}",
        )

    best = {method: _best([row for row in rows if row.method == method]) for method in methods}
    series = {method: [point(row) for row in own] for method, own in best.items()}
    series[TAKEN] = [point(taken)] if taken is not None and taken.method is not None else []
    series[SLOWER] = [
        point(row)
        for own in best.values()
        for row in own
        if row.latency and whole.latency and row.latency >= whole.latency
    ]
    drawn = chart(
        series,
        f"{name}: similarity against the MACs that a rank keeps",
        "MACs kept, % (the rank grows to the right)",
        "similarity",
        lines=methods,
        size=SIZE,
        dot=3,
        guides=[(100.0, "break-even")],
        from_zero=(True, False),
        large=[TAKEN],
        rings=[SLOWER],
    )
    told = f"{len(rows) - 1} candidates. Taken: {taken.label if taken is not None else 'nothing'}"
    if taken is not None and taken.method is not None:
        told += (
            f", similarity {taken.similarity:.4f} at"
            f" {percent(taken.macs / whole.macs) if whole.macs else count(taken.macs)} of the MACs"
        )
        if taken.latency and whole.latency:
            told += f" and {percent(taken.latency / whole.latency)} of the predicted time"
    return LayerCurves(name, drawn, told + ".", taken is not None and taken.method is not None)


def _best(rows: Sequence[Row]) -> list[Row]:
    """Those that no other of them beats in MACs and similarity: with two ranks many pairs cost the same."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.macs, -r.similarity)):
        if not kept or row.similarity > kept[-1].similarity or row.chosen:
            kept.append(row)
    return kept


@dataclass(frozen=True)
class Bar:
    """One layer's time before and after, in milliseconds, and where its bars begin and how long they are, in percent of the longer of the two files."""

    name: str
    before: float
    after: float
    places: tuple[tuple[float, float], tuple[float, float]]


def waterfall(ops: OpProfile) -> list[Bar]:
    """The predicted times by layer in execution order, each bar beginning where the last one ends; empty where no time is predicted."""
    old, new = _times(ops.before), _times(ops.after)
    if not old or not new:
        return []
    names = list(dict.fromkeys([*old, *new]))
    least = SHORTEST * max(sum(old.values()), sum(new.values()))
    longest = set(
        sorted(names, key=lambda name: -max(old.get(name, 0.0), new.get(name, 0.0)))[:BARS]
    )
    longest -= {name for name in names if max(old.get(name, 0.0), new.get(name, 0.0)) < least}
    rows = [(name, old.get(name, 0.0), new.get(name, 0.0)) for name in names if name in longest]
    rest = [name for name in names if name not in longest]
    if rest:
        rows.append(
            (
                f"{len(rest)} others",
                sum(old.get(name, 0.0) for name in rest),
                sum(new.get(name, 0.0) for name in rest),
            )
        )
    rows.append(("beside the ops", ops.overhead_ms or 0.0, ops.overhead_ms or 0.0))
    whole = max(sum(row[1] for row in rows), sum(row[2] for row in rows)) or 1.0
    found, first, second = [], 0.0, 0.0
    for name, before, after in rows:
        if before or after:
            found.append(
                Bar(
                    name,
                    before,
                    after,
                    (
                        (100 * first / whole, 100 * before / whole),
                        (100 * second / whole, 100 * after / whole),
                    ),
                )
            )
        first, second = first + before, second + after
    return found


def _times(side: Sequence[OpCost]) -> dict[str, float]:
    times: dict[str, float] = {}
    for op in side:
        if op.predicted_ms is not None:
            times[op.layer] = times.get(op.layer, 0.0) + op.predicted_ms
    return times


def memory(ops: OpProfile) -> str:
    """Activation bytes alive while each op runs, before and after, at the place of the op's layer in the network."""
    places = {
        name: i
        for i, name in enumerate(dict.fromkeys(op.layer for op in [*ops.before, *ops.after]))
    }

    def side(listed: Sequence[OpCost]) -> list[tuple[float, float, str]]:
        own: dict[str, list[OpCost]] = {}
        for op in listed:
            own.setdefault(op.layer, []).append(op)
        return [
            (
                places[layer] + i / len(group),
                op.live_bytes / 1024,
                f"{op.name}: {op.live_bytes:,} bytes",
            )
            for layer, group in own.items()
            for i, op in enumerate(group)
        ]

    series = {"before": side(ops.before), "after": side(ops.after)}
    dot = 2.5 if len(places) < 30 else 0
    return chart(
        series,
        "Activation memory alive while each op runs",
        "op, in execution order",
        "KiB alive",
        lines=True,
        size=SIZE,
        dot=dot,
    )


def rounds(manifest: Manifest) -> str | None:
    """The latency of each plan of the search against the predicted one; None without any."""
    after = manifest.after.latency_ms
    default = MEASURED if after is None else after.source
    turns = [
        (i, t.predicted_ms, t.measured_ms, t.source or default)
        for i, t in enumerate(manifest.search.rounds, 1)
    ]
    points = [
        (p, m, f"plan {i}: predicted {milliseconds(p)}, {source} {milliseconds(m)}")
        for i, p, m, source in turns
        if p is not None and m is not None
    ]
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
    """The loss and the validation score by epoch; empty where nothing was trained."""
    found = manifest.finetune
    if found is None:
        return []
    scores, factor = manifest.accuracy, 1.0
    name = "minus the divergence from the original"
    if scores.metric is not None:
        factor = (100 if scores.percent else 1) * (1 if scores.higher_is_better else -1)
        name = scores.metric + (", %" if scores.percent else "")
    losses = [
        (i, loss, f"epoch {i}: loss {loss:.4g}")
        for i, loss in enumerate(found.losses)
        if loss is not None
    ]
    values = [
        (i, factor * score, f"epoch {i}: {factor * score:.4g}")
        for i, score in enumerate(found.scores)
        if score is not None
    ]
    drawn = [
        chart(
            {"validation": values},
            f"Validation {name} by epoch",
            "epoch (0: before the first)",
            name,
            lines=True,
            size=SIZE,
            from_zero=(True, False),
            whole_x=True,
            most_y=100 if scores.percent else inf,
            guides=[(found.best, "kept")],
        )
    ]
    if losses:
        drawn.append(
            chart(
                {"loss": losses},
                "Training loss by epoch",
                "epoch",
                "loss",
                lines=True,
                size=SIZE,
                whole_x=True,
            )
        )
    return drawn
