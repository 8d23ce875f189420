"""Scatter and line charts as inline SVG, readable without scripts, on a phone and in dark mode."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, inf, log10
from typing import ClassVar

#: Colours that differ in hue and lightness (Okabe & Ito 2008); with the shapes below, series can be
#: distinguished without colour.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6d31",
    "#7f7f7f",
    "#b2182b",
    "#4d4d4d",
    "#6a51a3",
)
_SHAPES: tuple[Callable[[float, float, float], str], ...] = (
    lambda x, y, r: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
    lambda x, y, r: f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"',
    lambda x, y, r: f'<path d="M{x:.1f} {y - r:.1f}l{r} {2 * r}h-{2 * r}z"',
    lambda x, y, r: (
        f'<path d="M{x:.1f} {y - 1.3 * r:.1f}l{r} {1.3 * r}l-{r} {1.3 * r}l-{r} -{1.3 * r}z"'
    ),
)

#: x, y and the tooltip of a point.
Point = tuple[float, float, str]
Series = Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Axis:
    """An axis: the position of a value in SVG units, between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        if self.log:
            span = max(log10(self.high) - log10(self.low), 1e-9)
            return self.start + (self.end - self.start) * (log10(value) - log10(self.low)) / span
        return self.start + (self.end - self.start) * (value - self.low) / (
            (self.high - self.low) or 1
        )

    def ticks(self) -> list[float]:
        """The values to label."""
        if self.log:
            decades = [
                10.0**e
                for e in range(floor(log10(self.low)), floor(log10(self.high)) + 1)
                if self.low <= 10.0**e <= self.high
            ]
            return decades[:: max(1, len(decades) // 6)] or [self.low]
        return _ticks(self.low, self.high)


@dataclass(frozen=True)
class Frame:
    """The plot area of a chart between its margins, with its axes."""

    width: int
    height: int
    top: int
    x: Axis
    y: Axis

    LEFT: ClassVar = 64
    RIGHT: ClassVar = 14
    BOTTOM: ClassVar = 44

    @property
    def bottom(self) -> int:
        """The height of the horizontal axis."""
        return self.height - self.BOTTOM

    def vertical(self, value: float, style: str) -> str:
        """A line from top to bottom at x = ``value``."""
        return (
            f'<line class="{style}" x1="{self.x(value):.1f}" x2="{self.x(value):.1f}"'
            f' y1="{self.top}" y2="{self.bottom}"/>'
        )

    def grid(self, x_label: str, y_label: str, *, whole_x: bool) -> Iterator[str]:
        """The grid lines with their labels, and the labels of the axes."""
        for tick in (tick for tick in self.x.ticks() if not whole_x or tick == round(tick)):
            yield self.vertical(tick, "axis")
            yield (
                f'<text x="{self.x(tick):.1f}" y="{self.bottom + 16}"'
                f' text-anchor="middle">{_short(tick)}</text>'
            )
        right = self.width - self.RIGHT
        for tick in self.y.ticks():
            y = self.y(tick)
            yield f'<line class="axis" x1="{self.LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield (
                f'<text x="{self.LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
            )
        yield (
            f'<text x="{(self.LEFT + right) / 2}" y="{self.height - 8}"'
            f' text-anchor="middle">{escape(x_label)}</text>'
        )
        # Horizontal: there is room for it on a phone, too.
        yield f'<text x="4" y="14">{escape(y_label)}</text>'

    def diagonal(self) -> str:
        """The line where y is x."""
        x, y = self.x, self.y
        return (
            f'<line class="chosen" x1="{x(x.low):.1f}" y1="{y(y.low):.1f}" x2="{x(x.high):.1f}"'
            f' y2="{y(y.high):.1f}"/>'
        )

    def guide(self, value: float, label: str) -> Iterator[str]:
        """A dashed vertical line with a label above it."""
        x = self.x(value)
        anchor = "start" if x < self.width * 0.25 else "end" if x > self.width * 0.75 else "middle"
        yield self.vertical(value, "chosen")
        yield (
            f'<text x="{x:.1f}" y="{self.top - 6}" text-anchor="{anchor}">{escape(label)}</text>'
        )

    def line(self, points: Sequence[Point], number: int) -> str:
        """The line that joins the points of series ``number``, by x."""
        path = " ".join(
            f"{self.x(p[0]):.1f},{self.y(p[1]):.1f}" for p in sorted(points, key=lambda p: p[0])
        )
        return (
            f'<polyline class="mark" points="{path}" fill="none"'
            f' stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"/>'
        )

    def marks(
        self, points: Sequence[Point], number: int, radius: float, *, ring: bool
    ) -> Iterator[str]:
        """The marks of series ``number``, with their tooltips."""
        shape, paint = _SHAPES[number % len(_SHAPES)], _paint(number, 1.5, ring=ring)
        for x, y, tooltip in points:
            yield (
                f'{shape(self.x(x), self.y(y), radius)} class="mark"'
                f" {paint}><title>{escape(tooltip)}</title></{_tag(shape)}>"
            )


def chart(
    series: Series,
    title: str,
    x_label: str,
    y_label: str,
    *,
    lines: bool | Collection[str] = False,
    log_y: bool = False,
    size: tuple[int, int] = (640, 340),
    dot: float = 3.5,
    guides: Sequence[tuple[float, str]] = (),
    from_zero: tuple[bool, bool] = (True, True),
    diagonal: bool = False,
    whole_x: bool = False,
    most_y: float = inf,
    large: Collection[str] = (),
    rings: Collection[str] = (),
) -> str:
    """Return an SVG of the points of several series.

    A logarithmic axis leaves out points at or below 0.

    ``lines``: join the points, of all series or of some. ``guides``: dashed vertical lines at x,
    with a label. ``from_zero``: whether the x and the y axis begin at 0. ``diagonal``: draw the
    line where y is x. ``whole_x``: x is a whole number. ``most_y``: the upper bound of all y.
    ``large``, ``rings``: series with larger marks, or with rings around their points.
    """
    shown = {name: [p for p in points if not log_y or p[1] > 0] for name, points in series.items()}
    every = [p for points in shown.values() for p in points]
    if not every:
        return "<p>Nothing to draw.</p>"
    xs, ys = [*(p[0] for p in every), *(value for value, _ in guides)], [p[1] for p in every]
    if diagonal:
        xs = ys = [*xs, *ys]
    width, height = size
    top = 44 if guides else 26
    x = Axis(*_range(xs, from_zero[0]), Frame.LEFT, width - Frame.RIGHT)
    least, most = (min(ys), max(ys)) if log_y else _range(ys, from_zero[1])
    y = Axis(least, min(most, most_y), height - Frame.BOTTOM, top, log=log_y)
    frame = Frame(width, height, top, x, y)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *frame.grid(x_label, y_label, whole_x=whole_x),
    ]
    if diagonal:
        parts.append(frame.diagonal())
    for value, label in guides:
        parts += frame.guide(value, label)
    for number, (name, points) in enumerate(shown.items()):
        if (name in lines if isinstance(lines, Collection) else lines) and len(points) > 1:
            parts.append(frame.line(points, number))
        radius = dot * (2.2 if name in large else 1.9 if name in rings else 1)
        if dot:
            parts += frame.marks(points, number, radius, ring=name in rings)
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str], rings: Collection[str] = ()) -> str:
    """Return the legend of the series, in their order."""
    items = []
    for number, name in enumerate(names):
        shape, paint = _SHAPES[number % len(_SHAPES)], _paint(number, 2, ring=name in rings)
        mark = f'{shape(8, 8, 5)} class="mark" {paint}></{_tag(shape)}>'
        items.append(
            f'<li><svg class="key" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>'
            f" {escape(name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _paint(number: int, width: float, *, ring: bool) -> str:
    """The fill of series ``number``, or a stroke of that width for a ring."""
    colour = COLOURS[number % len(COLOURS)]
    if ring:
        return f'fill="none" stroke="{colour}" stroke-width="{width}"'
    return f'fill="{colour}"'


def _tag(shape: Callable[[float, float, float], str]) -> str:
    """The name of the SVG element that a shape opens."""
    return shape(0, 0, 1)[1:].split(" ", 1)[0]


def _range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """The ends of an axis, with a margin on both sides where it does not begin at 0."""
    low, high = min(values), max(values)
    if from_zero:
        return min(0.0, low), max(high, 0.0) or 1.0
    room = 0.08 * (high - low) or 0.01 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values between the ends."""
    raw = (high - low) / count
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = -floor(-low / step + 1e-9)
    return [step * i for i in range(first, floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """A tick label: 1.5M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.4g}".replace("-", "−")
