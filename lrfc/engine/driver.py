"""The stages of a build: functions from the graph to trials, the files that were measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lrfc.config.build import Budget
from lrfc.config.precision import PRECISIONS
from lrfc.costs.measurements import Store
from lrfc.data.counts import TIMED
from lrfc.engine import patches
from lrfc.engine.baseline import Baseline, baseline
from lrfc.engine.benchmark import Bench, NPUBench, check_operators, fallbacks
from lrfc.engine.candidate import Trial, try_out
from lrfc.engine.compress import Shared, compress
from lrfc.engine.destinations import Destination
from lrfc.engine.growth import Ram
from lrfc.engine.job import Explored, Job, advanced
from lrfc.engine.passes import canonical, exploring, filter_exploration, weighing
from lrfc.engine.ram_limit import planned
from lrfc.engine.scorer import Scorer
from lrfc.engine.tuning import Loop, Plan, Wish
from lrfc.errors import BudgetError, ModelError, NoGainError, UsageError
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.metrics.metric import metric
from lrfc.metrics.outcome import short
from lrfc.passes.profile import profile
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import run
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.statistics import repairable
from lrfc.state import State
from lrfc.system import scratch, spans
from lrfc.targets.devices.runners import runner
from lrfc.training import own, sample_weights, tensorboard

#: Most trials that are tested against the accuracy contract.
ATTEMPTS = 3
#: Most reasons that an error names for layers without a candidate, and most layers of each.
REASONS, LAYERS = 5, 3


# -- once ------------------------------------------------------------------------------------------


def explore(job: Job, graph: Graph) -> Explored | None:
    """Bring the graph to its canonical form and explore it; None where the build stops before.

    ModelError where no layer can be made smaller.
    """
    config, progress = job.config, job.progress
    # Exact rewrites first: all passes see one canonical form, and everything lossy is compared
    # with it.
    initial = State(graph, graph, job.data, config.seed, progress)
    state = advanced(job, initial, canonical(config))
    if state is None:
        return None
    state = replace(state, original=state.graph)
    for note in _cpu_fallbacks(job, state):
        progress.log(note)
    if job.locked is not None:
        job.locked.check(job.source, state.original)
    if config.training == "compiled" and config.finetunes:
        own.check(state.original, job.data)
    if config.class_weights == "balanced" and config.finetunes:
        sample_weights.balanced(job.data.train.targets)
    if config.log_dir is not None:
        tensorboard.prepare(config.log_dir)
    scorer = None
    if job.data.judged:
        figure = metric(config.metric, state.original, job.data.test)
        scorer = Scorer(figure, job.data.test, state.original, progress.log)
    ladder = {} if scorer is None else {"before": scorer.before}
    start = time.perf_counter()
    state = advanced(job, state, exploring(config, job.goals, job.locked, state))
    seconds = time.perf_counter() - start
    if state is None:
        return None
    _check_candidates(job, state, graph.name)
    design = state.fact(DesignSpace)
    progress.log(f"  {design.size:,} candidates, {design.undominated:,} of them not dominated")
    return Explored(state, scorer, ladder, seconds)


def _cpu_fallbacks(job: Job, state: State) -> Iterator[str]:
    """A line for each NPU that cannot run all ops of the original.

    DeviceError for a microcontroller that cannot.
    """
    for goal in job.goals:
        if goal.device.measures_arena:
            with scratch.folder() as folder:
                inputs = job.data.train.inputs
                check_operators(goal.target, goal.device, state.original, inputs, folder)
        if goal.device.tells_ops:
            with scratch.folder() as folder:
                inputs = job.data.train.inputs
                note = fallbacks(goal.target, goal.device, state.original, inputs, folder)
            if note is not None:
                yield note


def _check_candidates(job: Job, state: State, name: str) -> None:
    """Raise ModelError where no layer has a candidate and no filters can be cut."""
    design, filters = state.fact(DesignSpace), state.known(FilterSpace)
    only = job.config.prune == "only"
    factorizable = bool(design.spaces) and not only
    if not factorizable and (filters is None or not filters.choices):
        why = reasons({} if only else design.skipped, {} if filters is None else filters.refused)
        raise ModelError(f"no layer of model '{name}' can be made smaller: {why}")


# -- for each destination --------------------------------------------------------------------------


@contextmanager
def bench_of(job: Job, goal: Destination, state: State, folder: Path) -> Iterator[Bench]:
    """Open the device of a destination for benchmarks, and close it at the end."""
    profile, note = goal.profile()
    if note is not None:
        state.progress.log(note)
    with ExitStack() as stack:
        connected = None if goal.device.estimated else stack.enter_context(runner(goal.device))
        kind = NPUBench if goal.device.tells_ops else Bench
        yield kind(
            target=goal.target,
            device=goal.device,
            runner=connected,
            profile=profile,
            original=state.original,
            calibration=state.data.train.head(TIMED).inputs,
            threads=goal.threads,
            folder=folder,
            store=Store(log=state.progress.log),
            ram=ram_of(job, goal),
        )


def trials(
    job: Job,
    explored: Explored,
    goal: Destination,
    bench: Bench,
    folder: Path,
    shared: Shared,
) -> tuple[Trial, ...] | None:
    """The trials of a destination; the last one alone may meet the accuracy contract.

    None where the build stops before the first.
    """
    original = _baseline(job, explored, goal, folder, shared)

    def attempt(number: int, allowed: float | None) -> Trial | None:
        own_folder = folder / str(number)
        own_folder.mkdir()
        weighed = _weighed(job, explored, goal, shared)
        if weighed is None:
            return None
        plan = _planned(job, weighed, goal, bench, allowed, shared)
        made = compress(job, explored, weighed, plan, goal.target, shared)
        return None if made is None else try_out(made, goal, bench, plan, own_folder, looks=number)

    tried = attempts(attempt, job.progress.log)
    if tried is None or original is None:
        return tried
    return tuple(_explained(trial, original) for trial in tried)


def attempts(
    attempt: Callable[[int, float | None], Trial | None],
    log: Callable[[str], None],
) -> tuple[Trial, ...] | None:
    """Trials until one meets the accuracy contract, at most ATTEMPTS; None where one stops early.

    After a failure with an objective, the allowed divergence shrinks in proportion to the drop. The
    next plan then has higher ranks in the layers with the most effect on the output.

    ``attempt``: the trial of that number at that divergence. The first gets None, and finds the
    divergence that the accuracy allows.
    """
    tried: list[Trial] = []
    allowed: float | None = None
    while True:
        with spans.span(f"attempt {len(tried) + 1}"):
            trial = attempt(len(tried) + 1, allowed)
        if trial is None:
            return None
        tried.append(trial)
        contract, allowed = trial.contract, trial.plan.allowed
        if contract is None or contract.met or allowed is None or len(tried) == ATTEMPTS:
            return tuple(tried)
        limit = contract.allowed
        assert limit is not None
        lost = contract.drop if limit.confidence is None else contract.high
        allowed *= min(0.7, max(0.3, limit.value / lost))
        log(
            f"the emitted file lost {contract}, {limit.text(short(contract.unit))} is allowed:"
            f" higher ranks in attempt {len(tried) + 1} of {ATTEMPTS}"
        )


def best(tried: Sequence[Trial]) -> Trial:
    """The trial to ship: one without a failure, then the one with the least drop."""
    gains = [trial for trial in tried if not isinstance(trial.failure, NoGainError)] or tried

    def rank(trial: Trial) -> tuple[bool, float]:
        return trial.failure is not None, 0.0 if trial.contract is None else trial.contract.drop

    return min(gains, key=rank)


def _baseline(
    job: Job,
    explored: Explored,
    goal: Destination,
    folder: Path,
    shared: Shared,
) -> Baseline | None:
    """The drop of the original in the precision of a destination, where it is too large.

    It is logged before the destination is built.
    """
    allowed, figure = job.max_drop, explored.metric
    if figure is None or allowed is None or not PRECISIONS[goal.target.precision].rounding:
        return None

    def make() -> Baseline:
        result = baseline(figure, explored.state, goal, folder, allowed, qat=job.config.qat)
        if not result.contract.met:
            job.progress.log(str(result))
        return result

    original = shared.baselines.get((goal.target, goal.device.rounds_like_reference), make)
    return None if original.contract.met else original


def _weighed(job: Job, explored: Explored, goal: Destination, shared: Shared) -> State | None:
    """The explored state with rounding estimated for a precision; None where the build stops.

    A repeated build has its plan already: nothing is estimated.
    """
    if job.locked is not None:
        return explored.state
    passes = weighing(goal.target.precision, goal.target.name, cached=job.config.resume)
    make = partial(advanced, job, explored.state, passes, (DesignSpace,))
    return shared.weighed.get(passes, make)


@spans.span("search")
def _planned(
    job: Job,
    weighed: State,
    goal: Destination,
    bench: Bench,
    allowed: float | None,
    shared: Shared,
) -> Plan:
    """The plan for a destination. ``allowed``: the divergence; None to find it."""
    if job.locked is not None:  # one candidate for each layer
        design = weighed.fact(DesignSpace)
        return Plan(weighed, SelectRanks(), (), None, None, job.max_drop, design)
    loop = Loop(
        weighed,
        goal.target,
        bench,
        bench.profile,
        ram_of(job, goal).growth,
        metric=job.config.metric,
        stored=job.config.resume,
    )
    wish = _wish(job, weighed, goal, bench)
    limit = patches.limit(goal, job.config, bench.original.path)
    prunes = job.config.prune != "off"
    filters = partial(_filters, job, weighed, shared) if prunes else None
    return planned(loop, wish, allowed, limit, filters)


def _filters(job: Job, weighed: State, shared: Shared) -> FilterSpace | None:
    """The filters to cut; None where there are none."""
    found = weighed.known(FilterSpace)
    if found is None:
        if not repairable(weighed):
            return None
        step = filter_exploration(job.config, job.goals)
        found = shared.filters.get(step, lambda: run(weighed, [step]).fact(FilterSpace))
    return found if found.choices else None


def ram_of(job: Job, goal: Destination) -> Ram:
    """The limit on the memory of the plans for a destination."""
    default = job.config.max_ram is None
    return Ram(job.config.budgets.get("ram"), goal.device.growth_bytes if default else None)


def _wish(job: Job, state: State, goal: Destination, bench: Bench) -> Wish:
    """The user's budgets, and the limits of the device where the original exceeds them."""
    config = job.config
    objective = config.objective or (None if config.budgets else "latency")
    if objective == "cycles" and bench.profile.unit != "cycles":
        timed = f"device '{goal.device.name}' is timed in milliseconds"
        raise UsageError(f"--objective cycles: {timed}; take --objective latency")
    original = inference_form(state.original)
    arena = profile(original, goal.target.precision).arena_bytes + goal.target.tail_bytes(original)
    methods = () if config.prune == "only" else config.methods
    return Wish(
        SelectRanks(config.max_macs, config.max_params, methods, config.max_latency),
        _tightest(config.max_size, goal.device.flash_bytes, bench.original.bytes),
        _tightest(config.budgets.get("ram"), goal.device.ram_bytes, arena),
        objective,
        job.max_drop,
    )


def _explained(trial: Trial, original: Baseline) -> Trial:
    """The trial; where it fails the contract, the failure also names the original's own drop."""
    if not isinstance(trial.failure, BudgetError) or trial.contract is None or trial.contract.met:
        return trial
    return replace(trial, failure=BudgetError(f"{trial.failure}; {original}"))


def _tightest(budget: Budget | None, limit: int | None, original: int) -> Budget | None:
    """The tighter one of the user's budget and the device's limit.

    The limit is ignored where the original is within it.
    """
    if limit is None or original <= limit:
        return budget
    if budget is not None and budget.limit(original) <= limit:
        return budget
    return Budget(value=limit, relative=False, given=f"{limit}B")


def reasons(*refused: Mapping[str, str]) -> str:
    """The reasons of layers without a candidate, in one line, each with the layers it is for."""
    layers: dict[str, list[str]] = {}
    for each in refused:
        for name, reason in each.items():
            layers.setdefault(reason, []).append(name)
    shown = [f"{_some(names, LAYERS)}: {reason}" for reason, names in layers.items()]
    return _some(shown, REASONS, "; ")


def _some(words: Sequence[str], most: int, between: str = ", ") -> str:
    """The first words, and how many others there are."""
    others = len(words) - most
    return between.join(words[:most]) + (f" and {others} more" if others > 0 else "")
