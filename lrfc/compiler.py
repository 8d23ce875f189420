"""The straight line from a trained model to measured files: load, rewrite, emit, verify, measure, report."""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

from lrfc import artifact
from lrfc import config as options_
from lrfc import front as front_
from lrfc.bench import Bench, NPUBench
from lrfc.config import Budget, BuildConfig
from lrfc.data import Data, load_data
from lrfc.destinations import HOST, Destination, destinations
from lrfc.draft import Build, Draft, draft
from lrfc.errors import LrfcError, ModelError, NoGainError, UsageError
from lrfc.explore import Loop, Settled, Wish
from lrfc.ir import keras_io, keras_load
from lrfc.ir.graph import Graph
from lrfc.metrics import Metric, metric
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune
from lrfc.passes.fold_batchnorm import FoldBatchNorm, fold_batchnorm
from lrfc.passes.price_layers import PriceLayers
from lrfc.passes.profile import Profile, profile
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import DesignSpace, ExploreLayers, Selection, SelectRanks, costs
from lrfc.pipeline import name_of, plan, run
from lrfc.search.candidates import selected
from lrfc.search.measurements import Store
from lrfc.search.store import place
from lrfc.ship import Result, ship
from lrfc.state import Artifact, Pass, Progress, State
from lrfc.survey import SHARES, Survey
from lrfc.targets import device as devices
from lrfc.targets.measure import Measurement
from lrfc.targets.runners import runner


def build(
    model: Any,
    *,
    target: str | Sequence[str] | None = None,
    device: str | Sequence[str] | None = None,
    data: Any = None,
    test_data: Any = None,
    progress: Progress | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    **options: Any,
) -> Any:
    """Compress a model and write an output folder for each target and device.

    ``model``: path of a .keras or .h5 file, or a Keras model. ``target``: 'tflite' or 'onnx', or several; ``device``: the name of a device profile, or
    several. By default the device is this machine, and the target the first that the device runs. ``data``: what the command line takes, or arrays, a
    dict or a function (see lrfc.data.load_data). ``options``: the fields of lrfc.config.BuildConfig, budgets as on the command line
    (``max_macs="50%"``). ``on_result`` is called with each Result as soon as its folder is written.

    Returns the Result, or a tuple of them when ``target`` or ``device`` is a sequence. Raises a subclass of lrfc.errors.LrfcError; BudgetError and
    NoGainError carry the results, whose folders are written all the same.
    """
    single = not any(isinstance(each, Sequence) and not isinstance(each, str) for each in (target, device))
    names, devices = _several(target), _several(device)
    told = [None if each is None else str(each) if isinstance(each, str | Path) else "(from Python)" for each in (data, test_data)]
    goals = destinations(names, devices, options.get("precision"), options.get("threads"))
    config = options_.parse(targets=names, devices=devices, data=told[0], test_data=told[1], **options)
    folders = _folders(model, goals, config.out)
    log: list[str] = []
    progress = _tee(progress or Progress(), log)
    with ExitStack() as stack:
        source, graph = _load(model, unsafe=config.unsafe_load)
        _refuse(graph, [goal.target for goal in goals], config)
        samples = load_data(data, graph, test=test_data, seed=config.seed)
        for note in samples.notes:
            progress.log(note)
        results = []
        try:
            line = _Line(source, config, goals, samples, progress, log)
            state = line.explored(graph)
            for goal, folder in zip(goals, folders, strict=True):
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lrfc-")))
                with _bench(goal, state, scratch) as bench:
                    drafts, taken = line.drafted(state, goal, bench, scratch)
                results.append(ship(drafts, taken, folder, log))
                on_result(results[-1])
        except _Stop:
            return None if single else ()
    failures = [result.failure for result in results if result.failure is not None]
    given: Any = results[0] if single else tuple(results)
    if failures:
        worst = min(failures, key=lambda failure: failure.exit_code)
        worst.result = given
        raise worst
    return given


def explore(
    model: Any, *, data: Any = None, device: str | None = None, over: Sequence[str] = ("macs",), points: int = 24, out: Path | str | None = None,
    progress: Progress | None = None, **options: Any,
) -> Survey:  # fmt: skip
    """Weigh every method and rank of every layer, without building anything, and write the folder of the exploration.

    ``over``: what the Pareto front of pareto.json is drawn over, besides the predicted divergence ('macs', 'params', 'ram', 'latency'). ``device``: the
    one that latencies are predicted for by its cost profile, without measuring; this machine when ``over`` asks for them. ``options``: methods, keep, only,
    precision, threads, rank_multiple, seed, resume, unsafe_load as for ``build``. The folder is MODEL-explore by default.
    """
    config = options_.parse(**options)
    front_.check(over)
    (goal, *_) = destinations((), _several(device), config.precision, config.threads)
    progress = progress or Progress()
    folder = Path(out) if out is not None else Path(f"{Path(model).stem if isinstance(model, str | Path) else model.name}-explore")
    artifact.check(folder.expanduser().absolute())
    source, graph = _load(model, unsafe=config.unsafe_load)
    _refuse(graph, (), config)
    samples = load_data(data, graph, seed=config.seed)
    for note in samples.notes:
        progress.log(note)
    state = run(State(graph, graph, samples, config.seed, progress), plan([Canonicalise()]))
    start = time.perf_counter()
    state = run(replace(state, original=state.graph), plan([_exploration(config, config.rank_multiple or goal.device.rank_multiple)]))
    if not state.fact(DesignSpace).spaces:
        raise ModelError(f"no layer of model '{graph.name}' can be made smaller: {_reasons(state.fact(DesignSpace))}")
    if device is not None or "latency" in over:
        prices, begins = goal.profile()
        progress.log(begins or f"latencies are predicted for {goal.device.name}, not measured")
        state = run(state, plan([PriceLayers(prices, slower=True)], known=(DesignSpace,)))
    seconds = time.perf_counter() - start
    found = Survey(
        source.name,
        costs(state),
        state.fact(DesignSpace),
        tuple(over),
        front_.front(state, over, points),
        front_.by_method(state, points, SHARES),
        seconds,
        samples.synthetic,
    )
    found.write(folder)
    return found


def inspect(model: Path | str, *, unsafe: bool = False, precision: str = "fp32") -> Profile:
    """Costs of each op of a model file and of the whole."""
    graph = keras_io.from_keras(keras_load.load(model, unsafe=unsafe))
    return profile(graph, precision)


def measure(files: Sequence[Path], *, device: str | Path = HOST, threads: int | None = None, runs: int = 200) -> tuple[Measurement, ...]:
    """Latency and memory of emitted files on a device (a name, or a .toml), interleaved; the first is the baseline. Threads: by default the device's."""
    chosen = devices.load(device)
    formats = {".tflite": "tflite", ".onnx": "onnx"}
    artifacts = []
    for file in map(Path, files):
        if not file.is_file():
            raise UsageError(f"{file}: no such file")
        if file.suffix not in formats:
            raise UsageError(f"{file} is neither a .tflite nor an .onnx file; emit one with lrfc build")
        if formats[file.suffix] not in chosen.formats:
            raise UsageError(f"device '{chosen.name}' runs {' and '.join(chosen.formats)} files, not {file}")
        artifacts.append(Artifact(file, formats[file.suffix], "fp32"))
    with runner(chosen) as there:
        return there.compare(artifacts, threads=threads or chosen.threads, runs=runs)


# -- the line ----------------------------------------------------------------------------------------------------------------------


def _several(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))


def _folders(model: Any, goals: Sequence[Destination], out: Path | None) -> list[Path]:
    """The output folder of each destination; UsageError, before any work, when one may not be replaced."""
    if out is None:
        out = Path(f"{Path(model).stem if isinstance(model, str | Path) else model.name}-lrfc")
    folders = [out] if len(goals) == 1 else [out / goal.name for goal in goals]
    for folder in folders:
        artifact.check(folder.expanduser().absolute())
    return folders


def _load(model: Any, *, unsafe: bool) -> tuple[Path, Graph]:
    if isinstance(model, str | Path):
        return Path(model), keras_io.from_keras(keras_load.load(model, unsafe=unsafe))
    return Path(f"{model.name}.keras"), keras_io.from_keras(model)


def _refuse(graph: Graph, targets: Sequence[Any], config: BuildConfig) -> None:
    """Everything that stands in the way, before any work."""
    reasons = [f"{target.name}: {reason}" for target in targets for reason in target.refusals(graph)]
    if reasons:
        raise ModelError(f"model '{graph.name}' cannot be emitted: {'; '.join(reasons)}")
    names = [op.name for op in graph]
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(f"{option} {pattern}: no layer has such a name; lrfc inspect lists the layers")
    layers = list(selected(graph, config.keep, config.only))
    if not layers:
        raise ModelError(f"model '{graph.name}' has no convolution and no fully connected layer, so there is nothing to factorize")
    if all(reason is not None for _, reason in layers):
        raise UsageError("--keep and --only leave no layer to factorize; lrfc inspect lists the layers")


def pipeline(config: BuildConfig, select: SelectRanks) -> tuple[Pass, ...]:
    """The passes after exploration, in order. Each comment says why it stands where it stands."""
    return (
        # One choice per layer, once every layer's choices are known.
        select,
        Factorize(),
        # The statistics of the original no longer fit; wrong ones would cost the fine-tune its first epochs.
        RecalibrateBatchNorm(),
        # In closed form what can be, before gradients start from there.
        Refit(),
        *([_finetune(config)] if config.epochs else []),
    )


def _finetune(config: BuildConfig) -> FineTune:
    # A killed build goes on after the last epoch, as its exploration does.
    kept = place().parent / "finetune" if config.resume else None
    return FineTune(epochs=config.epochs, time_budget=config.time_budget, augment=config.augment, metric=config.metric, checkpoints=kept)


def _exploration(config: BuildConfig, multiple: int = 1) -> ExploreLayers:
    return ExploreLayers(methods=config.methods, keep=config.keep, only=config.only, rank_multiple=multiple, cached=config.resume)


@contextmanager
def _bench(goal: Destination, state: State, folder: Path) -> Iterator[Bench]:
    """The device of a destination, ready to measure; left as it was at the end."""
    profile, note = goal.profile()
    if note is not None:
        state.progress.log(note)
    with ExitStack() as stack:
        reached = None if goal.device.reach.kind == "analytic" else stack.enter_context(runner(goal.device))
        kind = NPUBench if goal.device.reach.kind == "vela" else Bench
        few = tuple(x[:8] for x in state.data.train.inputs)
        store = Store(log=state.progress.log)
        yield kind(goal.target, goal.device, reached, profile, state.original, few, goal.threads, folder, store)


class _Line:
    """The straight line of one build: what is done once, and what is done for each destination."""

    def __init__(self, source: Path, config: BuildConfig, goals: Sequence[Destination], data: Data, progress: Progress, log: Sequence[str]) -> None:
        if data.synthetic and config.epochs:
            progress.log("no data: calibrated and refitted on synthetic inputs, not fine-tuned, and nothing is claimed about accuracy")
            config = config.model_copy(update={"epochs": 0})
        if data.few:
            config = config.model_copy(update={"epochs": 0})
        self._source, self._config, self._data, self._progress = source, config, data, progress
        # Ranks that no device computes at once are of no use; with several devices, those that suit all of them.
        multiple = config.rank_multiple or gcd(*(goal.device.rank_multiple for goal in goals))
        # Exact folds first: everything after them sees one normal form, and it is the original that all else is compared with.
        self._first: list[Pass] = [Canonicalise(), _exploration(config, multiple)]
        known = {name_of(step) for step in (*self._first, *pipeline(config, SelectRanks()), FineTune(), FoldBatchNorm())}
        for name in (*config.print_after, *([config.stop_after] if config.stop_after else [])):
            if name not in known:
                raise UsageError(f"no pass is named '{name}'; they are {', '.join(sorted(known))}")
        self._ladder: dict[str, float] = {}
        self._metric: Metric | None = None
        self._made: dict[tuple[object, ...], Build] = {}
        self._allowed: float | None = None
        self._seconds = 0.0

    def explored(self, graph: Graph) -> State:
        """The canonical graph with its DesignSpace."""
        config, progress = self._config, self._progress
        state = run(State(graph, graph, self._data, config.seed, progress), plan(self._first[:1]), self._after)
        state = replace(state, original=state.graph)
        self._metric = None if self._data.synthetic else metric(config.metric, state.original, self._data.test)
        self._rung("before", state)
        start = time.perf_counter()
        state = run(state, plan(self._first[1:]), self._after)
        self._seconds = time.perf_counter() - start
        design = state.fact(DesignSpace)
        if not design.spaces:
            raise ModelError(f"no layer of model '{graph.name}' can be made smaller: {_reasons(design)}")
        progress.log(f"  {design.size:,} candidates, {design.undominated:,} of them not dominated")
        return state

    def drafted(self, state: State, goal: Destination, bench: Bench, folder: Path) -> tuple[list[Draft], Draft]:
        """The files of a destination that were held against the accuracy contract, and the one to ship.

        Where the contract fails and an objective was followed, the divergence that is allowed shrinks as the drop was too large, so that rank goes
        back to the layers with the most effect on the output, and all is done once more.
        """
        drafts: list[Draft] = []
        while True:
            number = len(drafts) + 1
            place = folder / str(number)
            place.mkdir()
            made, settled = self.compressed(state, goal, bench)
            drafts.append(draft(made, goal, bench, settled, place, looks=number))
            held = drafts[-1].contract
            if held is None or held.met or self._allowed is None or number == ATTEMPTS:
                break
            assert held.allowed is not None
            lost = held.drop if held.allowed.confidence is None else held.high
            self._allowed *= min(0.7, max(0.3, held.allowed.value / lost))
            self._progress.log(f"the emitted file lost {held}, {held.allowed} is allowed: rank is given back, attempt {number + 1} of {ATTEMPTS}")
        useful = [each for each in drafts if not isinstance(each.failure, NoGainError)] or drafts
        return drafts, min(useful, key=lambda each: (each.failure is not None, 0.0 if each.contract is None else each.contract.drop))

    def compressed(self, state: State, goal: Destination, bench: Bench) -> tuple[Build, Settled]:
        """The compressed graph for a destination and all that is known about it. Destinations for which the same is chosen share it."""
        config, design = self._config, state.fact(DesignSpace)
        settled = Loop(state, goal.target, bench, bench.profile).settle(self._wish(state, goal, bench), self._allowed)
        self._allowed = settled.allowed
        state = run(settled.state, plan([settled.select], known=(DesignSpace,)), self._after)
        rest = pipeline(config, settled.select)[1:]
        key = tuple((c.layer, c.method, c.ranks) for c in state.fact(Selection).chosen)
        if key not in self._made:
            state = run(state, plan(rest, known=(DesignSpace, Selection)), self._after)
            trainable = state.graph
            # Last, because BatchNorm has to be there as long as statistics are estimated or weights trained.
            state = run(state, plan([FoldBatchNorm()]), self._after)
            self._made[key] = Build(
                self._source, config, state, trainable, fold_batchnorm(state.original), design, dict(self._ladder), self._metric, self._seconds
            )
        return self._made[key], settled

    def _wish(self, state: State, goal: Destination, bench: Bench) -> Wish:
        """The user's budgets, and the limits of the device where the original breaks them."""
        config = self._config
        objective = config.objective or (None if config.budgets else "latency")
        if objective == "cycles" and bench.profile.unit != "cycles":
            raise UsageError(f"--objective cycles: device '{goal.device.name}' is timed in milliseconds; take --objective latency")
        drop = config.max_drop if config.max_drop is not None or objective is None else options_.DEFAULT_DROP
        arena = profile(fold_batchnorm(state.original), goal.target.precision).arena_bytes
        return Wish(
            SelectRanks(config.max_macs, config.max_params, config.methods, config.max_latency),
            _tightest(config.max_size, goal.device.flash_bytes, bench.original.bytes),
            _tightest(config.max_ram, goal.device.ram_bytes, arena),
            objective,
            drop,
            config.metric,
        )

    def _after(self, step: Pass, state: State) -> None:
        if name_of(step) in self._config.print_after:
            self._progress.log(str(state.graph))
        if name_of(step) in RUNGS:
            self._rung(RUNGS[name_of(step)], state)
        if name_of(step) == self._config.stop_after:
            raise _Stop

    def _rung(self, name: str, state: State) -> None:
        """Put the score of the network as it stands on the ladder."""
        if self._metric is not None:
            self._ladder[name] = self._metric.score(keras_io.predict(state.graph, self._data.test.inputs), self._data.test)
            self._progress.log(f"  {self._metric.name} {self._metric.shown(self._ladder[name])}")


class _Stop(Exception):  # noqa: N818  not an error
    """The user asked to stop after this pass."""


#: Builds that are held against the accuracy contract at most.
ATTEMPTS = 3

#: Pass → its rung on the ladder of accuracies.
RUNGS = {"Factorize": "factorized", "RecalibrateBatchNorm": "recalibrated", "Refit": "refitted", "FineTune": "finetuned"}


def _tightest(budget: Budget | None, limit: int | None, original: int) -> Budget | None:
    """The tighter one of the user's budget and the device's limit, which counts where the original breaks it."""
    given = [] if budget is None else [budget.limit(original)]
    given += [limit] if limit is not None and original > limit else []
    return budget if len(given) < 2 and budget is not None else Budget(value=min(given), relative=False) if given else None


def _reasons(design: DesignSpace) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in design.skipped.items())


def _tee(progress: Progress, log: list[str]) -> Progress:
    def write(line: str) -> None:
        log.append(line)
        progress.log(line)

    return Progress(progress.stage, write)


__all__ = ["LrfcError", "Result", "build", "explore", "inspect", "measure", "pipeline"]
