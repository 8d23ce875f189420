"""The verdict on a build, computed once for the terminal, the report and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrfc.config.build import NO_LIMIT, Budget
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
from lrfc.targets.micro import tflm
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

#: Relative tolerance for measured memory and time: memory counts as increased, and time as over its
#: budget, only beyond it. Figures that are counted or computed have no noise.
MARGIN = 0.02

#: The name of a quantity in texts.
NAMES: Mapping[Quantity, str] = {
    "macs": "MACs",
    "params": "parameters",
    "file_bytes": "file size",
    "arena_bytes": "activation memory (planned)",
    "workspace_bytes": "activation memory (XNNPACK)",
    "latency_ms": "latency",
    "cycles": "NPU cycles",
    "sram_bytes": "SRAM",
    "flash_bytes": "flash",
    "arena_total_bytes": "RAM of TensorFlow Lite Micro",
    "peak_rss_bytes": "peak memory of the process",
}
#: The quantity that an option --max-… bounds.
_BUDGETS: Mapping[str, Quantity] = {
    "macs": "macs",
    "params": "params",
    "size": "file_bytes",
    "ram": "arena_bytes",
    "latency": "latency_ms",
}
#: The quantities that the headline compares with the original.
_SHARES: tuple[Quantity, ...] = ("macs", "params", "file_bytes")
_COMPILED: tuple[Quantity, ...] = ("cycles", "sram_bytes", "flash_bytes")
_MEASURED: tuple[Quantity, ...] = ("arena_total_bytes", "peak_rss_bytes")


def judged(manifest: Manifest, device: Device | None = None) -> Verdict:
    """Return the verdict on the figures of a manifest.

    ``device``: the profile with the memory limits; without it the verdict has none.
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
    """Test the file against each budget. ``budgets``: by the name in --max-NAME."""
    for name, budget in budgets.items():
        quantity = _BUDGETS[name]
        if name == "ram" and None not in (before.arena_total_bytes, after.arena_total_bytes):
            quantity = "arena_total_bytes"
        original, value = _value(before, quantity), _value(after, quantity)
        if original is None or value is None:
            continue
        bound = budget.limit(original)
        noise = MARGIN if _noisy(after, quantity) else 1e-6 if name == "latency" else 0.0
        met = value <= bound * (1 + noise)
        yield Asked(
            option=f"--max-{name} {budget}", quantity=quantity, bound=bound, value=value, met=met
        )


def _budgets(config: Mapping[str, Any]) -> dict[str, Budget]:
    values = {name: config.get(f"max_{name}") for name in _BUDGETS}
    return {
        name: Budget.model_validate(value)
        for name, value in values.items()
        if value not in (None, NO_LIMIT)
    }


def kept_original(manifest: Manifest) -> bool:
    """Whether the original's file ships."""
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
        grew = after > before
        if quantity == "latency_ms" and source == MEASURED:
            same = manifest.after == manifest.before or manifest.speedup is None
            grew = not same and manifest.speedup is not None and manifest.speedup.pace == "slower"
        elif _noisy(manifest.after, quantity):
            grew = after > before * (1 + MARGIN)
        yield Change(quantity=quantity, before=before, after=after, source=source, grew=grew)


def _value(figures: Figures, quantity: Quantity) -> float | None:
    if quantity == "latency_ms":
        return None if figures.latency_ms is None else figures.latency_ms.p50
    value: int | None = getattr(figures, quantity)
    return value


def _source(figures: Figures, quantity: Quantity) -> Source | None:
    if quantity == "latency_ms":
        return None if figures.latency_ms is None else figures.latency_ms.source
    return COMPILED if quantity in _COMPILED else MEASURED if quantity in _MEASURED else None


def _noisy(figures: Figures, quantity: Quantity) -> bool:
    """Whether the figure would be another one if it was measured again."""
    return _source(figures, quantity) == MEASURED and quantity != "arena_total_bytes"


def _rooms(after: Figures, device: Device) -> Iterator[Room]:
    stored = after.file_bytes if after.flash_bytes is None else after.flash_bytes
    if device.flash_bytes is not None and stored is not None:
        fits = stored <= device.flash_bytes
        yield Room(memory="flash", needed=stored, limit=device.flash_bytes, fits=fits)
    quantities: tuple[Quantity, ...] = ("arena_total_bytes", "sram_bytes", "arena_bytes")
    working = next((q for q in quantities if _value(after, q) is not None), None)
    if device.ram_bytes is not None and working is not None:
        needed = int(_value(after, working) or 0)
        yield Room(
            memory="ram",
            needed=needed,
            limit=device.ram_bytes,
            fits=needed <= device.ram_bytes,
            source=_source(after, working),
            head=after.arena_head_bytes,
            tail=after.arena_tail_bytes,
            remedy=tflm.REMEDY if device.measures_arena and working == "arena_bytes" else None,
        )


# -- as text ---------------------------------------------------------------------------------------


def headline(verdict: Verdict) -> str:
    """The outcome in one sentence."""
    where = verdict.device or "the device"
    if verdict.outcome == "original kept":
        return f"Compression brought no gain on {where}, so the original was kept."
    file = f"the compressed {verdict.target} file ({verdict.precision})"
    changes = {change.quantity: change for change in verdict.changes}
    shares = [
        f"{percent(changes[quantity].after / changes[quantity].before)} of the {NAMES[quantity]}"
        for quantity in _SHARES
        if quantity in changes and changes[quantity].before
    ]
    keeps = f"keeps {_listed(shares)}" if shares else "keeps the size of the original"
    speed = verdict.speeds[0].speedup if verdict.speeds else None
    pace = "of unknown speed" if speed is None else paced(speed, verdict.precision)
    missed = "" if verdict.outcome == "compressed" else ", but it does not meet its constraints"
    return f"On {where} {file} is {pace}{missed}. It {keeps}."


def details(verdict: Verdict) -> list[str]:
    """The sentences behind the headline.

    On the budgets, the accuracy contract, the float original, increased costs, and the memory of
    the device.
    """
    lines = []
    if verdict.outcome != "original kept":
        lines += [_budget(budget) for budget in verdict.budgets]
        lines.append(_score(verdict))
        if verdict.contract is not None and (summed := parts(verdict.contract)):
            lines.append(f"The drop in parts: {summed}.")
    if len(verdict.speeds) > 1:
        lines.append(_against_float(verdict.speeds[1]))
    if verdict.outcome != "original kept":
        grown = [_growth(change) for change in verdict.grown]
        lines.append(f"Increased: {_listed(grown)}." if grown else "No cost increased.")
    if verdict.rooms:
        lines.append(_fit(verdict))
    elif any(change.source not in (None, MEASURED) for change in verdict.changes):
        lines.append(f"The device profile of {verdict.device} has no limits for flash and RAM.")
    return lines


def paced(speed: Speedup, precision: str) -> str:
    """A speed-up in words, with its source. ``precision``: of both files."""
    ratio, source = factor(speed.median), sure(speed)
    other = "the original" if precision == "fp32" else f"the original's {precision} file"
    return {
        "faster": f"{ratio} as fast as {other} ({source})",
        "slower": f"slower than {other}, at {ratio} its speed ({source})",
        "as fast": f"as fast as {other} ({source})",
        "not measurably different": (
            f"not measurably faster or slower than {other} ({ratio}, {source})"
        ),
    }[speed.pace]


def sure(speed: Speedup) -> str:
    """The source of a speed-up, with the interval of a measured one."""
    if speed.source != MEASURED or speed.low is None or speed.high is None:
        return EXPLAINED[speed.source]
    return f"measured, 95 % interval {speed.low:.2f} to {speed.high:.2f}"


def contract(kept: Kept, *, percent: bool = True) -> str:
    """The drop and, where there is one, its limit."""
    unit = kept.unit or ("pp" if percent else "%")
    low, high = (minus(f"{100 * value:.2f}") for value in (kept.low, kept.high))
    drop = f"drop {points(kept.drop, unit)}"
    drop += f" ({confidence(kept.confidence)} interval {low} to {high}, {kept.samples:,} samples)"
    if kept.allowed is None:
        return f"{drop}; no limit was set"
    allowed = f"{drop}; {100 * kept.allowed:.3g} {short(unit)} allowed:"
    if kept.margin is None:
        return f"{allowed} {'met' if kept.met else 'NOT met'}"
    margin = points(abs(kept.margin), short(unit))
    return f"{allowed} met, {margin} left" if kept.met else f"{allowed} NOT met, {margin} too much"


#: The name of each part of a drop.
STEPS = {
    "compression": "compression in float",
    "emission": "emission of the file",
    "kernels": "the reference kernels",
}


def parts(kept: Kept) -> str:
    """The drop as the sum of its parts; empty where they are unknown or there is only one."""
    if not kept.parts or all(round(1e4 * part.drop) == 0 for part in kept.parts[1:]):
        return ""
    terms = ""
    for part in kept.parts:
        added, removed = (" + ", " − ") if terms else ("", "−")
        sign = removed if part.drop < 0 else added
        terms += f"{sign}{points(abs(part.drop), short(kept.unit or 'pp'))} by {STEPS[part.step]}"
    return f"{terms} = {points(kept.drop, kept.unit)}"


def _budget(budget: Asked) -> str:
    value, bound = (exact(budget.quantity, amount) for amount in (budget.value, budget.bound))
    distance = percent(abs(1 - budget.value / budget.bound))
    side = "below" if budget.value <= budget.bound else "above"
    return (
        f"{budget.option}: {'met' if budget.met else 'NOT met'}, {NAMES[budget.quantity]} {value}"
        f" of at most {bound} ({distance} {side})."
    )


def _score(verdict: Verdict) -> str:
    if verdict.score is None:
        return "Accuracy was not measured: there are no data."
    name = verdict.metric or "accuracy"
    name = name[0].upper() + name[1:]
    after = score(verdict.score, percent=verdict.percent)
    if verdict.original is not None:
        after += f" (original in float: {score(verdict.original, percent=verdict.percent)})"
    if verdict.contract is None:
        return f"{name} {after}."
    return f"{name} {after}: {contract(verdict.contract, percent=verdict.percent)}."


def _against_float(other: Beside) -> str:
    if other.speedup is None:
        return f"Speed against the original in {other.precision}: unknown, {other.reason}."
    ratio, source = factor(other.speedup.median), sure(other.speedup)
    start = f"Compared with the original in {other.precision} it is"
    match other.pace:
        case "slower":
            return f"{start} SLOWER, at {ratio} its speed ({source})."
        case "faster":
            return f"{start} {ratio} as fast ({source})."
        case "as fast":
            return f"{start} as fast ({source})."
        case _:
            return f"{start} not measurably faster or slower ({ratio}, {source})."


def _growth(change: Change) -> str:
    before, after = (
        quantity_text(change.quantity, value) for value in (change.before, change.after)
    )
    relative = f" ({relative_change(change.before, change.after)})" if change.before else ""
    source = "" if change.source is None else f", {change.source}"
    return f"{NAMES[change.quantity]} from {before} to {after}{relative}{source}"


def quantity_text(quantity: Quantity, value: float | None) -> str:
    """A value of a quantity with its unit."""
    if quantity == "latency_ms":
        return milliseconds(value)
    return size(value) if quantity.endswith("bytes") else count(value)


def exact(quantity: Quantity, value: float) -> str:
    """A value with its unit, to the byte, for comparison with a bound."""
    if quantity == "latency_ms":
        return milliseconds(value)
    return f"{count(value)} bytes" if quantity.endswith("bytes") else count(value)


def _fit(verdict: Verdict) -> str:
    fits = "fits" if all(room.fits for room in verdict.rooms) else "does NOT fit"
    memories = _listed([_room(room) for room in verdict.rooms])
    return f"The file {fits} {verdict.device}: {memories}; the runtime itself comes on top."


def _room(room: Room) -> str:
    remarks = [] if room.fits else ["TOO MUCH"]
    if room.head is not None and room.tail is not None:
        remarks.append(
            f"measured: {size(room.head)} of activations, {size(room.tail)} of the runtime's"
            " structures"
        )
    elif room.remedy is not None:
        remarks.append(f"planned; {room.remedy}")
    name = "flash" if room.memory == "flash" else "RAM"
    remark = f" ({'; '.join(remarks)})" if remarks else ""
    return f"{name} {size(room.needed)} of {size(room.limit)}{remark}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
