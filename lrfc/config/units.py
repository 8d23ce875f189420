"""Budgets, drops and times as text: their units, and the texts that are refused as ambiguous."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import NamedTuple

from lrfc.system.reader import shown

#: The least number that may stand without a unit: a count of MACs, parameters or bytes. A smaller
#: one may be a percentage, a fraction, millions or KiB.
PLAIN = 1_000


class Quantity(NamedTuple):
    """A quantity that a budget limits.

    ``whole``: the text for 100 %. ``units``: factor of each unit to the base unit (MACs,
    parameters, bytes, milliseconds); case is ignored. ``usual``: the unit for examples.
    ``counted``: whether large whole numbers need no unit.
    """

    whole: str
    units: Mapping[str, float]
    usual: str
    counted: bool = True


_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "KiB": 2**10, "MiB": 2**20}
_MEMORY = {unit.lower(): factor for unit, factor in {**_BYTES, "GB": 1e9, "GiB": 2**30}.items()}
#: The least memory that a command works with, bytes: one below is a slip of the unit.
LEAST_MEMORY = 100_000_000
#: Quantity by its name in ``max_…`` options.
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
    """An upper limit in the base unit or as a fraction of the original; ``given``: its text."""

    value: float
    relative: bool
    given: str | None


def budget(name: str, raw: object) -> Amount:
    """Parse a budget on a quantity of QUANTITIES: text, or a number from Python.

    ValueError, with a valid spelling, for a value that is no budget, has no unit where it needs
    one, or is out of range.
    """
    quantity = QUANTITIES[name]
    match = _read(_BUDGET, raw)
    # The Greek letter mu becomes the micro sign.
    unit = "" if match is None else match[2].lower().replace("μ", "µ")
    factors = {symbol.lower(): factor for symbol, factor in quantity.units.items()}
    if match is None or unit not in ("", "%", *factors):
        raise ValueError(
            f"'{shown(raw, 60)}' is not a {name} budget: write 50% (of {quantity.whole}) or an"
            f" amount in {', '.join(quantity.units)}, such as 200{quantity.usual}"
        )
    amount, text = float(match[1]), "".join(match.groups()) if isinstance(raw, str) else None
    if unit == "%":
        if not 0 < amount <= 100:
            raise ValueError(
                f"{shown(raw, 60)} is out of range: a percentage of the original is above 0% and"
                " at most 100%"
            )
        return Amount(amount / 100, True, text)
    if not isfinite(amount) or amount <= 0:
        raise ValueError(f"{shown(raw, 60)} is out of range: a budget is above 0")
    if unit == "" and not (quantity.counted and amount >= PLAIN and amount.is_integer()):
        raise ValueError(f"{shown(raw, 60)} has no unit: write {_readings(amount, quantity)}")
    return Amount(amount * factors.get(unit, 1), False, text)


def drop(raw: object) -> tuple[float, float | None]:
    """Parse a drop such as 1pp@95%: a fraction of 1, and the confidence, None without one.

    ValueError, with a valid spelling, for a value that has not the unit pp or is out of range.
    """
    match = _read(_DROP, raw)
    if match is None:
        raise ValueError(
            f"'{shown(raw, 60)}' is not an accuracy drop: give percentage points, such as 1pp, or"
            " 1pp@95% to require it with 95% confidence"
        )
    number, unit, level, percent = match.groups()
    value, text = float(number), shown(raw, 60)
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
    if level is None:
        return value / 100, None
    confidence = float(level)
    if percent == "":
        percentage = 100 * confidence if confidence < 1 else confidence
        raise ValueError(f"the confidence of {text} has no unit: write {value:g}pp@{percentage:g}%")
    if not 50 < confidence < 100:
        raise ValueError(f"{text} is out of range: a confidence is above 50% and below 100%")
    return value / 100, confidence / 100


def seconds(raw: object) -> float:
    """Parse a time, text with its unit or from Python a number of seconds, into seconds."""
    match = _read(_TIME, raw)
    if match is None:
        raise ValueError(
            f"'{shown(raw, 60)}' is not a time: give seconds, minutes or hours, such as 90s, 10m"
            " or 1h"
        )
    number, unit = float(match[1]), match[2].lower()
    if not isfinite(number) or number <= 0:
        raise ValueError(f"{shown(raw, 60)} is out of range: a time is above 0s")
    if unit == "" and isinstance(raw, str):
        raise ValueError(f"{shown(raw, 60)} has no unit: write {number:g}s or {number:g}m")
    return number * _SECONDS[unit or "s"]


def memory(raw: object) -> int:
    """Parse an amount of memory, text with its unit or from Python a number of bytes, into bytes.

    ValueError, with a valid spelling, for a value that is no amount, has no unit or is too small.
    """
    match = _read(_BUDGET, raw)
    unit = "" if match is None else match[2].lower()
    if match is None or unit not in ("", *_MEMORY):
        raise ValueError(
            f"'{shown(raw, 60)}' is not an amount of memory: give it in MB, GB, MiB or GiB, such as"
            " 4GiB"
        )
    amount = float(match[1])
    if unit == "" and isinstance(raw, str):
        raise ValueError(f"{shown(raw, 60)} has no unit: write {amount:g}GiB or {amount:g}MB")
    value = amount * _MEMORY.get(unit, 1)
    if not LEAST_MEMORY <= value < 2**63:
        raise ValueError(f"{shown(raw, 60)} is out of range: at least {LEAST_MEMORY / 1e6:g}MB")
    return int(value)


def _read(form: re.Pattern[str], raw: object) -> re.Match[str] | None:
    """Match text, or the text of a number of Python or numpy; a bool is no number."""
    if isinstance(raw, str):
        return form.fullmatch(raw)
    if isinstance(raw, bool):
        return None
    if isinstance(raw, Real):
        return form.fullmatch(repr(float(raw)))
    return None


def _readings(amount: float, quantity: Quantity) -> str:
    """Return the possible meanings of a number without a unit, with their units."""
    whole, usual = f"(of {quantity.whole})", f"{amount:g}{quantity.usual}"
    if amount < 1:
        return f"{100 * amount:g}% {whole} or {usual}"
    if amount <= 100:
        return f"{amount:g}% {whole} or {usual}"
    return usual
