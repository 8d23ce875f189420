"""From a compressed graph to a file that is known: emitted, verified, measured beside the original, and held against what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrfc.config.build import BuildConfig
from lrfc.costs.totals import totals
from lrfc.data.counts import CALIBRATED, CHECKED
from lrfc.engine.benchmark import Bench
from lrfc.engine.destinations import Destination
from lrfc.engine.op_costs import op_profile
from lrfc.engine.reference_kernels import Kernels, kernels
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
from lrfc.results.manifest import Figures, FloatOriginal, Latency
from lrfc.results.op_costs import OpProfile
from lrfc.results.verdict import MARGIN, asked, exact
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.speed import Ratio, speedup
from lrfc.targets.parity import Parity, parity

#: What brings no gain, by --prune.
NOT_FASTER = {
    "off": "no factorization of a layer is faster than the layer itself",
    "on": (
        "no factorization of a layer is faster than the layer itself, and cutting filters makes"
        " nothing faster"
    ),
    "only": "cutting filters makes nothing faster",
}


@dataclass(frozen=True)
class Compressed:
    """A compressed graph (``state.graph``, BatchNorms folded) and what is known about it before it is emitted.

    ``trainable`` is the same with its BatchNorms, for model.keras: it can be trained further, and
    stays clear of a crash of TensorFlow 2.21 on folded 1×1 convolutions with a residual addition.
    ``shipped`` is what the file is made of: the graph, with biases that make good what rounding
    does to the weights of an integer file. ``metric``: what the ladder counts in; None where
    nothing can be claimed.
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
    """A build as a file, before it is put into an output folder.

    ``speedup``: above 1 when the new file is faster than the original's of the same precision;
    ``float_original``: the original's in fp32, None where that is the same file. ``failure``: why
    it does not end well: a budget or the accuracy contract is not met, or nothing is gained.
    ``compiled``: the original's file and this one as the device takes them; None where it takes
    them as they are.
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


def try_out(
    made: Compressed, goal: Destination, bench: Bench, plan: Plan, folder: Path, looks: int = 1
) -> Trial:
    """The file of a build, in that folder.

    ``looks``: how many have been held against the same test samples, this one included.

    ParityError when the emitted file does not compute what the graph computes.
    """
    data, target = made.state.data, goal.target
    calibration = data.train.head(CALIBRATED).inputs
    original = target.emit(made.original, folder / f"original{target.suffix}", calibration)
    emitted = _emitted(made, target, folder / f"{made.source.stem}{target.suffix}", calibration)
    checked = data.validation.head(CHECKED).inputs
    found = parity(
        emitted, target.load(emitted), checked, keras_io.predict(made.state.graph, checked)
    )
    files, graphs = [original, emitted], [made.original, made.state.graph]
    if target.precision != "fp32" and bench.no_float is None:
        files, graphs = [*files, bench.in_float], [*graphs, made.original]
    measured = bench.measure(files, graphs)
    ratio = speedup(*measured[:2])
    scores: tuple[float | None, float | None] = (None, None)
    promise = rounded = None
    if made.metric is not None:
        reference: Batch = keras_io.predict(made.state.original, data.test.inputs)
        outputs = [target.load(file)(data.test.inputs) for file in (original, emitted)]
        scores = made.metric.score(outputs[0], data.test), made.metric.score(outputs[1], data.test)
        promise = held(made.metric, data.test, reference, outputs[1], plan.max_drop, looks=looks)
        rounded = _rounded(made, emitted, outputs[1])
        if rounded is not None and goal.device.rounds_like_reference:
            promise = promise.then(rounded.change)
    before = _figures(made.original, original, measured[0], scores[0])
    after = _figures(made.state.graph, emitted, measured[1], scores[1])
    failure = _loss(made, goal, before, after, ratio) or _unmet(made, promise, before, after)
    kept = measured[0] if isinstance(failure, NoGainError) else measured[1]
    in_float = None if target.precision == "fp32" else _float_original(bench, measured, kept)
    ops = op_profile(bench, made.original, made.state.graph, (original, emitted))
    compiled = bench.compiled(original), bench.compiled(emitted)
    return Trial(
        made,
        goal,
        plan,
        original,
        emitted,
        found,
        ratio,
        in_float,
        before,
        after,
        promise,
        rounded,
        failure,
        ops,
        compiled,
    )


def _emitted(made: Compressed, target: Target, path: Path, calibration: Batch) -> Artifact:
    """The file, with the ranges of its training where it was trained with its rounding and the converter takes them."""
    trained = made.state.known(QuantizedModel)
    if trained is not None:
        try:
            file = target.emit_trained(made.shipped, trained.model, path)
        except ModelError as error:
            made.state.progress.log(
                f"  not written with the ranges of its training, quantised as it is: {error}"
            )
        else:
            if file is not None:
                return file
    return target.emit(made.shipped, path, calibration)


def _rounded(made: Compressed, file: Artifact, outputs: Batch) -> Kernels | None:
    """The file by the reference kernels, where they run it."""
    assert made.metric is not None
    try:
        return kernels(
            file, made.metric, made.state.data.test, outputs, totals(made.state.graph)["macs"]
        )
    except ModelError as error:
        made.state.progress.log(f"  not run by LiteRT's reference kernels: {error}")
        return None


def _figures(graph: Graph, file: Artifact, measured: Measurement, score: float | None) -> Figures:
    sums = totals(graph)
    return Figures(
        params=sums["params"],
        macs=sums["macs"],
        file_bytes=file.bytes,
        arena_bytes=profile(graph, file.precision).arena_bytes,
        accuracy=score,
        latency_ms=_latency(measured),
        peak_rss_bytes=measured.peak_rss_bytes,
        cycles=measured.cycles,
        sram_bytes=measured.sram_bytes,
        flash_bytes=measured.flash_bytes,
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
    bench: Bench, measured: Sequence[Measurement], kept: Measurement
) -> FloatOriginal:
    """The original in fp32, the last of what was measured, beside the file that is ``kept``."""
    if bench.no_float is not None:
        return FloatOriginal(reason=bench.no_float)
    whole = measured[-1]
    return FloatOriginal(
        file_bytes=bench.in_float.bytes,
        latency_ms=_latency(whole),
        speedup=recorded(speedup(whole, kept)),
    )


def recorded(ratio: Ratio) -> Speedup:
    """The speed-up as the manifest has it: an interval only of what was measured."""
    if ratio.source != MEASURED:
        return Speedup(median=ratio.median, source=ratio.source)
    return Speedup(median=ratio.median, low=ratio.low, high=ratio.high)


def _loss(
    made: Compressed, goal: Destination, before: Figures, after: Figures, ratio: Ratio
) -> NoGainError | None:
    selection = made.state.fact(Selection)
    if not selection.keeps and all(choice.method is None for choice in selection.chosen):
        return NoGainError(
            f"no gain: on {goal.device.name} {NOT_FASTER[made.config.prune]}; the original was"
            " kept; --objective size, macs or ram, or a budget, makes it smaller where that is"
            " worth more than time"
        )
    # An NPU stores what its compiler makes of the file.
    was, stored = (
        each.file_bytes if each.flash_bytes is None else each.flash_bytes
        for each in (before, after)
    )
    assert was is not None
    assert stored is not None
    if stored >= was:
        where = "" if after.flash_bytes is None else " in flash"
        return NoGainError(
            f"no gain: the compressed file has {stored:,} bytes{where}, the original's {was:,}; the"
            " original was kept"
        )
    if ratio.high < 1 - MARGIN:
        sure = f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.source == MEASURED else ratio.source
        return NoGainError(
            f"no gain: the compressed file runs at {ratio.median:.2f} times the original's speed"
            f" ({sure}); the original was kept"
        )
    return None


def _unmet(
    made: Compressed, promise: Contract | None, before: Figures, after: Figures
) -> BudgetError | None:
    problems = [
        f"{each.option}: {exact(each.quantity, each.value)} of at most"
        f" {exact(each.quantity, each.bound)}"
        for each in asked(made.config.budgets, before, after)
        if not each.met
    ]
    if promise is not None and made.metric is not None and not promise.met:
        problems.append(
            f"--max-drop {promise.allowed}: the {made.metric.name} got worse by {promise}"
        )
    return (
        BudgetError(f"not met: {'; '.join(problems)}; the best effort was saved")
        if problems
        else None
    )
