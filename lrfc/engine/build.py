"""The work behind lrfc.api: build, explore, inspect and measure."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfc.config.build import BuildConfig
from lrfc.data.dataset import Data
from lrfc.data.load import load_data
from lrfc.engine import driver, room
from lrfc.engine.compress import Shared
from lrfc.engine.destinations import Destination, destination
from lrfc.engine.driver import reasons
from lrfc.engine.estimate import estimates
from lrfc.engine.job import Job, job_of
from lrfc.engine.package import Result, ship
from lrfc.engine.passes import exploration, pipeline, weighing
from lrfc.engine.preflight import Goal, Request
from lrfc.engine.replay import Locked
from lrfc.errors import LrfcError, ModelError, UsageError
from lrfc.ir import processor, runnable
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.ir.products import without_products
from lrfc.passes.canonicalise import Canonicalise, lower_transposed, move_channels
from lrfc.passes.price_layers import PriceLayers
from lrfc.passes.profile import Profile, profile
from lrfc.pipeline import plan, run
from lrfc.protocols import Artifact
from lrfc.results import folder as artifact
from lrfc.results.exploration import SHARES, Survey
from lrfc.results.report import exploration as page
from lrfc.results.time_profile import recorded
from lrfc.search import pareto
from lrfc.search.candidates import selected
from lrfc.search.facts import DesignSpace, costs
from lrfc.search.memory import PlanMemory
from lrfc.state import Progress, State
from lrfc.system import memory, scratch, spans
from lrfc.targets import refusals
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.runners import runner


def build(
    request: Request,
    progress: Progress | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    shown: Sequence[str] = (),
) -> Any:
    """Run a requested build; see ``lrfc.api.build``. ``shown``: the log up to here."""
    progress = progress or Progress()
    if request.locked is not None:
        return _repeated(request, request.locked, progress, on_result, shown)
    return _built(request, progress, on_result, shown)


def _repeated(
    request: Request,
    locked: Locked,
    progress: Progress,
    on_result: Callable[[Result], None],
    shown: Sequence[str],
) -> Any:
    """Repeat the build of a manifest."""
    # As in that build, unless the user has set it or TensorFlow is imported already.
    processor.decide(locked.manifest.onednn)
    differences = locked.differences()
    if differences:
        progress.log(
            f"warning: other versions than those of {locked.path}, so the bytes may differ:"
            f" {', '.join(differences)}"
        )

    def compared(result: Result) -> None:
        progress.log(locked.outcome(result.manifest))
        on_result(result)

    return _built(request, progress, compared, shown)


def _built(
    request: Request,
    progress: Progress,
    on_result: Callable[[Result], None],
    shown: Sequence[str],
) -> Any:
    """The results; BudgetError or NoGainError with them where one has a failure."""
    goals = [destination(goal) for goal in request.goals]
    log = list(shown)
    progress = _logging(progress, log)
    with ExitStack() as stack:
        stack.enter_context(_memory(request.config, progress))
        places = [stack.enter_context(artifact.reserved(folder)) for folder in request.folders]
        job, graph = _job(request, goals, progress)
        results = _results(job, graph, places, log, on_result)
    if results is None:  # stopped after a pass
        return None if request.single else ()
    value: Any = results[0] if request.single else tuple(results)
    failures = [result.failure for result in results if result.failure is not None]
    if failures:
        worst = min(failures, key=lambda failure: failure.exit_code)
        raise type(worst)(str(worst), value)
    return value


def _job(request: Request, goals: Sequence[Destination], progress: Progress) -> tuple[Job, Graph]:
    """Load the model and the data; refuse what cannot be built, before any work."""
    config = request.config
    source, graph = _load(request.model, unsafe=config.unsafe_load, log=progress.log)
    _refuse(graph, [goal.target for goal in goals], config)
    for remark in dict.fromkeys(
        remark for goal in goals for remark in refusals.remarks(graph, goal.target)
    ):
        progress.log(remark)
    data = _data(request.data, graph, progress, test=request.test_data, seed=config.seed)
    room.check(graph, len(data.train))
    if config.qat and (data.synthetic or data.few):
        raise UsageError(
            "--qat trains the network, and there is too little to train on: give --data, or leave"
            " out --qat"
        )
    for note in data.notes:
        progress.log(note)
    return job_of(source, config, goals, data, progress, request.locked), graph


def _results(
    job: Job,
    graph: Graph,
    places: Sequence[artifact.Reserved],
    log: Sequence[str],
    on_result: Callable[[Result], None],
) -> list[Result] | None:
    """The written folder of each destination; None where the build stops after a pass."""
    explored = driver.explore(job, graph)
    if explored is None:
        return None
    shared, results = Shared(), []
    for goal, place in zip(job.goals, places, strict=True):
        stage = spans.span(f"{goal.target.name} on {goal.device.name}")
        with stage, scratch.folder() as folder:
            with driver.bench_of(job, goal, explored.state, folder) as bench:
                trials = driver.trials(job, explored, goal, bench, folder, shared)
            if trials is None:
                return None
            results.append(ship(trials, driver.best(trials), place, log))
        on_result(results[-1])
    return results


@contextmanager
def _memory(config: BuildConfig, progress: Progress) -> Iterator[None]:
    """Context manager: the memory of the command, with a line in the log where it is little."""
    with memory.limited(config.memory):
        remark = memory.remark()
        if remark is not None:
            progress.log(remark)
        yield


def explore(
    model: Any,
    data: Any,
    config: BuildConfig,
    asked: Goal,
    folder: Path,
    over: tuple[str, ...],
    points: int,
    progress: Progress | None,
    *,
    priced: bool,
) -> Survey:
    """Run a requested exploration; see ``lrfc.api.explore``.

    ``priced``: predict latencies for the device.
    """
    progress = progress or Progress()
    with _memory(config, progress), artifact.reserved(folder) as place:
        survey = _explored(
            model,
            data,
            config,
            destination(asked),
            over,
            points,
            progress,
            priced=priced,
        )
        page.write(survey, place)
    return survey


def _explored(
    model: Any,
    data: Any,
    config: BuildConfig,
    goal: Destination,
    over: tuple[str, ...],
    points: int,
    progress: Progress,
    *,
    priced: bool,
) -> Survey:
    """Explore the model, with latencies in the unit of the device's cost profile."""
    source, graph = _load(model, unsafe=config.unsafe_load, log=progress.log)
    _refuse(graph, (), config)
    samples = _data(data, graph, progress, seed=config.seed)
    room.check(graph, len(samples.train))
    for note in samples.notes:
        progress.log(note)
    state = run(State(graph, graph, samples, config.seed, progress), plan([Canonicalise()]))
    start = time.perf_counter()
    multiple = config.rank_multiple or goal.device.rank_multiple
    state = run(replace(state, original=state.graph), plan([exploration(config, multiple)]))
    if not state.fact(DesignSpace).spaces:
        raise ModelError(
            f"no layer of model '{graph.name}' can be made smaller:"
            f" {reasons(state.fact(DesignSpace).skipped)}"
        )
    passes = weighing(goal.target.precision, goal.target.name, cached=config.resume)
    state = run(state, plan(passes, known=(DesignSpace,)))
    if priced:
        prices, other_profile = goal.profile()
        progress.log(
            other_profile or f"latencies are predicted for {goal.device.name}, not measured"
        )
        state = run(state, plan([PriceLayers(prices, slower=True)], known=(DesignSpace,)))
    seconds = time.perf_counter() - start
    with spans.span("Pareto fronts"):
        precision, tail = goal.target.precision, goal.target.tail_bytes(state.original)
        front = pareto.front(state, over, points, precision, tail=tail)
        fronts = pareto.by_method(state, max(4, points // 2), SHARES)
        need = PlanMemory(state.original, state.fact(DesignSpace).spaces, precision, tail)
        by_ram = pareto.by_ram(state, need)
    return Survey(
        source.name,
        costs(state),
        state.fact(DesignSpace),
        over,
        front,
        fronts,
        by_ram,
        precision,
        seconds,
        samples.synthetic,
        recorded(),
    )


def inspect(model: Any, *, unsafe: bool = False, precision: str = "fp32") -> Profile:
    """Costs of each op of a model, a file or a Keras model, and of the whole."""
    _, graph = _load(model, unsafe=unsafe)
    return profile(graph, precision)


def measure(
    files: Sequence[tuple[Path, str]], chosen: Device, threads: int | None, runs: int
) -> tuple[Measurement, ...]:
    """Measure files, each with its format, on a device; see ``lrfc.api.measure``."""
    if chosen.estimated:  # no runner: the latencies are computed
        return estimates(files, chosen, threads)
    artifacts = [Artifact(file, form, "fp32") for file, form in files]
    with runner(chosen) as device_runner:
        return device_runner.compare(artifacts, threads=threads or chosen.threads, runs=runs)


# -- parts -----------------------------------------------------------------------------------------


@spans.span("model")
def _load(
    model: Any, *, unsafe: bool, log: Callable[[str], None] = lambda line: None
) -> tuple[Path, Graph]:
    """The path and the graph of a model, a file or a Keras model."""
    if isinstance(model, str | Path):
        graph = keras_io.from_keras(keras_load.load(model, unsafe=unsafe, log=log))
        memory.trim()  # the loaded model's weights
        return Path(model), graph
    graph = keras_io.from_keras(model)
    return Path(f"{model.name}.keras"), graph


def _data(spec: Any, graph: Graph, progress: Progress, *, seed: int, test: Any = None) -> Data:
    """The samples of a build; see ``load_data``."""
    if spec is None:
        progress.log("no data are given: making up inputs")
    return load_data(spec, graph, test=test, seed=seed, stage=progress.stage)


def _refuse(graph: Graph, targets: Sequence[Any], config: BuildConfig) -> None:
    """Raise ModelError or UsageError for a model or patterns that cannot be built."""
    # Checked in the layout that is emitted: no format supports all layers with channels first, or
    # dilated and transposed.
    moved = lower_transposed(move_channels(graph))
    runnable.check(moved)
    refused = [
        f"{target.name}: {reason}" for target in targets for reason in target.refusals(moved)
    ]
    if refused:
        raise ModelError(f"model '{graph.name}' cannot be emitted: {'; '.join(refused)}")
    names = [op.name for op in graph]
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(
                    f"{option} {pattern}: no layer has such a name; lrfc inspect lists the layers"
                )
    lowered, _ = without_products(graph)
    layers = list(selected(lowered, config.keep, config.only))
    if not layers:
        raise ModelError(
            f"model '{graph.name}' has no convolution and no fully connected layer, so there is"
            " nothing to factorize"
        )
    if all(reason is not None for _, reason in layers):
        if not (config.keep or config.only):
            why = reasons({op.name: reason for op, reason in layers if reason is not None})
            raise ModelError(f"no layer of model '{graph.name}' can be made smaller: {why}")
        raise UsageError(
            "--keep and --only leave no layer to factorize; lrfc inspect lists the layers"
        )


def _logging(progress: Progress, log: list[str]) -> Progress:
    """The same progress, which also appends each line to ``log``."""

    def write(line: str) -> None:
        log.append(line)
        progress.log(line)

    return replace(progress, log=write)


__all__ = ["LrfcError", "Result", "build", "explore", "inspect", "measure", "pipeline"]
