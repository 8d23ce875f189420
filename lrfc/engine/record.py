"""The manifest of a build, from its trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.costs.totals import totals_of
from lrfc.engine.candidate import Compressed, Trial, recorded
from lrfc.engine.replay import digest
from lrfc.engine.scorer import sampled
from lrfc.ir import processor
from lrfc.ir.graph import Graph
from lrfc.metrics.outcome import Kept, Part
from lrfc.passes.finetune import Tuning
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.results import folder as files
from lrfc.results.manifest import (
    Accuracy,
    Attempt,
    Figures,
    File,
    Filters,
    FineTuning,
    Input,
    Kernels,
    Layer,
    Manifest,
    Parity,
    Patch,
    Search,
)
from lrfc.results.time_profile import recorded as recorded_time
from lrfc.results.verdict import judged
from lrfc.targets.parity import Parity as Difference


@dataclass(frozen=True)
class Shipped:
    """The network and the figures that ship: the trial's, or without a gain the original's."""

    network: Graph
    figures: Figures
    parity: Difference
    layers: tuple[Layer, ...]


def manifest_of(
    trials: Sequence[Trial], taken: Trial, shipped: Shipped, artifacts: Sequence[File]
) -> Manifest:
    """The manifest of ``taken``, one of the ``trials``, with its verdict."""
    made, goal, failure = taken.made, taken.goal, taken.failure
    manifest = Manifest(
        input=Input(
            path=str(made.source),
            sha256=digest(made.source, made.state.original),
            preprocessing=made.state.data.preprocessing,
        ),
        config=made.config.model_dump(mode="json")
        | {"precision": goal.target.precision, "threads": goal.threads},
        seed=made.config.seed,
        versions=files.versions(),
        onednn=processor.onednn().on,
        target=goal.target.name,
        device=goal.device.name,
        layers=shipped.layers,
        filters=_filters(made) if taken.gained else (),
        before=taken.before,
        after=shipped.figures,
        accuracy=_accuracy(taken, shipped.figures.accuracy),
        search=_search(trials, taken),
        finetune=_fine_tuning(made),
        speedup=recorded(taken.speedup),
        float_original=taken.float_original,
        problem=None if failure is None else str(failure),
        parity=Parity(max_abs_diff=shipped.parity.max_abs_diff, samples=shipped.parity.samples),
        patches=_patches(taken),
        artifacts=tuple(artifacts),
        profile=recorded_time(),
    )
    return manifest.model_copy(update={"verdict": judged(manifest, goal.device)})


def _patches(taken: Trial) -> tuple[Patch, ...]:
    """The patches of the file that ships, by layers; the original's has none."""
    memory = taken.ops.memory if taken.gained else None
    regions = () if memory is None else memory.after.regions
    return tuple(Patch(first=r.start, last=r.end, strips=r.strips) for r in regions)


def layers_of(taken: Trial) -> tuple[Layer, ...]:
    """The rows of the layers; without a gain they are unchanged."""
    layers = _layers(taken.made, taken.plan.state.known(FilterSpace))
    if taken.gained:
        return layers
    return tuple(_unchanged(layer, str(taken.failure)) for layer in layers)


def _search(trials: Sequence[Trial], taken: Trial) -> Search:
    """The size of the design space, the rounds of the tuning loop, and the trials."""
    design, plan = taken.made.design, taken.plan
    return Search(
        candidates=design.size,
        undominated=design.undominated,
        seconds=taken.made.seconds,
        objective=plan.objective,
        allowed_divergence=plan.allowed,
        rounds=plan.rounds,
        attempts=tuple(map(_attempt, trials)),
    )


def _attempt(trial: Trial) -> Attempt:
    latency = trial.after.latency_ms
    return Attempt(
        allowed_divergence=trial.plan.allowed,
        kept=_kept(trial),
        accuracy=trial.after.accuracy,
        latency_ms=None if latency is None else latency.p50,
        source=None if latency is None else latency.source,
        ram_bytes=trial.after.ram_bytes,
    )


def _fine_tuning(made: Compressed) -> FineTuning | None:
    """The course of the fine-tune; a value that is not finite is null."""
    tuning = made.state.known(Tuning)
    if tuning is None or not tuning.steps:
        return None
    losses, scores = (
        tuple(v if v is not None and math.isfinite(v) else None for v in values)
        for values in (tuning.losses, tuning.scores)
    )
    return FineTuning(
        losses=losses,
        scores=scores,
        best=tuning.best,
        learning_rate=tuning.learning_rate,
        steps=tuning.steps,
        seconds=tuning.seconds,
        stopped=tuning.stopped,
        measure=tuning.measure,
        seen=tuning.seen,
    )


def _accuracy(taken: Trial, artifact: float | None) -> Accuracy:
    """Accuracy by stage, and the contract. ``artifact``: the score of the file that ships."""
    metric, ladder = taken.made.metric, taken.made.ladder
    if metric is None:
        return Accuracy()
    fields: dict[str, Any] = {
        "metric": metric.name,
        "percent": metric.percent,
        "higher_is_better": metric.higher_is_better,
        **ladder,
        "artifact": artifact,
        "stage_samples": sampled(taken.made.state.data.test),
    }
    if not taken.gained:  # the contract was tested on a file that does not ship
        return Accuracy(**fields)
    return Accuracy(**fields, kept=_kept(taken), kernels=_kernels(taken))


def _kept(trial: Trial) -> Kept | None:
    """The accuracy contract, tested on the trial's file."""
    contract = trial.contract
    if contract is None:
        return None
    return Kept(
        allowed=None if contract.allowed is None else contract.allowed.value,
        drop=contract.drop,
        low=contract.low,
        high=contract.high,
        confidence=contract.confidence,
        samples=contract.samples,
        met=contract.met,
        unit=contract.unit,
        margin=contract.margin,
        parts=_parts(trial, contract.drop),
    )


def _parts(trial: Trial, drop: float) -> tuple[Part, ...]:
    """The parts of the drop by step; the reference kernels have the remainder."""
    metric, ladder, file = trial.made.metric, trial.made.ladder, trial.after.accuracy
    if metric is None or file is None or "before" not in ladder:
        return ()
    original, network = ladder["before"], list(ladder.values())[-1]
    compression = metric.drop(original, network)
    whole = metric.drop(original, file)  # relative to the original's score, as the contract's drop
    parts = [
        Part(step="compression", drop=compression),
        Part(step="emission", drop=whole - compression),
    ]
    counted = trial.kernels is not None and trial.goal.device.rounds_like_reference
    return (*parts, Part(step="kernels", drop=drop - whole)) if counted else tuple(parts)


def _kernels(taken: Trial) -> Kernels | None:
    scores = taken.kernels
    if scores is None:
        return None
    return Kernels(
        reference=scores.reference,
        optimised=scores.optimised,
        samples=scores.samples,
        counted=taken.goal.device.rounds_like_reference,
    )


def _filters(made: Compressed) -> tuple[Filters, ...]:
    """The units that each dependency group keeps."""
    keeps = made.state.fact(Selection).keeps
    return tuple(
        Filters(
            name=name,
            layers=tuple(part.layer for part in keep.group.producers),
            units=keep.group.width,
            kept=tuple(keep.units.tolist()),
            impact=keep.divergence,
        )
        for name, keep in keeps.items()
    )


def _unchanged(layer: Layer, failure: str) -> Layer:
    """The row of a layer of the original, with the method that was tried and does not ship."""
    update: dict[str, Any] = {
        "method": None,
        "rank": None,
        "similarity": None,
        "params_after": layer.params_before,
        "macs_after": layer.macs_before,
        "reason": layer.reason or f"{layer.method} was tried; {failure}",
        "filters_after": layer.filters_before,
    }
    if layer.cut:
        update["filters_reason"] = f"cutting them was tried; {failure}"
    return layer.model_copy(update=update)


def _layers(made: Compressed, filters: FilterSpace | None) -> tuple[Layer, ...]:
    """A row for each layer that was considered, in the order of the original."""
    rows = _factorizable(made) | _skipped(made)
    if filters is not None:
        widths = filters.left(made.state.fact(Selection).removed)
        for name, (before, after) in widths.items():
            if name in rows:
                reason = filters.refused.get(name) if before == after else None
                update = {
                    "filters_before": before,
                    "filters_after": after,
                    "filters_reason": reason,
                }
                rows[name] = rows[name].model_copy(update=update)
    return tuple(rows[op.name] for op in made.state.original.layers() if op.name in rows)


def _factorizable(made: Compressed) -> dict[str, Layer]:
    """The rows of layers with candidates."""
    selection = made.state.fact(Selection)
    spaces = {space.op.name: space for space in made.design.spaces}
    rows = {}
    for candidate in selection.chosen:
        space = spaces[candidate.layer]
        rows[candidate.layer] = Layer(
            name=candidate.layer,
            kind=space.op.kind,
            method=candidate.method,
            rank=candidate.ranks or None,
            params_before=space.whole.params,
            params_after=candidate.params,
            macs_before=space.whole.macs,
            macs_after=candidate.macs,
            similarity=1 - candidate.error if candidate.method is not None else None,
            reason=selection.reasons.get(candidate.layer),
        )
    return rows


def _skipped(made: Compressed) -> dict[str, Layer]:
    """The rows of layers without candidates; pruning may still have made them smaller."""
    rows = {}
    for name, reason in made.design.skipped.items():
        before: dict[str, Any] = totals_of(made.state.original, name)
        after: dict[str, Any] = totals_of(made.trainable, name)
        rows[name] = Layer(
            name=name,
            kind=made.state.original.op(name).kind,
            params_before=before["params"],
            params_after=after["params"],
            macs_before=before["macs"],
            macs_after=after["macs"],
            reason=reason,
        )
    return rows
