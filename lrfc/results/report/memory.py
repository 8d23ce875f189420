"""The memory timeline of a build's page: the place of each activation in the arena over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from lrfc.results.manifest import Figures
from lrfc.results.memory_plan import MemoryPlan, MemoryPlans, Place, Region
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.results.report.chart import Axis, Frame, chart, legend
from lrfc.text import count, decimal, exact_size, milliseconds, percent, size

#: Width and height of a drawing, and its upper margin.
SIZE, TOP = (480, 300), 44
#: The most layers that are named where the peak is reached.
NAMED = 3
#: The runtimes by the name of their rule.
RUNTIMES = {"tflm": "TensorFlow Lite Micro", "litert": "LiteRT"}


@dataclass(frozen=True)
class Panel:
    """A drawing of one file's activations with its caption."""

    drawing: str
    caption: str


@dataclass(frozen=True)
class Row:
    """A row of the table on peaks: one file, with its numbers of bytes as text."""

    file: str
    peak: str
    planned: str
    own: str
    set_by: str
    alive: str


@dataclass(frozen=True)
class Timeline:
    """The section on memory. ``patches``: a sentence for each region in strips."""

    runtime: str
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]
    patches: tuple[str, ...]
    planned: bool


def timeline(plans: MemoryPlans | None) -> Timeline | None:
    """The section on the memory of both files; None where it is not recorded."""
    if plans is None:
        return None
    runtime, sides = RUNTIMES[plans.runtime], {"Before": plans.before, "After": plans.after}
    most = max(1, *(max(side.own_bytes, side.planned_bytes or 0) for side in sides.values()))
    panels = []
    for name, side in sides.items():
        if side.planned_bytes is not None:
            caption = f"{name}, by the plan in the file: {size(side.planned_bytes)}"
            panels.append(Panel(_drawing(side, caption, most, own=False), caption))
        caption = f"{name}, as {runtime} places them itself: {size(side.own_bytes)}"
        panels.append(Panel(_drawing(side, caption, most, own=True), caption))
    planned = any(side.planned_bytes is not None for side in sides.values())
    patches = tuple(_patch(name, part) for name, side in sides.items() for part in side.regions)
    rows = tuple(_row(name, side) for name, side in sides.items())
    return Timeline(runtime, tuple(panels), rows, patches, planned)


@dataclass(frozen=True)
class Front:
    """A drawing of fronts over memory, with its legend."""

    drawing: str
    legend: str
    caption: str


#: The quantities of which a front over memory has a share.
OF = {"latency": "predicted latency", "macs": "MACs"}


def front(points: Sequence[Mapping[str, Any]], shipped: Figures | None = None) -> Front | None:
    """Predicted divergence against memory, by share of the predicted latency or of the MACs.

    ``points``: see ``lrfc.search.pareto.by_ram``. ``shipped``: of the file that ships, which is
    marked. None where all plans take the same memory.
    """
    if len({point["ram"] for point in points}) < 2:
        return None
    quantity, series = OF[points[0]["of"]], dict[str, list[tuple[float, float, str]]]()
    for point in points:
        name = f"at most {percent(point['share'], 0)} of the {quantity}"
        place = point["ram"] / 1024, point["predicted_divergence"], _plan(point)
        series.setdefault(name, []).append(place)
    tails, taken = any(point.get("tail") for point in points), None
    if shipped is not None:
        taken = shipped.arena_total_bytes if tails else shipped.arena_bytes
    drawing = chart(
        series,
        "Predicted divergence of the output against activation memory",
        "activation memory, KiB",
        "predicted divergence",
        lines=True,
        log_y=True,
        size=SIZE,
        from_zero=(False, True),
        guides=[] if taken is None else [(taken / 1024, "the file that ships")],
    )
    behind = " Memory: activations, and the structures behind them." if tails else ""
    caption = (
        "Each point is the plan with the least predicted divergence within a limit on memory and"
        f" one on {quantity}, without pruning and patches.{behind}"
    )
    return Front(drawing, legend(list(series)), caption)


def _plan(point: Mapping[str, Any]) -> str:
    """The tooltip of a plan of the front."""
    costs = [exact_size(point["ram"]), f"{count(point['macs'])} MACs"]
    if point.get("latency") is not None:
        costs.append(milliseconds(point["latency"]))
    return ", ".join([*costs, f"divergence {decimal(point['predicted_divergence'])}"])


def _patch(name: str, part: Region) -> str:
    """A region in strips, as a sentence."""
    return (
        f"{name}: {part.start} to {part.end} in {part.strips} strips, the operators"
        f" {part.first + 1} to {part.last + 1} of the file."
    )


def _row(name: str, side: MemoryPlan) -> Row:
    steps = side.peak_steps
    layers = list(dict.fromkeys(f"{side.steps[s].layer} ({side.steps[s].operator})" for s in steps))
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    alive = "; ".join(f"{place.name}: {size(place.bytes)}" for place in side.at(steps[0]))
    return Row(
        name,
        count(side.peak),
        count(side.planned_bytes),
        count(side.own_bytes),
        ", ".join(layers[:NAMED]) + more,
        alive,
    )


def _drawing(side: MemoryPlan, title: str, most: int, *, own: bool) -> str:
    """The activations of a file as boxes. ``most``: bytes that the vertical axis ends at."""
    width, height = SIZE
    x = Axis(0, len(side.steps), Frame.LEFT, width - Frame.RIGHT)
    y = Axis(0, most / 1024, height - Frame.BOTTOM, TOP)
    frame = Frame(width, height, TOP, x, y)
    at_peak = set(side.at(side.peak_steps[0]))
    boxes = (_box(frame, side, place, own=own, peak=place in at_peak) for place in side.places)
    return "".join(
        (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            *(_band(frame, part) for part in side.regions),
            *frame.grid("operator, in execution order", "KiB", whole_x=True),
            *boxes,
            *_marks(frame, side),
            "</svg>",
        )
    )


def _box(frame: Frame, side: MemoryPlan, place: Place, *, own: bool, peak: bool) -> str:
    """An activation: from the operator that writes it to the last that reads it, at its place."""
    offset = place.own if own or place.planned is None else place.planned
    end = place.last if own else place.until
    left, right = frame.x(place.first), frame.x(end + 1)
    top, bottom = frame.y((offset + place.bytes) / 1024), frame.y(offset / 1024)
    first, last = side.steps[place.first], side.steps[place.last]
    lasts = f"from {first.layer} ({first.operator}) to {last.layer} ({last.operator})"
    tooltip = f"{place.name}: {count(place.bytes)} bytes at {count(offset)}, {lasts}"
    return (
        f'<rect class="mark tensor{" peak" if peak else ""}" x="{left:.1f}" y="{top:.1f}"'
        f' width="{right - left:.1f}" height="{max(bottom - top, 0.5):.1f}">'
        f"<title>{escape(tooltip)}</title></rect>"
    )


def _band(frame: Frame, part: Region) -> str:
    """The operators of a region in strips, shaded."""
    left, right = frame.x(part.first), frame.x(part.last + 1)
    middle = min(max((left + right) / 2, Frame.LEFT + 26), frame.width - Frame.RIGHT - 26)
    tooltip = f"{part.start} to {part.end}, in {part.strips} strips"
    return (
        f'<rect class="region" x="{left:.1f}" y="{frame.top}" width="{right - left:.1f}"'
        f' height="{frame.bottom - frame.top}"><title>{escape(tooltip)}</title></rect>'
        f'<text x="{middle:.1f}" y="{frame.top - 5}" text-anchor="middle">{part.strips} strips'
        "</text>"
    )


def _marks(frame: Frame, side: MemoryPlan) -> Iterator[str]:
    """The line of the peak, and the operators that reach it, below the axis."""
    y = frame.y(side.peak / 1024)
    right = frame.width - Frame.RIGHT
    yield f'<line class="chosen" x1="{Frame.LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    for first, last in _runs(side.peak_steps):
        names = ", ".join(dict.fromkeys(step.layer for step in side.steps[first : last + 1]))
        yield (
            f'<rect class="reached" x="{frame.x(first):.1f}" y="{frame.bottom}"'
            f' width="{frame.x(last + 1) - frame.x(first):.1f}" height="5">'
            f"<title>the peak is reached at {escape(names)}</title></rect>"
        )


def _runs(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of consecutive steps."""
    for _, group in groupby(enumerate(steps), key=lambda pair: pair[1] - pair[0]):
        run = [step for _, step in group]
        yield run[0], run[-1]


def alive(ops: OpProfile) -> str:
    """Activation bytes alive while each op runs, before and after, by the position of its layer."""
    positions = {
        name: i
        for i, name in enumerate(dict.fromkeys(op.layer for op in [*ops.before, *ops.after]))
    }

    def side(ops: Sequence[OpCost]) -> list[tuple[float, float, str]]:
        by_layer: dict[str, list[OpCost]] = {}
        for op in ops:
            by_layer.setdefault(op.layer, []).append(op)
        return [
            (
                positions[layer] + i / len(group),
                op.live_bytes / 1024,
                f"{op.name}: {op.live_bytes:,} bytes",
            )
            for layer, group in by_layer.items()
            for i, op in enumerate(group)
        ]

    series = {"before": side(ops.before), "after": side(ops.after)}
    dot = 2.5 if len(positions) < 30 else 0
    return chart(
        series,
        "Activation memory alive while each op runs",
        "op, in execution order",
        "KiB alive",
        lines=True,
        size=SIZE,
        dot=dot,
    )
