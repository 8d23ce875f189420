"""The output folder of a build: the emitted file, its manifest, tables and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrfc.data.counts import CHECKED
from lrfc.engine.candidate import Compressed, Trial
from lrfc.engine.record import Shipped, layers_of, manifest_of
from lrfc.errors import BudgetError, NoGainError
from lrfc.ir.keras import io as keras_io
from lrfc.ir.whole_attention import with_attention
from lrfc.passes.canonicalise import AttentionLayers
from lrfc.protocols import Artifact
from lrfc.results import candidates as choices
from lrfc.results import folder as files
from lrfc.results.manifest import File, Manifest
from lrfc.results.report import page
from lrfc.search.facts import DesignSpace, Price
from lrfc.search.memory import PlanMemory
from lrfc.search.pareto import Point, by_ram, front
from lrfc.system.spans import span
from lrfc.targets.devices.speed import Ratio
from lrfc.targets.parity import parity


@dataclass(frozen=True)
class Result:
    """A written output folder.

    ``speedup``: above 1 when the new file is faster than the original's of the same precision; its
    ``source`` says whether it was measured. ``failure``: the error with which the build ends
    although the folder is written: a budget that is not met, or no gain. Without a gain the folder
    holds the original's file.
    """

    out: Path
    manifest: Manifest
    speedup: Ratio
    failure: BudgetError | NoGainError | None = None

    @property
    def artifact(self) -> Path:
        """The emitted file."""
        return self.out / self.manifest.artifacts[0].path


@span("output folder")
def ship(
    trials: Sequence[Trial], taken: Trial, place: files.Reserved, log: Sequence[str]
) -> Result:
    """Write the output folder of a destination, with ``taken``, one of its ``trials``."""
    with place.writing() as work:
        file = taken.emitted if taken.gained else taken.original
        emitted = replace(taken.emitted, path=work / taken.emitted.path.name)
        shutil.copyfile(file.path, emitted.path)
        shipped = _shipped(taken, emitted)
        artifacts = _artifacts(taken, shipped, emitted, work)
        manifest = manifest_of(trials, taken, shipped, artifacts)
        manifest.write(work)
        manifest.write_layers(work)
        choices.write(
            work,
            _considered(taken.made, taken.plan.design).spaces,
            {layer.name: (layer.method, tuple(layer.rank or ())) for layer in shipped.layers},
        )
        taken.ops.write(work)
        fronts = json.dumps({"schema_version": 1, **_fronts(taken)}, indent=2)
        (work / "pareto.json").write_text(fronts + "\n", encoding="utf-8")
        (work / "log.txt").write_text("\n".join(log) + "\n", encoding="utf-8")
        page.write(work)
    return Result(place.out, manifest, taken.speedup, taken.failure)


def _shipped(taken: Trial, emitted: Artifact) -> Shipped:
    """The trial's network; without a gain the original, whose file is then the emitted one."""
    made, layers = taken.made, layers_of(taken)
    if taken.gained:
        return Shipped(made.trainable, taken.after, taken.parity, layers)
    original = made.state.original
    samples = made.state.data.validation.head(CHECKED).inputs
    expected = keras_io.predict(original, samples)
    difference = parity(emitted, taken.goal.target.load(emitted), samples, expected)
    return Shipped(original, taken.before, difference, layers)


def _artifacts(taken: Trial, shipped: Shipped, emitted: Artifact, work: Path) -> list[File]:
    """Write the compiled file and model.keras beside the emitted file; the records of all."""
    target, kind = taken.goal.target, taken.goal.device.connection.kind
    scales = target.scales(emitted.path) if taken.made.config.int8_io else ()
    artifacts = [files.record(emitted.path, work, target.name, scales)]
    compiled = taken.compiled[1 if taken.gained else 0]
    if compiled is not None:
        path = work / f"{emitted.path.stem}_{kind}{emitted.path.suffix}"
        path.write_bytes(compiled)
        artifacts.append(files.record(path, work, kind))
    replaced = taken.made.state.fact(AttentionLayers).groups
    keras_io.save(with_attention(shipped.network, replaced), work / "model.keras")
    return [*artifacts, files.record(work / "model.keras", work, "keras")]


def _fronts(taken: Trial) -> dict[str, Any]:
    """The Pareto fronts over MACs, over predicted latency (ms) where known, and over memory."""
    made, plan = taken.made, taken.plan
    state = replace(made.state, graph=made.state.original)
    state = state.with_fact(_considered(made, made.design))
    fronts = {"points": front(state)}
    price = plan.state.known(Price)
    if price is not None:
        state = replace(plan.state, graph=made.state.original)
        state = state.with_fact(_considered(made, plan.design), price)
        fronts["by_latency"] = _in_ms(front(state, ("latency",)), price)
    target = taken.goal.target
    spaces, tail = state.fact(DesignSpace).spaces, target.tail_bytes(made.original)
    need = PlanMemory(made.state.original, spaces, target.precision, tail)
    fronts["by_ram"] = _in_ms(by_ram(state, need), price)
    return fronts


def _in_ms(points: Sequence[Point], price: Price | None) -> list[Point]:
    """The points with their latencies, where they have any, in milliseconds."""
    if price is None:
        return list(points)
    return [{**point, "latency": point["latency"] * price.ms_per_unit} for point in points]


def _considered(made: Compressed, design: DesignSpace) -> DesignSpace:
    """The candidates that were considered: with --prune only, each layer unchanged."""
    return design.narrowed(()) if made.config.prune == "only" else design
