"""Scatter and line charts as inline SVG: no script, no request, readable in the dark and on a phone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, inf, log10

#: Colours that differ in hue and lightness (Okabe & Ito 2008), and shapes, so that series can be
#: told apart without colour.
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

Series = Mapping[str, Sequence[tuple[float, float, str]]]


@dataclass(frozen=True)
class _Axis:
    """Where a value lies, in SVG units between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            span = max(log10(self.high) - log10(self.low), 1e-9)
            return self.start + (self.end - self.start) * (log10(value) - log10(self.low)) / span
        return self.start + (self.end - self.start) * (value - self.low) / (
            (self.high - self.low) or 1
        )

    def ticks(self) -> list[float]:
        if self.log:
            decades = [
                10.0**e
                for e in range(floor(log10(self.low)), floor(log10(self.high)) + 1)
                if self.low <= 10.0**e <= self.high
            ]
            return decades[:: max(1, len(decades) // 6)] or [self.low]
        return _ticks(self.low, self.high)


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
    """An SVG of (x, y, tooltip) points by series.

    On a logarithmic axis points at or below 0 are left out.

    ``lines``: join the points, of all series or of some. ``guides``: dashed vertical lines at x
    with a label. ``from_zero``: whether the axes begin at 0. ``diagonal``: a line where y is x.
    ``whole_x``: x counts something. ``most_y``: what no value can exceed. ``large``, ``rings``:
    series with larger points, or with rings around points.
    """
    width, height = size
    left, right, top, bottom = 64, 14, 44 if guides else 26, 44
    shown = {name: [p for p in points if not log_y or p[1] > 0] for name, points in series.items()}
    every = [p for points in shown.values() for p in points]
    if not every:
        return "<p>Nothing to draw.</p>"
    xs, ys = [*(p[0] for p in every), *(value for value, _ in guides)], [p[1] for p in every]
    if diagonal:
        xs = ys = [*xs, *ys]
    x = _Axis(*_range(xs, from_zero[0]), left, width - right)
    least, most = (min(ys), max(ys)) if log_y else _range(ys, from_zero[1])
    y = _Axis(least, min(most, most_y), height - bottom, top, log=log_y)

    parts = [
        (
            f'<svg viewBox="0 0 {width} {height}" role="img"'
            f' aria-label="{escape(title)}"><title>{escape(title)}</title>'
        )
    ]
    for tick in (tick for tick in x.ticks() if not whole_x or tick == round(tick)):
        parts.append(
            f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}"'
            f' y2="{height - bottom}"/>'
        )
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - bottom + 16}"'
            f' text-anchor="middle">{_short(tick)}</text>'
        )
    for tick in y.ticks():
        parts.append(
            f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}"'
            f' y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 8}"'
        f' text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text x="4" y="14">{escape(y_label)}</text>'
    )  # lying down, it has room on a phone too
    if diagonal:
        parts.append(
            f'<line class="chosen" x1="{x(x.low):.1f}" y1="{y(y.low):.1f}" x2="{x(x.high):.1f}"'
            f' y2="{y(y.high):.1f}"/>'
        )
    for value, label in guides:
        anchor = (
            "start" if x(value) < width * 0.25 else "end" if x(value) > width * 0.75 else "middle"
        )
        parts.append(
            f'<line class="chosen" x1="{x(value):.1f}" y1="{top}" x2="{x(value):.1f}"'
            f' y2="{height - bottom}"/>'
        )
        parts.append(
            f'<text x="{x(value):.1f}" y="{top - 6}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    for number, (name, points) in enumerate(shown.items()):
        colour, shape = COLOURS[number % len(COLOURS)], _SHAPES[number % len(_SHAPES)]
        if (name in lines if isinstance(lines, Collection) else lines) and len(points) > 1:
            path = " ".join(
                f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in sorted(points, key=lambda p: p[0])
            )
            parts.append(
                f'<polyline class="mark" points="{path}" fill="none" stroke="{colour}"'
                ' stroke-width="2"/>'
            )
        radius = dot * (2.2 if name in large else 1.9 if name in rings else 1)
        paint = (
            f'fill="none" stroke="{colour}" stroke-width="1.5"'
            if name in rings
            else f'fill="{colour}"'
        )
        if dot:
            parts += [
                f'{shape(x(p[0]), y(p[1]), radius)} class="mark"'
                f" {paint}><title>{escape(p[2])}</title></{_tag(shape)}>"
                for p in points
            ]
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str], rings: Collection[str] = ()) -> str:
    """The key of the series, in their order."""
    items = []
    for number, name in enumerate(names):
        shape = _SHAPES[number % len(_SHAPES)]
        colour = COLOURS[number % len(COLOURS)]
        paint = (
            f'fill="none" stroke="{colour}" stroke-width="2"'
            if name in rings
            else f'fill="{colour}"'
        )
        mark = f'{shape(8, 8, 5)} class="mark" {paint}></{_tag(shape)}>'
        items.append(
            f'<li><svg class="key" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>'
            f" {escape(name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _tag(shape: Callable[[float, float, float], str]) -> str:
    return shape(0, 0, 1)[1:].split(" ", 1)[0]


def _range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """The ends of an axis; a little room on both sides where it does not begin at 0."""
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
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.4g}".replace("-", "−")
