"""Budgets, drops and times as text: the units of each, and what is refused as ambiguous."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import NamedTuple

from lrfc.system.reader import shown

#: A number without a unit is a count of MACs, parameters or bytes from here on. Below it may be a
#: percentage, a fraction, millions or KiB, and nothing says which.
PLAIN = 1_000


class Quantity(NamedTuple):
    """What a budget limits.

    ``whole``: of what a percentage is kept. ``units``: each unit and its factor to the base unit
    (MACs, parameters, bytes, milliseconds); upper and lower case are one. ``usual``: the unit of
    examples. ``counted``: whether large whole numbers need no unit.
    """

    whole: str
    units: Mapping[str, float]
    usual: str
    counted: bool = True


_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "KiB": 2**10, "MiB": 2**20}
#: By the name behind ``max_``.
QUANTITIES: Mapping[str, Quantity] = {
    "macs": Quantity("the original's MACs", {"k": 1e3, "M": 1e6, "G": 1e9}, "M"),
    "params": Quantity("the original's parameters", {"k": 1e3, "M": 1e6}, "k"),
    "size": Quantity("the original's file", _BYTES, "KiB"),
    "ram": Quantity("the original's activation memory", _BYTES, "KiB"),
    "latency": Quantity(
        "the original's latency", {"us": 1e-3, "µs": 1e-3, "ms": 1, "s": 1e3}, "ms", counted=False
    ),
}

_AMOUNT = r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)"
_BUDGET = re.compile(rf"\s*{_AMOUNT}\s*([^\W\d_]*|%)\s*", re.IGNORECASE)
_DROP = re.compile(rf"\s*{_AMOUNT}\s*(pp|%|)\s*(?:@\s*{_AMOUNT}\s*(%|)\s*)?", re.IGNORECASE)
_TIME = re.compile(rf"\s*{_AMOUNT}\s*(s|m|min|h|)\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class Amount(NamedTuple):
    """An upper bound in the base unit, or a fraction of the original; ``given``: the text of it."""

    value: float
    relative: bool
    given: str | None


def budget(name: str, given: object) -> Amount:
    """What a budget on a quantity of QUANTITIES means: text, or a number from Python.

    ValueError, with the right spelling, for what is no budget, has no unit where it needs one, or
    is out of range.
    """
    quantity = QUANTITIES[name]
    match = _read(_BUDGET, given)
    unit = (
        "" if match is None else match[2].lower().replace("μ", "µ")
    )  # the Greek letter, and the sign of micro
    factors = {each.lower(): factor for each, factor in quantity.units.items()}
    if match is None or unit not in ("", "%", *factors):
        raise ValueError(
            f"'{shown(given, 60)}' is not a {name} budget: write 50% (of {quantity.whole}) or an"
            f" amount in {', '.join(quantity.units)}, such as 200{quantity.usual}"
        )
    amount, text = float(match[1]), "".join(match.groups()) if isinstance(given, str) else None
    if unit == "%":
        if not 0 < amount <= 100:
            raise ValueError(
                f"{shown(given, 60)} is out of range: a percentage is what is kept of the original,"
                " above 0% and at most 100%"
            )
        return Amount(amount / 100, True, text)
    if not isfinite(amount) or amount <= 0:
        raise ValueError(f"{shown(given, 60)} is out of range: a budget is above 0")
    if unit == "" and not (quantity.counted and amount >= PLAIN and amount.is_integer()):
        raise ValueError(f"{shown(given, 60)} has no unit: write {_readings(amount, quantity)}")
    return Amount(amount * factors.get(unit, 1), False, text)


def drop(given: object) -> tuple[float, float | None]:
    """A drop of the score as a fraction of 1, and the confidence that is demanded, of 1pp@95%.

    ValueError, with the right spelling, for what has not the unit pp or is out of range.
    """
    match = _read(_DROP, given)
    if match is None:
        raise ValueError(
            f"'{shown(given, 60)}' is not an accuracy drop: give percentage points, such as 1pp, or"
            " 1pp@95% to be sure of it"
        )
    number, unit, sure, percent = match.groups()
    value, text = float(number), shown(given, 60)
    if not 0 < value <= 100:
        raise ValueError(f"{text} is out of range: a drop is above 0pp and at most 100pp")
    if unit == "%":
        raise ValueError(
            f"{text} may be percentage points or a share of the score: write {value:g}pp,"
            " percentage points of a score in percent, and hundredths of any other"
        )
    if unit == "":
        fraction = f"{100 * value:g}pp or " if value < 1 else ""
        raise ValueError(f"{text} has no unit: write {fraction}{value:g}pp (percentage points)")
    if sure is None:
        return value / 100, None
    confidence = float(sure)
    if percent == "":
        asked = 100 * confidence if confidence < 1 else confidence
        raise ValueError(f"the confidence of {text} has no unit: write {value:g}pp@{asked:g}%")
    if not 50 < confidence < 100:
        raise ValueError(f"{text} is out of range: a confidence is above 50% and below 100%")
    return value / 100, confidence / 100


def seconds(given: object) -> float:
    """A time in seconds: text with its unit, or from Python a number of seconds."""
    match = _read(_TIME, given)
    if match is None:
        raise ValueError(
            f"'{shown(given, 60)}' is not a time: give seconds, minutes or hours, such as 90s, 10m"
            " or 1h"
        )
    number, unit = float(match[1]), match[2].lower()
    if not isfinite(number) or number <= 0:
        raise ValueError(f"{shown(given, 60)} is out of range: a time is above 0s")
    if unit == "" and isinstance(given, str):
        raise ValueError(f"{shown(given, 60)} has no unit: write {number:g}s or {number:g}m")
    return number * _SECONDS[unit or "s"]


def _read(form: re.Pattern[str], given: object) -> re.Match[str] | None:
    """Text in that form; a number (of Python's or numpy's) as its text. True is no number."""
    if isinstance(given, str):
        return form.fullmatch(given)
    if isinstance(given, bool):
        return None
    if isinstance(given, Real):
        return form.fullmatch(repr(float(given)))
    return None


def _readings(amount: float, quantity: Quantity) -> str:
    """What a number without a unit may mean, each as it is written."""
    whole, usual = f"(of {quantity.whole})", f"{amount:g}{quantity.usual}"
    if amount < 1:
        return f"{100 * amount:g}% {whole} or {usual}"
    if amount <= 100:
        return f"{amount:g}% {whole} or {usual}"
    return usual
