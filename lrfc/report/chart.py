"""Scatter and line charts as inline SVG: no script, no request, readable in the dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import floor, log10

#: Colours that differ in hue and lightness (Okabe & Ito 2008), and shapes, so that series can be told apart without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#b2182b", "#4d4d4d", "#6a51a3")
_SHAPES: tuple[Callable[[float, float, float], str], ...] = (
    lambda x, y, r: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
    lambda x, y, r: f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"',
    lambda x, y, r: f'<path d="M{x:.1f} {y - r:.1f}l{r} {2 * r}h-{2 * r}z"',
    lambda x, y, r: f'<path d="M{x:.1f} {y - 1.3 * r:.1f}l{r} {1.3 * r}l-{r} {1.3 * r}l-{r} -{1.3 * r}z"',
)

Series = Mapping[str, Sequence[tuple[float, float, str]]]


def chart(
    series: Series,
    title: str,
    x_label: str,
    y_label: str,
    *,
    lines: bool = False,
    log_y: bool = False,
    size: tuple[int, int] = (640, 340),
    dot: float = 3.5,
) -> str:
    """An SVG of (x, y, tooltip) points by series. On a logarithmic axis points at or below 0 are left out."""
    width, height = size
    left, right, top, bottom = 64, 14, 12, 44
    shown = {name: [p for p in points if not log_y or p[1] > 0] for name, points in series.items()}
    every = [p for points in shown.values() for p in points]
    if not every:
        return "<p>Nothing to draw.</p>"
    high_x = max(p[0] for p in every) or 1
    low_y, high_y = (min(p[1] for p in every), max(p[1] for p in every)) if log_y else (0.0, max(p[1] for p in every) or 1)

    def x(value: float) -> float:
        return left + (width - left - right) * value / high_x

    def y(value: float) -> float:
        if log_y:
            span = max(log10(high_y) - log10(low_y), 1e-9)
            return height - bottom - (height - top - bottom) * (log10(value) - log10(low_y)) / span
        return height - bottom - (height - top - bottom) * value / high_y

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>']
    for tick in _ticks(high_x):
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{_short(tick)}</text>')
    ticks = [10.0**e for e in range(floor(log10(low_y)), floor(log10(high_y)) + 1) if low_y <= 10.0**e <= high_y] if log_y else _ticks(high_y)
    for tick in ticks:
        parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    for number, (_, points) in enumerate(shown.items()):
        colour, shape = COLOURS[number % len(COLOURS)], _SHAPES[number % len(_SHAPES)]
        if lines and len(points) > 1:
            path = " ".join(f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in sorted(points))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'{shape(x(p[0]), y(p[1]), dot)} style="fill:{colour}"><title>{escape(p[2])}</title></{_tag(shape)}>' for p in points]
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """The key of the series, in their order."""
    items = []
    for number, name in enumerate(names):
        shape = _SHAPES[number % len(_SHAPES)]
        mark = f'{shape(8, 8, 5)} style="fill:{COLOURS[number % len(COLOURS)]}"></{_tag(shape)}>'
        items.append(f'<li><svg class="key" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg> {escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _tag(shape: Callable[[float, float, float], str]) -> str:
    return shape(0, 0, 1)[1:].split(" ", 1)[0]


def _ticks(most: float, count: int = 4) -> list[float]:
    """Round values from 0 to ``most``."""
    raw = most / count
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    return [step * i for i in range(int(most / step + 1e-9) + 1)]


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
