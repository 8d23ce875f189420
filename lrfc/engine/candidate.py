"""Emission of a compressed graph: parity, benchmark, and the test of contract and budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lrfc.config.build import BuildConfig
from lrfc.config.precision import PRECISIONS
from lrfc.costs.totals import totals
from lrfc.data.counts import CALIBRATED, CHECKED
from lrfc.engine import original_file
from lrfc.engine.benchmark import Bench
from lrfc.engine.destinations import Destination
from lrfc.engine.memory_plans import memory_plans
from lrfc.engine.op_costs import op_profile
from lrfc.engine.patches import limit as ram_limit
from lrfc.engine.reference_kernels import Kernels, kernels
from lrfc.engine.scorer import sampled
from lrfc.engine.tuning import Plan
from lrfc.errors import BudgetError, ModelError, NoGainError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.contract import Contract, held
from lrfc.metrics.metric import Metric
from lrfc.metrics.outcome import Speedup
from lrfc.metrics.source import MEASURED
from lrfc.passes.profile import profile
from lrfc.passes.quantize_aware import QuantizedModel
from lrfc.protocols import Artifact, Target
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.results.manifest import Figures, FloatOriginal, Latency
from lrfc.results.op_costs import OpProfile
from lrfc.results.verdict import MARGIN, asked, exact
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from lrfc.system.spans import span
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.speed import Ratio, speedup
from lrfc.targets.parity import Parity, parity

#: Behind a memory budget that patches could not meet.
LEAST = ", the least of all plans that were tried, with patches"
#: The quantities that --max-ram bounds: of a microcontroller's arena, planned and measured.
ARENAS = ("arena_bytes", "arena_total_bytes")
#: The reasons for a result without gain: of ranks, and of filters.
NO_RANKS = "no factorization of a layer is faster than the layer itself"
NO_FILTERS = "cutting filters makes nothing faster"


@dataclass(frozen=True)
class Compressed:
    """A compressed graph before it is emitted: ``state.graph``, with BatchNorms folded.

    ``trainable``: the same with its BatchNorms, for model.keras. It can be trained further, and
    avoids a crash of TensorFlow 2.21 on folded 1×1 convolutions with a residual addition.
    ``shipped``: the graph that is emitted, bias-corrected for an integer precision. ``metric``:
    None where there is nothing to read an accuracy on. ``ladder``: accuracy by stage. ``seconds``:
    duration of the exploration.
    """

    source: Path
    config: BuildConfig
    state: State
    trainable: Graph
    shipped: Graph
    original: Graph
    design: DesignSpace
    ladder: Mapping[str, float]
    metric: Metric | None
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A plan that was built: its file, its measurements and its scores.

    ``speedup``: above 1 when the new file is faster than the original's of the same precision.
    ``float_original``: the original's file in fp32; None where that is the same file. ``failure``:
    a budget or the accuracy contract that is not met, or no gain. ``compiled``: the original's file
    and this one compiled for the device; None where the device runs the files themselves.
    """

    made: Compressed
    goal: Destination
    plan: Plan
    original: Artifact
    emitted: Artifact
    parity: Parity
    speedup: Ratio
    float_original: FloatOriginal | None
    before: Figures
    after: Figures
    contract: Contract | None
    kernels: Kernels | None
    failure: BudgetError | NoGainError | None
    ops: OpProfile
    compiled: tuple[bytes | None, bytes | None]

    @property
    def gained(self) -> bool:
        """Whether the file is smaller and not slower than the original's, which ships otherwise."""
        return not isinstance(self.failure, NoGainError)


def try_out(
    made: Compressed, goal: Destination, bench: Bench, plan: Plan, folder: Path, looks: int = 1
) -> Trial:
    """Emit a compressed graph into a folder, measure it, and test contract and budgets.

    ``looks``: number of trials scored on the same test samples so far, this one included.

    ParityError when the emitted file does not compute what the graph computes.
    """
    data, target = made.state.data, goal.target
    calibration = data.train.head(CALIBRATED).inputs
    # Only the ranges of activations depend on the samples, of which the bench takes a few.
    original = bench.original
    if PRECISIONS[target.precision].integer:
        original = target.emit(made.original, folder / f"original{target.suffix}", calibration)
    path = folder / f"{made.source.stem}{target.suffix}"
    limit = ram_limit(goal, made.config, original.path)

    def emit(target: Target) -> Artifact:
        return _emitted(made, target, path, calibration)

    emitted = emit(target) if limit is None else limit.emitted(target, emit)
    graphs, files = (made.original, made.state.graph), (original, emitted)
    memory = memory_plans(goal.device, target, graphs, files)
    for region in () if memory is None else memory.after.regions:
        made.state.progress.log(f"  {region.start} to {region.end}: in {region.strips} strips")
    samples = data.validation.head(CHECKED).inputs
    difference = parity(
        emitted, target.load(emitted), samples, keras_io.predict(made.state.graph, samples)
    )
    measured = _measured(made, bench, original, emitted)
    ratio = speedup(*measured[:2])
    scores = _scored(made, goal, plan, original, emitted, looks)
    before = _figures(goal, made.original, original, measured[0], scores.before)
    after = _figures(goal, made.state.graph, emitted, measured[1], scores.after)
    # Where a limit on memory was asked for, what patches save is the gain.
    spared = limit is not None and limit.asked and emitted.patches
    no_gain = None if spared else _no_gain(made, goal, plan, before, after, ratio)
    in_patches = limit is not None and limit.patches
    failure = no_gain or _unmet(made, scores.contract, before, after, in_patches=in_patches)
    shipped = measured[0] if isinstance(failure, NoGainError) else measured[1]
    in_float = None if target.precision == "fp32" else _float_original(bench, measured, shipped)
    return Trial(
        made=_confirmed(made, emitted, scores.after),
        goal=goal,
        plan=plan,
        original=original,
        emitted=emitted,
        parity=difference,
        speedup=ratio,
        float_original=in_float,
        before=before,
        after=after,
        contract=scores.contract,
        kernels=scores.kernels,
        failure=failure,
        ops=op_profile(bench, graphs, files, memory),
        compiled=(bench.compiled(original), bench.compiled(emitted)),
    )


def _measured(
    made: Compressed, bench: Bench, original: Artifact, emitted: Artifact
) -> tuple[Measurement, ...]:
    """The original's file, the emitted one, and the original's in fp32 where it is another one."""
    files, graphs = [original, emitted], [made.original, made.state.graph]
    if emitted.precision != "fp32" and bench.no_float is None:
        files, graphs = [*files, bench.in_float], [*graphs, made.original]
    return bench.measure(files, graphs)


@dataclass(frozen=True)
class _Scores:
    """Scores of the original's file and the emitted one; all None without a metric."""

    before: float | None = None
    after: float | None = None
    contract: Contract | None = None
    kernels: Kernels | None = None


@span("final test")
def _scored(
    made: Compressed,
    goal: Destination,
    plan: Plan,
    original: Artifact,
    emitted: Artifact,
    looks: int,
) -> _Scores:
    """The scores of both files on the test samples, and the accuracy contract."""
    metric, test = made.metric, made.state.data.test
    if metric is None:
        return _Scores()
    reference = keras_io.outputs(made.state.original, test.inputs)
    outputs = (
        original_file.outputs(made.state, goal.target, original),
        goal.target.load(emitted)(test.inputs),
    )
    contract = held(metric, test, reference, outputs[1], plan.max_drop, looks=looks)
    rounded = _by_reference_kernels(made, metric, emitted, outputs[1])
    if rounded is not None and goal.device.rounds_like_reference:
        contract = contract.then(rounded.change)
    return _Scores(
        metric.score(outputs[0], test), metric.score(outputs[1], test), contract, rounded
    )


def _confirmed(made: Compressed, emitted: Artifact, score: float | None) -> Compressed:
    """The network with the score of its fp32 file for its last stage, where that was estimated.

    The file computes what the network computes, and was scored on all samples.
    """
    if score is None or emitted.precision != "fp32" or sampled(made.state.data.test) is None:
        return made
    last = list(made.ladder)[-1]
    return made if last == "before" else replace(made, ladder={**made.ladder, last: score})


def _emitted(made: Compressed, target: Target, path: Path, calibration: Batch) -> Artifact:
    """Emit the graph, with the ranges of its quantisation-aware training where there are any."""
    trained = made.state.known(QuantizedModel)
    if trained is not None:
        try:
            file = target.emit_trained(made.shipped, trained.model, path)
        except ModelError as error:
            made.state.progress.log(
                "  not emitted with the ranges of its training, but quantised after training:"
                f" {error}"
            )
        else:
            if file is not None:
                return file
    return target.emit(made.shipped, path, calibration)


def _by_reference_kernels(
    made: Compressed, metric: Metric, file: Artifact, outputs: Batch
) -> Kernels | None:
    """The score of the file by the reference kernels; None where they do not run it."""
    try:
        return kernels(
            file, metric, made.state.data.test, outputs, totals(made.state.graph)["macs"]
        )
    except ModelError as error:
        made.state.progress.log(f"  LiteRT's reference kernels do not run the file: {error}")
        return None


def _figures(
    goal: Destination, graph: Graph, file: Artifact, measured: Measurement, score: float | None
) -> Figures:
    """Costs, score and latency of a file."""
    target, sums = goal.target, totals(graph)
    planned = target.arena_bytes(file.path)
    return Figures(
        params=sums["params"],
        macs=sums["macs"] + file.added_macs,
        file_bytes=file.bytes,
        arena_bytes=profile(graph, file.precision).arena_bytes if planned is None else planned,
        workspace_bytes=target.workspace_bytes(file.path) if goal.device.processor else None,
        accuracy=score,
        latency_ms=_latency(measured),
        peak_rss_bytes=measured.peak_rss_bytes,
        cycles=measured.cycles,
        sram_bytes=measured.sram_bytes,
        flash_bytes=measured.flash_bytes,
        arena_head_bytes=measured.arena_head_bytes,
        arena_tail_bytes=measured.arena_tail_bytes,
    )


def _latency(measured: Measurement) -> Latency:
    return Latency(
        p50=measured.median_ms,
        p90=measured.p90_ms,
        n=measured.n,
        threads=measured.threads,
        source=measured.source,
    )


def _float_original(
    bench: Bench, measured: Sequence[Measurement], shipped: Measurement
) -> FloatOriginal:
    """The original in fp32, the last measurement, against the file that ships."""
    if bench.no_float is not None:
        return FloatOriginal(reason=bench.no_float)
    in_float = measured[-1]
    return FloatOriginal(
        file_bytes=bench.in_float.bytes,
        latency_ms=_latency(in_float),
        speedup=recorded(speedup(in_float, shipped)),
    )


def recorded(ratio: Ratio) -> Speedup:
    """The speed-up for the manifest; only a measured one has an interval."""
    if ratio.source != MEASURED:
        return Speedup(median=ratio.median, source=ratio.source)
    return Speedup(median=ratio.median, low=ratio.low, high=ratio.high)


def _no_gain(
    made: Compressed,
    goal: Destination,
    plan: Plan,
    before: Figures,
    after: Figures,
    ratio: Ratio,
) -> NoGainError | None:
    """The error for a result that is not smaller, or surely slower, than the original."""
    selection = made.state.fact(Selection)
    if not selection.keeps and all(choice.method is None for choice in selection.chosen):
        tried = [] if made.config.prune == "only" else [NO_RANKS]
        if plan.state.known(FilterSpace) is not None:
            tried.append(NO_FILTERS)
        return NoGainError(
            f"no gain: on {goal.device.name} {', and '.join(tried)}; the original was"
            " kept; --objective size, macs or ram, or a budget, makes it smaller where that is"
            " worth more than time"
        )
    # An NPU stores the compiled file.
    old, new = (
        figures.file_bytes if figures.flash_bytes is None else figures.flash_bytes
        for figures in (before, after)
    )
    assert old is not None
    assert new is not None
    if new >= old:
        where = "" if after.flash_bytes is None else " in flash"
        return NoGainError(
            f"no gain: the compressed file has {new:,} bytes{where}, the original's {old:,}; the"
            " original was kept"
        )
    if ratio.high < 1 - MARGIN:
        interval = (
            f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.source == MEASURED else ratio.source
        )
        return NoGainError(
            f"no gain: the compressed file runs at {ratio.median:.2f} times the original's speed"
            f" ({interval}); the original was kept"
        )
    return None


def _unmet(
    made: Compressed,
    contract: Contract | None,
    before: Figures,
    after: Figures,
    *,
    in_patches: bool,
) -> BudgetError | None:
    """The error that lists the budgets, and the accuracy contract, that are not met.

    ``in_patches``: whether the file was brought as near to its memory limit as patches can.
    """
    problems = [
        f"{limit.option}: {exact(limit.quantity, limit.value)} of at most"
        f" {exact(limit.quantity, limit.bound)}"
        f"{LEAST if in_patches and limit.quantity in ARENAS else ''}"
        for limit in asked(made.config.budgets, before, after)
        if not limit.met
    ]
    if contract is not None and made.metric is not None and not contract.met:
        problems.append(
            f"--max-drop {contract.allowed}: the {made.metric.name} got worse by {contract}"
        )
    if not problems:
        return None
    return BudgetError(f"not met: {'; '.join(problems)}; the best effort was saved")
