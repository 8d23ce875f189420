"""From a compressed graph to an output folder: emit, verify, measure beside the original, and write down every number."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrfc import artifact as files
from lrfc import choices
from lrfc.bench import Bench
from lrfc.config import BuildConfig
from lrfc.destinations import Destination
from lrfc.errors import BudgetError, NoGainError
from lrfc.explore import Settled
from lrfc.front import front
from lrfc.ir import keras_io
from lrfc.ir.graph import Graph
from lrfc.manifest import Accuracy, Figures, Input, Latency, Layer, Manifest, Parity, Search
from lrfc.metrics import accuracy, classifies
from lrfc.passes.profile import profile
from lrfc.passes.select_ranks import DesignSpace, Selection, totals
from lrfc.report.page import render
from lrfc.state import Artifact, Runner, State
from lrfc.targets.measure import Measurement, Ratio, speedup
from lrfc.targets.parity import parity

#: A result counts as slower only when the whole 95 % interval of the measured ratio says so, by more than this.
MARGIN = 0.02
#: Samples of the parity check, and of the int8 calibration.
CHECKED = 64
CALIBRATED = 200


@dataclass(frozen=True)
class Build:
    """A compressed graph (``state.graph``, BatchNorms folded) and what is known about it before it is emitted.

    ``trainable`` is the same with its BatchNorms, for model.keras: it can be trained further, and stays clear of a crash of TensorFlow 2.21 on folded
    1×1 convolutions with a residual addition.
    """

    source: Path
    config: BuildConfig
    state: State
    trainable: Graph
    original: Graph
    design: DesignSpace
    ladder: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Result:
    """A written output folder. ``speedup`` is measured: above 1 when the new file is faster than the original's.

    ``failure`` is the error with which the build ends although the folder is written: a budget that is not met, or no gain (the folder then holds the
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


def ship(made: Build, goal: Destination, bench: Bench, settled: Settled, out: Path, log: Sequence[str], stack: ExitStack) -> Result:
    """Write the output folder of one destination. ParityError (and no folder) when the emitted file does not compute what the graph computes."""
    data, config, target = made.state.data, made.config, goal.target
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lrfc-")))
    calibration = tuple(x[:CALIBRATED] for x in data.train.inputs)
    with files.folder(out) as work:
        name = made.source.stem
        original = target.emit(made.original, scratch / f"{name}.{target.name}", calibration)
        emitted = target.emit(made.state.graph, work / f"{name}.{target.name}", calibration)
        checked = tuple(x[:CHECKED] for x in data.validation.inputs)
        found = parity(emitted, target.load(emitted), checked, keras_io.predict(made.state.graph, checked))
        measured = bench.measure([original, emitted], [made.original, made.state.graph])
        ratio = speedup(*measured)
        before = _figures(made.original, original, measured[0], _score(target.load(original), made))
        after = _figures(made.state.graph, emitted, measured[1], _score(target.load(emitted), made))
        failure: BudgetError | NoGainError | None = _loss(made, goal, before, after, ratio)
        plain, layers = made.trainable, _layers(made)
        if failure is not None:  # never worse: the original's file ships
            shutil.copyfile(original.path, emitted.path)
            plain, after = made.state.original, before
            found = parity(emitted, target.load(emitted), checked, keras_io.predict(plain, checked))
            layers = tuple(
                layer.model_copy(
                    update={"method": None, "rank": None, "similarity": None, "params_after": layer.params_before, "macs_after": layer.macs_before}
                    | {"reason": layer.reason or f"{layer.method} was tried; {failure}"}
                )
                for layer in layers
            )
        else:
            failure = _unmet(made, settled, before, after)
        keras_io.save(plain, work / "model.keras")
        manifest = Manifest(
            input=Input(path=str(made.source), sha256=_digest(made, work)),
            config=config.model_dump(mode="json") | {"precision": target.precision, "threads": goal.threads},
            seed=config.seed,
            versions=files.versions(),
            target=target.name,
            device=goal.device.name,
            layers=layers,
            before=before,
            after=after,
            accuracy=Accuracy(**made.ladder, artifact=after.accuracy),
            search=Search(
                candidates=made.design.size,
                undominated=made.design.undominated,
                seconds=made.seconds,
                objective=settled.objective,
                allowed_divergence=settled.allowed,
                rounds=settled.rounds,
            ),
            parity=Parity(max_abs_diff=found.max_abs_diff, samples=found.samples),
            artifacts=(files.record(emitted.path, work, target.name), files.record(work / "model.keras", work, "keras")),
        )
        manifest.write(work)
        manifest.write_layers(work)
        taken = {layer.name: (layer.method, tuple(layer.rank or ())) for layer in layers}
        choices.write(work, settled.design.spaces, taken)
        points = front(replace(made.state, graph=made.state.original).with_fact(made.design))
        (work / "pareto.json").write_text(json.dumps({"schema_version": 1, "points": points}, indent=2) + "\n", encoding="utf-8")
        (work / "report.html").write_text(render(manifest, ratio, points, str(failure) if failure else None), encoding="utf-8")
        (work / "log.txt").write_text("\n".join(log) + "\n", encoding="utf-8")
    return Result(out, manifest, ratio, failure)


def _figures(graph: Graph, file: Artifact, measured: Measurement, score: float | None) -> Figures:
    sums = totals(graph)
    return Figures(
        params=sums["params"],
        macs=sums["macs"],
        file_bytes=file.bytes,
        arena_bytes=profile(graph, file.precision).arena_bytes,
        accuracy=score,
        latency_ms=Latency(p50=measured.median_ms, p90=measured.p90_ms, n=measured.n, threads=measured.threads, estimated=measured.estimated),
        peak_rss_bytes=measured.peak_rss_bytes,
        cycles=measured.cycles,
        sram_bytes=measured.sram_bytes,
        flash_bytes=measured.flash_bytes,
    )


def _score(runner: Runner, made: Build) -> float | None:
    """The accuracy of an emitted file on the test split; None without class labels."""
    data = made.state.data
    if data.synthetic or not classifies(made.original, data.test):
        return None
    return accuracy(runner(data.test.inputs), data.test)


def _loss(made: Build, goal: Destination, before: Figures, after: Figures, ratio: Ratio) -> NoGainError | None:
    assert before.file_bytes is not None
    assert after.file_bytes is not None
    if all(choice.method is None for choice in made.state.fact(Selection).chosen):
        return NoGainError(
            f"no gain: on {goal.device.name} no factorization of a layer is faster than the layer itself; the original was kept; --objective size, macs or"
            " ram, or a budget, makes it smaller where that is worth more than time"
        )
    if after.file_bytes >= before.file_bytes:
        return NoGainError(
            f"no gain: the factorized file has {after.file_bytes:,} bytes, the original's {before.file_bytes:,}; the original was kept"
        )
    if ratio.high < 1 - MARGIN:
        return NoGainError(
            f"no gain: the factorized file runs at {ratio.median:.2f} times the original's speed ({ratio.low:.2f} to {ratio.high:.2f}); the original was kept"
        )
    return None


def _unmet(made: Build, settled: Settled, before: Figures, after: Figures) -> BudgetError | None:
    given = made.config.budgets
    problems = []
    for name, quantity in (("macs", "macs"), ("params", "params"), ("size", "file_bytes"), ("ram", "arena_bytes")):
        if name in given and getattr(after, quantity) > given[name].limit(getattr(before, quantity)):
            problems.append(f"--max-{name} {given[name]}: {getattr(after, quantity):,} of {getattr(before, quantity):,}")
    if "latency" in given and before.latency_ms is not None and after.latency_ms is not None:
        limit = given["latency"].limit(before.latency_ms.p50)
        if after.latency_ms.p50 > limit * (1 + MARGIN):
            problems.append(f"--max-latency {given['latency']}: {after.latency_ms.p50:.4g} ms of {before.latency_ms.p50:.4g} ms")
    original, drop = made.ladder.get("before"), settled.max_drop
    if drop is not None and original is not None and after.accuracy is not None and original - after.accuracy > drop + 1e-9:
        problems.append(f"--max-drop {100 * drop:.3g}pp: the accuracy fell from {100 * original:.2f} % to {100 * after.accuracy:.2f} %")
    return BudgetError(f"not met: {'; '.join(problems)}; the best effort was saved") if problems else None


def _layers(made: Build) -> tuple[Layer, ...]:
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
        rows[name] = Layer(
            name=name,
            kind=op.kind,
            params_before=cost["params"],
            params_after=cost["params"],
            macs_before=cost["macs"],
            macs_after=cost["macs"],
            reason=reason,
        )
    return tuple(rows[op.name] for op in made.state.original.layers() if op.name in rows)


def totals_of(graph: Graph, name: str) -> dict[str, int]:
    """Parameters of a layer, and the MACs of all its calls."""
    from lrfc.ir import ops

    op = graph.op(name)
    return {"params": op.params, "macs": sum(ops.macs(call, graph.input_tensors(call.name), graph.tensors(call.name)) for call in graph.calls(op))}


def _digest(made: Build, work: Path) -> str:
    """SHA-256 of the input file; of the graph's weights and text for a model that came from memory."""
    import hashlib

    if made.source.is_file():
        return files.sha256(made.source)
    digest = hashlib.sha256(str(made.state.original).encode())
    for op in made.state.original.layers():
        for weight in op.weights.values():
            digest.update(weight.tobytes())
    return digest.hexdigest()
