"""The verdict on a build: made once, shown by the terminal, the report and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrfc.config.build import Budget
from lrfc.metrics.outcome import (
    Asked,
    Beside,
    Change,
    Kept,
    Outcome,
    Quantity,
    Room,
    Speedup,
    Verdict,
    short,
)
from lrfc.metrics.source import COMPILED, EXPLAINED, MEASURED, Source
from lrfc.results.manifest import Figures, Manifest
from lrfc.targets.devices.device import Device
from lrfc.text import (
    confidence,
    count,
    factor,
    milliseconds,
    minus,
    percent,
    points,
    relative_change,
    score,
    size,
)

#: What a measurement leaves open: a result counts as slower only when the whole 95 % interval of
#: the measured speed-up says so by more than this, a measured memory has grown only by more than
#: this, and a measured time may miss its budget by so much. Whatever is counted or computed has no
#: noise.
MARGIN = 0.02

#: What people call a quantity.
NAMES: Mapping[Quantity, str] = {
    "macs": "MACs",
    "params": "parameters",
    "file_bytes": "file size",
    "arena_bytes": "activation memory (planned)",
    "latency_ms": "latency",
    "cycles": "NPU cycles",
    "sram_bytes": "SRAM",
    "flash_bytes": "flash",
    "peak_rss_bytes": "peak memory of the process",
}
#: What an option --max-… bounds.
_BUDGETS: Mapping[str, Quantity] = {
    "macs": "macs",
    "params": "params",
    "size": "file_bytes",
    "ram": "arena_bytes",
    "latency": "latency_ms",
}
_COMPILED: tuple[Quantity, ...] = ("cycles", "sram_bytes", "flash_bytes")


def judged(manifest: Manifest, device: Device | None = None) -> Verdict:
    """The verdict on what a manifest says.

    ``device``: its profile, for the limits; without it nothing is said of them.
    """
    scores = manifest.accuracy
    precision = str(manifest.config.get("precision") or "fp32")
    return Verdict(
        outcome=_outcome(manifest),
        device=manifest.device,
        target=manifest.target,
        precision=precision,
        metric=scores.metric or ("accuracy" if scores.artifact is not None else None),
        percent=scores.percent,
        original=scores.before,
        score=scores.artifact,
        contract=scores.kept,
        budgets=tuple(asked(_budgets(manifest.config), manifest.before, manifest.after)),
        speeds=tuple(_speeds(manifest, precision)),
        changes=tuple(_changes(manifest)),
        rooms=() if device is None else tuple(_rooms(manifest.after, device)),
    )


def asked(budgets: Mapping[str, Budget], before: Figures, after: Figures) -> Iterator[Asked]:
    """Each budget (by the quantity that its option names), held against the file."""
    for name, budget in budgets.items():
        quantity = _BUDGETS[name]
        original, value = _value(before, quantity), _value(after, quantity)
        if original is None or value is None:
            continue
        bound = budget.limit(original)
        noise = (
            MARGIN if _source(after, quantity) == MEASURED else 1e-6 if name == "latency" else 0.0
        )
        met = value <= bound * (1 + noise)
        yield Asked(
            option=f"--max-{name} {budget}", quantity=quantity, bound=bound, value=value, met=met
        )


def _budgets(config: Mapping[str, Any]) -> dict[str, Budget]:
    given = {name: config.get(f"max_{name}") for name in _BUDGETS}
    return {name: Budget.model_validate(each) for name, each in given.items() if each is not None}


def kept_original(manifest: Manifest) -> bool:
    """Whether the original's file is what ships."""
    changed = any(layer.method is not None for layer in manifest.layers) or manifest.filters
    return manifest.problem is not None and not changed


def _outcome(manifest: Manifest) -> Outcome:
    if kept_original(manifest):
        return "original kept"
    return "compressed" if manifest.problem is None else "not met"


def _speeds(manifest: Manifest, precision: str) -> Iterator[Beside]:
    if manifest.speedup is not None:
        yield Beside(precision=precision, speedup=manifest.speedup, pace=manifest.speedup.pace)
    whole = manifest.float_original
    if whole is not None:
        pace = None if whole.speedup is None else whole.speedup.pace
        yield Beside(precision="fp32", speedup=whole.speedup, pace=pace, reason=whole.reason)


def _changes(manifest: Manifest) -> Iterator[Change]:
    for quantity in NAMES:
        before, after = _value(manifest.before, quantity), _value(manifest.after, quantity)
        if before is None or after is None:
            continue
        source = _source(manifest.after, quantity)
        worse = after > before
        if quantity == "latency_ms" and source == MEASURED:
            same = manifest.after == manifest.before or manifest.speedup is None
            worse = not same and manifest.speedup is not None and manifest.speedup.pace == "slower"
        elif source == MEASURED:
            worse = after > before * (1 + MARGIN)
        yield Change(quantity=quantity, before=before, after=after, source=source, grew=worse)


def _value(figures: Figures, quantity: Quantity) -> float | None:
    if quantity == "latency_ms":
        return None if figures.latency_ms is None else figures.latency_ms.p50
    value: int | None = getattr(figures, quantity)
    return value


def _source(figures: Figures, quantity: Quantity) -> Source | None:
    if quantity == "latency_ms":
        return None if figures.latency_ms is None else figures.latency_ms.source
    return COMPILED if quantity in _COMPILED else MEASURED if quantity == "peak_rss_bytes" else None


def _rooms(after: Figures, device: Device) -> Iterator[Room]:
    stored = after.file_bytes if after.flash_bytes is None else after.flash_bytes
    working = after.arena_bytes if after.sram_bytes is None else after.sram_bytes
    if device.flash_bytes is not None and stored is not None:
        fits = stored <= device.flash_bytes
        yield Room(memory="flash", needed=stored, limit=device.flash_bytes, fits=fits)
    if device.ram_bytes is not None and working is not None:
        fits = working <= device.ram_bytes
        yield Room(memory="ram", needed=working, limit=device.ram_bytes, fits=fits)


# -- as text -----------------------------------------------------------------------------------------------------------------------


def headline(verdict: Verdict) -> str:
    """The outcome in one sentence."""
    where = verdict.device or "the device"
    if verdict.outcome == "original kept":
        return f"Compression brought no gain on {where}, so the original was kept."
    file = f"the compressed {verdict.target} file ({verdict.precision})"
    known = {change.quantity: change for change in verdict.changes}
    said = [
        f"{percent(known[each].after / known[each].before)} of the {noun}"
        for each, noun in (("macs", "MACs"), ("params", "parameters"), ("file_bytes", "file size"))
        if each in known and known[each].before
    ]
    keeps = f"keeps {_listed(said)}" if said else "keeps the size of the original"
    speed = verdict.speeds[0].speedup if verdict.speeds else None
    told = "of unknown speed" if speed is None else paced(speed, verdict.precision)
    missed = "" if verdict.outcome == "compressed" else ", and misses what was asked of it"
    return f"On {where} {file} is {told}{missed}. It {keeps}."


def details(verdict: Verdict) -> list[str]:
    """A sentence each on the contract, the float original, what got worse, and what fits."""
    lines = []
    if verdict.outcome != "original kept":
        lines += [_held(each) for each in verdict.budgets]
        lines.append(_score(verdict))
        if verdict.contract is not None and (summed := parts(verdict.contract)):
            lines.append(f"The drop is a sum: {summed}.")
    if len(verdict.speeds) > 1:
        lines.append(_beside(verdict.speeds[1]))
    if verdict.outcome != "original kept":
        grown = [_growth(change) for change in verdict.grown]
        lines.append(f"What grew: {_listed(grown)}." if grown else "Nothing grew.")
    if verdict.rooms:
        lines.append(_fit(verdict))
    elif any(each.source not in (None, MEASURED) for each in verdict.changes):
        lines.append(f"The profile of {verdict.device} names no limits of flash and RAM.")
    return lines


def paced(speed: Speedup, precision: str) -> str:
    """A speed-up in words, with what it rests on. ``precision``: of both files."""
    ratio, rests = factor(speed.median), sure(speed)
    other = "the original" if precision == "fp32" else f"the original's {precision} file"
    return {
        "faster": f"{ratio} as fast as {other} ({rests})",
        "slower": f"slower than {other}, at {ratio} its speed ({rests})",
        "as fast": f"as fast as {other} ({rests})",
        "not measurably different": (
            f"not measurably faster or slower than {other} ({ratio}, {rests})"
        ),
    }[speed.pace]


def sure(speed: Speedup) -> str:
    """What a speed-up rests on."""
    if speed.source != MEASURED or speed.low is None or speed.high is None:
        return EXPLAINED[speed.source]
    return f"measured in turns, 95 % interval {speed.low:.2f} to {speed.high:.2f}"


def contract(kept: Kept, *, percent: bool = True) -> str:
    """The drop and what it is held against."""
    unit = kept.unit or ("pp" if percent else "%")
    low, high = (minus(f"{100 * value:.2f}") for value in (kept.low, kept.high))
    lost = f"lost {points(kept.drop, unit)}"
    lost += f" ({confidence(kept.confidence)} interval {low} to {high}, {kept.samples:,} samples)"
    if kept.allowed is None:
        return f"{lost}; no limit was set"
    said = (
        f"{lost}; {100 * kept.allowed:.3g} {short(unit)} allowed:"
        f" {'held' if kept.met else 'broken'}"
    )
    if kept.margin is None:
        return said
    by = points(abs(kept.margin), short(unit))
    return f"{said}, with {by} to spare" if kept.met else f"{said}, by {by}"


#: What each part of a drop is called.
STEPS = {
    "compression": "compression, in float",
    "emission": "the emitted file against that network",
    "kernels": "the reference kernels against the optimised ones",
}


def parts(kept: Kept) -> str:
    """The sum that the drop is; empty where it has one part, or is not known to have several."""
    if not kept.parts or all(round(1e4 * part.drop) == 0 for part in kept.parts[1:]):
        return ""
    said = ""
    for part in kept.parts:
        sign = ("" if part.drop >= 0 else "−") if not said else " + " if part.drop >= 0 else " − "
        said += f"{sign}{points(abs(part.drop), short(kept.unit or 'pp'))} by {STEPS[part.step]}"
    return f"{said} = {points(kept.drop, kept.unit)}"


def _held(each: Asked) -> str:
    value, bound = (exact(each.quantity, amount) for amount in (each.value, each.bound))
    left = (
        f"{percent(abs(1 - each.value / each.bound))}"
        f" {'below' if each.value <= each.bound else 'above'} it"
    )
    word = "held" if each.met else "NOT held"
    return (
        f"Asked {each.option}: {word}, {NAMES[each.quantity]} {value} of at most {bound}, {left}."
    )


def _score(verdict: Verdict) -> str:
    if verdict.score is None:
        return "Accuracy was not measured: no data were given."
    name = verdict.metric or "accuracy"
    name = name[0].upper() + name[1:]
    after = _shown(verdict, verdict.score)
    was = "" if verdict.original is None else f", of {_shown(verdict, verdict.original)} in float"
    if verdict.contract is None:
        return f"{name} {after}{was}."
    return f"{name} {after}{was}: {contract(verdict.contract, percent=verdict.percent)}."


def _shown(verdict: Verdict, value: float) -> str:
    return score(value, percent=verdict.percent)


def _beside(other: Beside) -> str:
    if other.speedup is None:
        return f"Beside the original in {other.precision}: not known, {other.reason}."
    ratio, rests = factor(other.speedup.median), sure(other.speedup)
    start = f"Beside the original in {other.precision} it is"
    match other.pace:
        case "slower":
            return f"{start} SLOWER, at {ratio} the speed of the float original ({rests})."
        case "faster":
            return f"{start} {ratio} as fast ({rests})."
        case "as fast":
            return f"{start} as fast ({rests})."
        case _:
            return f"{start} not measurably faster or slower ({ratio}, {rests})."


def _growth(change: Change) -> str:
    before, after = (
        quantity_text(change.quantity, value) for value in (change.before, change.after)
    )
    by = f" ({relative_change(change.before, change.after)})" if change.before else ""
    origin = "" if change.source is None else f", {change.source}"
    return f"{NAMES[change.quantity]} from {before} to {after}{by}{origin}"


def quantity_text(quantity: Quantity, value: float | None) -> str:
    """A value of a quantity with its unit."""
    if quantity == "latency_ms":
        return milliseconds(value)
    return size(value) if quantity.endswith("bytes") else count(value)


def exact(quantity: Quantity, value: float) -> str:
    """A value to be held against a bound: to the byte."""
    if quantity == "latency_ms":
        return milliseconds(value)
    return f"{count(value)} bytes" if quantity.endswith("bytes") else count(value)


def _fit(verdict: Verdict) -> str:
    each = [
        f"{'flash' if room.memory == 'flash' else 'RAM'} {size(room.needed)} of"
        f" {size(room.limit)}{'' if room.fits else ' (TOO MUCH)'}"
        for room in verdict.rooms
    ]
    what = "The file fits" if all(room.fits for room in verdict.rooms) else "The file does NOT fit"
    return f"{what} {verdict.device}: {_listed(each)}; what runs it comes on top."


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
