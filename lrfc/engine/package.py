"""Put a build into its output folder, every number written down."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrfc.costs.totals import totals_of
from lrfc.data.counts import CHECKED
from lrfc.engine.candidate import Compressed, Trial, recorded
from lrfc.engine.replay import digest
from lrfc.errors import BudgetError, NoGainError
from lrfc.ir import processor
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.outcome import Kept, Part
from lrfc.passes.finetune import Tuning
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.results import candidates as choices
from lrfc.results import folder as files
from lrfc.results.manifest import (
    Accuracy,
    Attempt,
    Filters,
    FineTuning,
    Input,
    Kernels,
    Layer,
    Manifest,
    Parity,
    Search,
)
from lrfc.results.report import page
from lrfc.results.verdict import judged
from lrfc.search.facts import DesignSpace, Price
from lrfc.search.pareto import front
from lrfc.targets.devices.speed import Ratio
from lrfc.targets.parity import parity


@dataclass(frozen=True)
class Result:
    """A written output folder.

    ``speedup``: above 1 when the new file is faster than the original's of the same precision; its
    ``source`` says where it comes from. ``failure`` is the error with which the build ends although
    the folder is written: a budget that is not met, or no gain (the folder then holds the
    original's file).
    """

    out: Path
    manifest: Manifest
    speedup: Ratio
    failure: BudgetError | NoGainError | None = None

    @property
    def artifact(self) -> Path:
        """The emitted file."""
        return self.out / self.manifest.artifacts[0].path


def ship(
    trials: Sequence[Trial], taken: Trial, place: files.Reserved, log: Sequence[str]
) -> Result:
    """Write the output folder of one destination: that of ``taken``, one of the ``trials``."""
    made, goal, plan, failure = taken.made, taken.goal, taken.plan, taken.failure
    data, target = made.state.data, goal.target
    with place.writing() as work:
        emitted = replace(taken.emitted, path=work / taken.emitted.path.name)
        plain, layers, after, found = (
            made.trainable,
            _layers(made, plan.state.known(FilterSpace)),
            taken.after,
            taken.parity,
        )
        kept = isinstance(failure, NoGainError)
        shutil.copyfile(taken.original.path if kept else taken.emitted.path, emitted.path)
        if kept:  # never worse: the original's file ships
            plain, after = made.state.original, taken.before
            checked = data.validation.head(CHECKED).inputs
            found = parity(emitted, target.load(emitted), checked, keras_io.predict(plain, checked))
            layers = tuple(_as_it_was(layer, str(failure)) for layer in layers)
        compiled = taken.compiled[0 if kept else 1]
        built = []
        if compiled is not None:
            built.append(
                work / f"{emitted.path.stem}_{goal.device.connection.kind}{emitted.path.suffix}"
            )
            built[0].write_bytes(compiled)
        scales = target.scales(emitted.path) if made.config.int8_io else ()
        keras_io.save(plain, work / "model.keras")
        manifest = Manifest(
            input=Input(
                path=str(made.source),
                sha256=digest(made.source, made.state.original),
                preprocessing=data.preprocessing,
            ),
            config=made.config.model_dump(mode="json")
            | {
                "precision": target.precision,
                "threads": goal.threads,
            },
            seed=made.config.seed,
            versions=files.versions(),
            onednn=processor.onednn().on,
            target=target.name,
            device=goal.device.name,
            layers=layers,
            filters=() if kept else _filters(made),
            before=taken.before,
            after=after,
            accuracy=_accuracy(taken, after.accuracy),
            search=Search(
                candidates=made.design.size,
                undominated=made.design.undominated,
                seconds=made.seconds,
                objective=plan.objective,
                allowed_divergence=plan.allowed,
                rounds=plan.rounds,
                attempts=tuple(map(_attempt, trials)),
            ),
            finetune=_tuning(made),
            speedup=recorded(taken.speedup),
            float_original=taken.float_original,
            problem=None if failure is None else str(failure),
            parity=Parity(max_abs_diff=found.max_abs_diff, samples=found.samples),
            artifacts=(
                files.record(emitted.path, work, target.name, scales),
                *(files.record(path, work, goal.device.connection.kind) for path in built),
                files.record(work / "model.keras", work, "keras"),
            ),
        )
        manifest = manifest.model_copy(update={"verdict": judged(manifest, goal.device)})
        manifest.write(work)
        manifest.write_layers(work)
        choices.write(
            work,
            _weighed(made, plan.design).spaces,
            {layer.name: (layer.method, tuple(layer.rank or ())) for layer in layers},
        )
        taken.ops.write(work)
        (work / "pareto.json").write_text(
            json.dumps({"schema_version": 1, **_fronts(taken)}, indent=2) + "\n", encoding="utf-8"
        )
        (work / "log.txt").write_text("\n".join(log) + "\n", encoding="utf-8")
        page.write(work)
    return Result(place.out, manifest, taken.speedup, failure)


def _fronts(taken: Trial) -> dict[str, Any]:
    """The front over MACs, and the one over the predicted latency in milliseconds where the loop has priced the candidates."""
    made, plan = taken.made, taken.plan
    fronts = {
        "points": front(
            replace(made.state, graph=made.state.original).with_fact(_weighed(made, made.design))
        )
    }
    price = plan.state.known(Price)
    if price is not None:
        priced = front(
            replace(plan.state, graph=made.state.original).with_fact(
                _weighed(made, plan.design), price
            ),
            ("latency",),
        )
        fronts["by_latency"] = [
            {**point, "latency": point["latency"] * price.ms_per_unit} for point in priced
        ]
    return fronts


def _weighed(made: Compressed, design: DesignSpace) -> DesignSpace:
    """The candidates that were weighed: with --prune only each layer as it is."""
    return design.narrowed(()) if made.config.prune == "only" else design


def _attempt(each: Trial) -> Attempt:
    latency = each.after.latency_ms
    return Attempt(
        allowed_divergence=each.plan.allowed,
        kept=_kept(each),
        accuracy=each.after.accuracy,
        latency_ms=None if latency is None else latency.p50,
        source=None if latency is None else latency.source,
    )


def _tuning(made: Compressed) -> FineTuning | None:
    found = made.state.known(Tuning)
    if found is None or not found.steps:
        return None
    losses, scores = (
        tuple(v if v is not None and math.isfinite(v) else None for v in values)
        for values in (found.losses, found.scores)
    )
    return FineTuning(
        losses=losses,
        scores=scores,
        best=found.best,
        learning_rate=found.learning_rate,
        steps=found.steps,
        seconds=found.seconds,
        stopped=found.stopped,
    )


def _accuracy(taken: Trial, artifact: float | None) -> Accuracy:
    metric, ladder = taken.made.metric, taken.made.ladder
    if metric is None:
        return Accuracy()
    given: dict[str, Any] = {
        "metric": metric.name,
        "percent": metric.percent,
        "higher_is_better": metric.higher_is_better,
        **ladder,
    }
    if isinstance(
        taken.failure, NoGainError
    ):  # what is known is known of a file that does not ship
        return Accuracy(**given, artifact=artifact)
    return Accuracy(**given, artifact=artifact, kept=_kept(taken), kernels=_kernels(taken))


def _kept(taken: Trial) -> Kept | None:
    held = taken.contract
    if held is None:
        return None
    return Kept(
        allowed=None if held.allowed is None else held.allowed.value,
        drop=held.drop,
        low=held.low,
        high=held.high,
        confidence=held.confidence,
        samples=held.samples,
        met=held.met,
        unit=held.unit,
        margin=held.margin,
        parts=_parts(taken, held.drop),
    )


def _parts(taken: Trial, drop: float) -> tuple[Part, ...]:
    """The steps in which the score dropped; what the kernels add is what is left of the drop."""
    metric, ladder, file = taken.made.metric, taken.made.ladder, taken.after.accuracy
    if metric is None or file is None or "before" not in ladder:
        return ()
    original, network = ladder["before"], list(ladder.values())[-1]
    compression = metric.drop(original, network)
    whole = metric.drop(original, file)  # a share of the original's figure, as the drop itself is
    parts = [
        Part(step="compression", drop=compression),
        Part(step="emission", drop=whole - compression),
    ]
    counted = taken.kernels is not None and taken.goal.device.rounds_like_reference
    return (*parts, Part(step="kernels", drop=drop - whole)) if counted else tuple(parts)


def _kernels(taken: Trial) -> Kernels | None:
    found = taken.kernels
    if found is None:
        return None
    return Kernels(
        reference=found.reference,
        optimised=found.optimised,
        samples=found.samples,
        counted=taken.goal.device.rounds_like_reference,
    )


def _filters(made: Compressed) -> tuple[Filters, ...]:
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


def _as_it_was(layer: Layer, failure: str) -> Layer:
    """The layer as it is in the original, with what was tried and why it does not ship."""
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
    selection = made.state.fact(Selection)
    spaces = {space.op.name: space for space in made.design.spaces}
    rows = {}
    for choice in selection.chosen:
        whole = spaces[choice.layer].whole
        rows[choice.layer] = Layer(
            name=choice.layer,
            kind=spaces[choice.layer].op.kind,
            method=choice.method,
            rank=choice.ranks or None,
            params_before=whole.params,
            params_after=choice.params,
            macs_before=whole.macs,
            macs_after=choice.macs,
            similarity=1 - choice.error if choice.method is not None else None,
            reason=selection.reasons.get(choice.layer),
        )
    for name, reason in made.design.skipped.items():
        op = made.state.original.op(name)
        cost: dict[str, Any] = totals_of(made.state.original, name)
        left: dict[str, Any] = totals_of(made.trainable, name)
        rows[name] = Layer(
            name=name,
            kind=op.kind,
            params_before=cost["params"],
            params_after=left["params"],
            macs_before=cost["macs"],
            macs_after=left["macs"],
            reason=reason,
        )
    if filters is not None:
        for name, (before, after) in filters.left(selection.removed).items():
            if name in rows:
                why = filters.refused.get(name) if before == after else None
                rows[name] = rows[name].model_copy(
                    update={"filters_before": before, "filters_after": after, "filters_reason": why}
                )
    return tuple(rows[op.name] for op in made.state.original.layers() if op.name in rows)
