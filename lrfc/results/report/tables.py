"""The tables of a build's page: figures, layers, NPU costs, and the most important figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.metrics.outcome import Speedup
from lrfc.metrics.source import COMPILED, EXPLAINED, MEASURED
from lrfc.results import verdict as verdicts
from lrfc.results.manifest import Latency, Layer, Manifest
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.text import (
    NONE,
    count,
    exact_size,
    factor,
    milliseconds,
    percent,
    points,
    shape,
)


@dataclass(frozen=True)
class Row:
    """One quantity before and after, as text. ``note``: the source of the figures."""

    name: str
    before: str
    after: str
    kept: str = NONE
    saved: str = NONE
    factor: str = NONE
    note: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One row of the table of layers.

    ``layer``: the manifest's entry. ``kernels``, ``bytes``, ``ms``: the kernel shapes, weight bytes
    and predicted milliseconds of the layer's ops, before and after.
    """

    layer: Layer
    kernels: tuple[tuple[str, ...], tuple[str, ...]]
    bytes: tuple[int | None, int | None]
    ms: tuple[float | None, float | None]


@dataclass(frozen=True)
class NPURow:
    """The costs of a layer with all its factors on an NPU, before and after, by its compiler.

    ``cpu``: the operators that run on the CPU.
    """

    name: str
    before: Mapping[str, int | None]
    after: Mapping[str, int | None]
    cpu: tuple[str, ...]


def layers(
    manifest: Manifest, ops: OpProfile | None, *, kept_original: bool = False
) -> list[LayerRow]:
    """The rows of the table of layers."""
    table = []
    for layer in manifest.layers:
        sides = [
            [op for op in side if op.layer == layer.name]
            for side in ((ops.before, ops.after) if ops is not None else ((), ()))
        ]
        if kept_original:  # the ops after are those of a file that was not kept
            sides[1] = sides[0]
        kernels, weights, times = zip(*map(_side, sides), strict=True)
        table.append(LayerRow(layer, kernels, weights, times))
    return table


def _side(ops: Sequence[OpCost]) -> tuple[tuple[str, ...], int | None, float | None]:
    """The kernel shapes, the weight bytes and the predicted milliseconds of a layer's ops."""
    kernels = tuple(shape(op.kernel) for op in ops if op.kernel)
    times = [op.predicted_ms for op in ops if op.predicted_ms is not None]
    return (
        kernels,
        sum(op.weight_bytes for op in ops) if ops else None,
        sum(times) if times else None,
    )


def by_cycles(manifest: Manifest, ops: OpProfile) -> OpProfile | None:
    """The ops with their compiled cycles as times, which add up to the latency of the file.

    None where the cycles are unknown.
    """
    before = manifest.before
    if (
        not before.cycles
        or before.latency_ms is None
        or not all(any(op.cycles is not None for op in side) for side in (ops.before, ops.after))
    ):
        return None
    ms_per_cycle = before.latency_ms.p50 / before.cycles  # one clock for both files

    def side(ops: Sequence[OpCost]) -> tuple[OpCost, ...]:
        return tuple(
            op.model_copy(
                update={"predicted_ms": None if op.cycles is None else op.cycles * ms_per_cycle}
            )
            for op in ops
        )

    return OpProfile(overhead_ms=0.0, before=side(ops.before), after=side(ops.after))


def npu(ops: OpProfile) -> list[NPURow]:
    """Cycles and memory of each layer; empty for a device without a compiler."""
    table = []
    for name in dict.fromkeys(
        op.layer for op in (*ops.before, *ops.after) if op.cycles is not None
    ):
        before, after = (
            [op for op in side if op.layer == name] for side in (ops.before, ops.after)
        )
        cpu = dict.fromkeys(operator for op in (*before, *after) for operator in op.cpu)
        table.append(NPURow(name, _merged(before), _merged(after), tuple(cpu)))
    return table


def _merged(ops: Sequence[OpCost]) -> dict[str, int | None]:
    """The cycles and the memory of a layer's ops together; None for an unknown quantity."""
    merges: dict[str, Callable[[Sequence[int]], int]] = {
        "cycles": sum,
        "sram_bytes": max,
        "flash_bytes": sum,
    }
    known = {
        quantity: [value for op in ops if (value := getattr(op, quantity)) is not None]
        for quantity in merges
    }
    return {
        quantity: merge(known[quantity]) if known[quantity] else None
        for quantity, merge in merges.items()
    }


# -- sentences and rows ----------------------------------------------------------------------------


def baselines(manifest: Manifest) -> str:
    """The parts of the drop, and its baseline where the original's file has another score."""
    scores, file = manifest.accuracy, manifest.original_file
    sentences = []
    if scores.kept is not None and (summed := verdicts.parts(scores.kept)):
        sentences.append(f"The drop in parts: {summed}.")
    if file is not None and scores.before is not None:
        sentences.append(
            f"The drop is relative to the original in float ({scores.shown(scores.before)});"
            f" the original's own file has {scores.shown(file)}."
        )
    return " ".join(sentences)


def cards(manifest: Manifest) -> list[tuple[str, str, str]]:
    """The most important figures: name, value, and a remark such as the saving or the source."""
    return [*_cost_cards(manifest), *_speed_cards(manifest), *_score_cards(manifest)]


def _cost_cards(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    for name, quantity in (
        ("MACs", "macs"),
        ("Parameters", "params"),
        ("File size", "file_bytes"),
        ("Activation memory", "arena_bytes"),
    ):
        before, after = getattr(manifest.before, quantity), getattr(manifest.after, quantity)
        if not before or after is None:
            continue
        share = after / before
        if share > 1:
            yield name, factor(share), f"{percent(share - 1)} more than before"
        else:
            yield name, f"{percent(share)} kept", f"{percent(1 - share)} saved"


def _speed_cards(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    if manifest.speedup is not None:
        ratio = manifest.speedup
        yield "Speed-up", factor(ratio.median), verdicts.sure(ratio)
    original = manifest.float_original
    if original is not None and original.speedup is not None:
        ratio = original.speedup
        slower = "SLOWER than the float original; " if ratio.pace == "slower" else ""
        yield "Against fp32", factor(ratio.median), f"{slower}{verdicts.sure(ratio)}"


def _score_cards(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    scores, value = manifest.accuracy, manifest.after.accuracy
    if value is None:
        return
    remark = "on the test data"
    if scores.before is not None:
        remark = f"original in float {scores.shown(scores.before)}"
    if scores.kept is not None:
        remark += f"; {verdicts.contract(scores.kept, percent=scores.percent)}"
    yield (scores.metric or "accuracy").capitalize(), scores.shown(value), remark


def figures(manifest: Manifest) -> list[Row]:
    """The table of figures before and after.

    Its drop is that of the contract, and the factor of its latency is the speed-up, so that the
    page shows only one of each.
    """
    before, after = manifest.before, manifest.after
    table = [
        _row("MACs", before.macs, after.macs, count),
        _row("Parameters", before.params, after.params, count),
        _row("File size", before.file_bytes, after.file_bytes, exact_size),
        _row("Planned activation arena", before.arena_bytes, after.arena_bytes, exact_size),
    ]
    if (before.workspace_bytes, after.workspace_bytes) != (None, None):
        sides = before.workspace_bytes, after.workspace_bytes
        table.append(_row("Workspace of XNNPACK", *sides, exact_size, "computed by its own rule"))
    table += _latencies(manifest)
    if before.cycles is not None:
        compiled = EXPLAINED[COMPILED]
        table += [
            _row("NPU cycles", before.cycles, after.cycles, count, compiled),
            _row("SRAM", before.sram_bytes, after.sram_bytes, exact_size, compiled),
            _row("Flash", before.flash_bytes, after.flash_bytes, exact_size, compiled),
        ]
    elif before.arena_total_bytes is not None:
        note = "measured with TensorFlow Lite Micro"
        table += [
            _row(name, getattr(before, quantity), getattr(after, quantity), exact_size, note)
            for name, quantity in (
                ("Arena head: activations", "arena_head_bytes"),
                ("Arena tail: structures", "arena_tail_bytes"),
                ("Arena, both", "arena_total_bytes"),
            )
        ]
    elif after.latency_ms is None or after.latency_ms.source == MEASURED:
        sides = before.peak_rss_bytes, after.peak_rss_bytes
        note = "measured, of the process, runtime included"
        table.append(_row("Peak resident memory", *sides, exact_size, note))
    return [*table, _score(manifest)]


def _latencies(manifest: Manifest) -> list[Row]:
    old, new = manifest.before.latency_ms, manifest.after.latency_ms
    original = manifest.float_original
    if old is None or new is None:
        return [Row("Latency, median", NONE, NONE)]
    ratio = manifest.speedup if manifest.after != manifest.before else None
    if new.source != MEASURED:
        table = [_timed(f"Latency, {new.source}", old.p50, new.p50, ratio, _sources(old, new))]
    else:
        note = _sources(old, new)
        table = [
            _timed("Latency, median", old.p50, new.p50, ratio, note),
            _timed("Latency, 90th percentile", old.p90, new.p90, None, note),
        ]
    if original is not None and original.latency_ms is not None:
        note = _sources(original.latency_ms, new)
        name = "Latency, against the original in fp32"
        table.append(_timed(name, original.latency_ms.p50, new.p50, original.speedup, note))
    return table


def _timed(name: str, before: float, after: float, ratio: Speedup | None, note: str) -> Row:
    first, second = (milliseconds(value) for value in (before, after))
    if ratio is None:
        return Row(name, first, second, note=note)
    kept = 1 / ratio.median
    return Row(name, first, second, percent(kept), percent(1 - kept), factor(ratio.median), note)


def _score(manifest: Manifest) -> Row:
    """The scores of the original in float and of the emitted file, as the contract does."""
    scores, value = manifest.accuracy, manifest.after.accuracy
    name = (scores.metric or "accuracy").capitalize()
    before = NONE if scores.before is None else scores.shown(scores.before)
    after = NONE if value is None else scores.shown(value)
    if scores.before is None or value is None:
        return Row(name, before, after)
    if scores.kept is not None:  # a score is not saved: its change is the drop
        after += f" (drop {points(scores.kept.drop, scores.kept.unit)})"
    return Row(name, before, after, note="before: the original in float")


def _row(
    name: str, before: float | None, after: float | None, show: Callable[[Any], str], note: str = ""
) -> Row:
    first, second = (NONE if value is None else show(value) for value in (before, after))
    if before is None or after is None or not before:
        return Row(name, first, second, note=note)
    kept = after / before
    return Row(
        name,
        first,
        second,
        percent(kept),
        percent(1 - kept),
        factor(before / after if after else None),
        note,
    )


def _sources(*sides: Latency) -> str:
    """The source of the latencies: one text, or two where they differ."""
    sources = [
        (
            EXPLAINED[side.source]
            if side.source != MEASURED
            else f"measured, n = {side.n}, {side.threads} thread{'s' if side.threads > 1 else ''}"
        )
        for side in sides
    ]
    return " / ".join(dict.fromkeys(sources))
