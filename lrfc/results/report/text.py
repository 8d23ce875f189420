"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrfc.config.build import Budget

#: What stands where nothing was measured.
NONE = "—"


def count(value: float | None) -> str:
    """12,345."""
    return NONE if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in a unit that people read, with the exact number behind it."""
    if value is None:
        return NONE
    if value >= 2**10:
        return f"{short_size(value)} ({value:,} bytes)"
    return f"{value:,} bytes"


def short_size(value: float | None) -> str:
    """Bytes in a unit that people read."""
    if value is None:
        return NONE
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:,.1f} {unit}"
    return f"{value:,.0f} B"


def percent(value: float | None) -> str:
    """A fraction in percent, with two decimals where they say something."""
    return NONE if value is None else minus(f"{100 * value:.2f} %" if abs(value) > 0 else "0 %")


def change(before: float | None, after: float | None) -> str:
    """By how much a figure changed, in percent: −60 %, or nothing where it did not."""
    if before is None or after is None or not before or before == after:
        return ""
    return minus(f"{100 * (after / before - 1):+.0f} %")


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits."""
    return NONE if value is None else minus(f"{value:.{digits}g}")


def ms(value: float | None) -> str:
    """Milliseconds with three decimals."""
    return NONE if value is None else "< 0.001" if 0 < value < 0.0005 else f"{value:,.3f}"


def ranks(value: Sequence[int] | None) -> str:
    """4 × 8."""
    return " × ".join(map(str, value)) if value else NONE


def option(value: Any) -> str:
    """The value of an option as it is written on the command line: a budget with its unit, a drop in percentage points."""
    if isinstance(value, Mapping) and {"value", "relative"} <= set(value):
        return str(Budget.model_validate(value))
    if isinstance(value, Mapping) and set(value) == {"value", "confidence"}:
        sure = "" if value["confidence"] is None else f"@{100 * value['confidence']:g}%"
        return f"{100 * value['value']:.4g}pp{sure}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(option, value)) or NONE
    if isinstance(value, float):
        return f"{value:.10g}"
    return NONE if value is None else str(value)


def minus(text: str) -> str:
    """The text with real minus signs."""
    return text.replace("-", "−")
