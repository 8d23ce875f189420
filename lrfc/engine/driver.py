"""The stages of a build: functions over values, from the graph to files that are measured."""

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
from lrfc.engine.baseline import Baseline, baseline
from lrfc.engine.benchmark import Bench, NPUBench, fallbacks
from lrfc.engine.candidate import Trial, try_out
from lrfc.engine.compress import Shared, compress
from lrfc.engine.destinations import Destination
from lrfc.engine.job import Explored, Job, advanced, scored
from lrfc.engine.passes import exploring, weighing
from lrfc.engine.tuning import Loop, Plan, Wish
from lrfc.errors import BudgetError, ModelError, NoGainError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.metrics.metric import metric
from lrfc.metrics.outcome import short
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.profile import profile
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from lrfc.system import scratch
from lrfc.targets.devices.runners import runner

#: Trials that are held against the accuracy contract at most.
ATTEMPTS = 3


# -- done once -------------------------------------------------------------------------------------


def explore(job: Job, graph: Graph) -> Explored | None:
    """The graph in its normal form, explored; None where the build stops before.

    ModelError where nothing can be made smaller.
    """
    config, progress = job.config, job.progress
    # Exact folds first: everything after them sees one normal form, and it is the original that
    # all else is compared with.
    given = State(graph, graph, job.data, config.seed, progress)
    state = advanced(job, given, [Canonicalise()])
    if state is None:
        return None
    state = replace(state, original=state.graph)
    for note in _left_to_the_cpu(job, state):
        progress.log(note)
    if job.locked is not None:
        job.locked.check(job.source, state.original)
    figure = metric(config.metric, state.original, job.data.test) if job.data.judged else None
    ladder = {} if figure is None else {"before": scored(job, figure, state)}
    start = time.perf_counter()
    state = advanced(job, state, exploring(config, job.goals, job.locked))
    seconds = time.perf_counter() - start
    if state is None:
        return None
    _check_choices(job, state, graph.name)
    design = state.fact(DesignSpace)
    progress.log(f"  {design.size:,} candidates, {design.undominated:,} of them not dominated")
    return Explored(state, figure, ladder, seconds)


def _left_to_the_cpu(job: Job, state: State) -> Iterator[str]:
    """What NPUs cannot run of the original, before work goes into it."""
    for goal in job.goals:
        if goal.device.tells_ops:
            with scratch.folder() as folder:
                inputs = job.data.train.inputs
                note = fallbacks(goal.target, goal.device, state.original, inputs, folder)
            if note is not None:
                yield note


def _check_choices(job: Job, state: State, name: str) -> None:
    """ModelError where no layer has a choice."""
    design, filters = state.fact(DesignSpace), state.known(FilterSpace)
    only = job.config.prune == "only"
    ranked = bool(design.spaces) and not only
    if not ranked and (filters is None or not filters.choices):
        why = reasons({} if only else design.skipped, {} if filters is None else filters.refused)
        raise ModelError(f"no layer of model '{name}' can be made smaller: {why}")


# -- done for each destination ---------------------------------------------------------------------


@contextmanager
def bench_of(goal: Destination, state: State, folder: Path) -> Iterator[Bench]:
    """The device of a destination, ready to measure; left as it was at the end."""
    profile, note = goal.profile()
    if note is not None:
        state.progress.log(note)
    with ExitStack() as stack:
        reached = None if goal.device.estimated else stack.enter_context(runner(goal.device))
        kind = NPUBench if goal.device.tells_ops else Bench
        few = state.data.train.head(TIMED).inputs
        store = Store(log=state.progress.log)
        yield kind(
            goal.target,
            goal.device,
            reached,
            profile,
            state.original,
            few,
            goal.threads,
            folder,
            store,
        )


def trials(
    job: Job,
    explored: Explored,
    goal: Destination,
    bench: Bench,
    folder: Path,
    shared: Shared,
) -> tuple[Trial, ...] | None:
    """The files of a destination that were held against the accuracy contract.

    None where the build stops before there is one.
    """
    alone = _baseline(job, explored, goal, folder, shared)

    def attempt(number: int, allowed: float | None) -> Trial | None:
        place = folder / str(number)
        place.mkdir()
        weighed = _weighed(job, explored, goal, shared)
        if weighed is None:
            return None
        chosen = _chosen(job, weighed, goal, bench, allowed)
        made = compress(job, explored, weighed, chosen, goal.target, shared)
        return None if made is None else try_out(made, goal, bench, chosen, place, looks=number)

    found = attempts(attempt, job.progress.log)
    if found is None or alone is None:
        return found
    return tuple(_explained(each, alone) for each in found)


def attempts(
    attempt: Callable[[int, float | None], Trial | None],
    log: Callable[[str], None],
) -> tuple[Trial, ...] | None:
    """Trials until one keeps the accuracy contract, at most ATTEMPTS; None where one ends early.

    Where the contract fails and an objective was followed, the divergence that is allowed shrinks
    as the drop was too large, so that rank goes back to the layers with the most effect on the
    output, and all is done once more. ``attempt``: the trial of that number with so much
    divergence allowed, None at first, where it is to be learnt.
    """
    found: list[Trial] = []
    allowed: float | None = None
    while True:
        trial = attempt(len(found) + 1, allowed)
        if trial is None:
            return None
        found.append(trial)
        held, allowed = trial.contract, trial.plan.allowed
        if held is None or held.met or allowed is None or len(found) == ATTEMPTS:
            return tuple(found)
        assert held.allowed is not None
        lost = held.drop if held.allowed.confidence is None else held.high
        allowed *= min(0.7, max(0.3, held.allowed.value / lost))
        log(
            f"the emitted file lost {held}, {held.allowed.text(short(held.unit))} is allowed:"
            f" rank is given back, attempt {len(found) + 1} of {ATTEMPTS}"
        )


def best(found: Sequence[Trial]) -> Trial:
    """The trial to ship: one without a failure, then the one with the least drop."""
    useful = [each for each in found if not isinstance(each.failure, NoGainError)] or found

    def rank(each: Trial) -> tuple[bool, float]:
        return each.failure is not None, 0.0 if each.contract is None else each.contract.drop

    return min(useful, key=rank)


def _baseline(
    job: Job,
    explored: Explored,
    goal: Destination,
    folder: Path,
    shared: Shared,
) -> Baseline | None:
    """The loss of the original in the precision of a destination, where it is too large.

    The log has it before work goes into the destination.
    """
    allowed, figure = job.max_drop, explored.metric
    if figure is None or allowed is None or not PRECISIONS[goal.target.precision].rounding:
        return None

    def make() -> Baseline:
        made = baseline(figure, explored.state, goal, folder, allowed, qat=job.config.qat)
        if not made.contract.met:
            job.progress.log(str(made))
        return made

    found = shared.baselines.get((goal.target, goal.device.rounds_like_reference), make)
    return None if found.contract.met else found


def _weighed(job: Job, explored: Explored, goal: Destination, shared: Shared) -> State | None:
    """The explored state in the precision of a destination; None where the build stops there.

    A repeated build has its choices already: nothing is weighed.
    """
    if job.locked is not None:
        return explored.state
    passes = weighing(goal.target.precision, goal.target.name, cached=job.config.resume)
    make = partial(advanced, job, explored.state, passes, (DesignSpace,))
    return shared.weighed.get(passes, make)


def _chosen(
    job: Job,
    weighed: State,
    goal: Destination,
    bench: Bench,
    allowed: float | None,
) -> Plan:
    """The plan for a destination. ``allowed``: the divergence, None where it is to be learnt."""
    if job.locked is not None:  # one candidate a layer: nothing to choose
        design = weighed.fact(DesignSpace)
        return Plan(weighed, SelectRanks(), (), None, None, job.max_drop, design)
    loop = Loop(weighed, goal.target, bench, bench.profile)
    return loop.settle(_wish(job, weighed, goal, bench), allowed)


def _wish(job: Job, state: State, goal: Destination, bench: Bench) -> Wish:
    """The user's budgets, and the limits of the device where the original breaks them."""
    config = job.config
    objective = config.objective or (None if config.budgets else "latency")
    if objective == "cycles" and bench.profile.unit != "cycles":
        timed = f"device '{goal.device.name}' is timed in milliseconds"
        raise UsageError(f"--objective cycles: {timed}; take --objective latency")
    arena = profile(fold_batchnorm(state.original), goal.target.precision).arena_bytes
    methods = () if config.prune == "only" else config.methods
    return Wish(
        SelectRanks(config.max_macs, config.max_params, methods, config.max_latency),
        _tightest(config.max_size, goal.device.flash_bytes, bench.original.bytes),
        _tightest(config.max_ram, goal.device.ram_bytes, arena),
        objective,
        job.max_drop,
        config.metric,
    )


def _explained(each: Trial, alone: Baseline) -> Trial:
    """The trial, its failure with what the original loses by itself where that is part of it."""
    if not isinstance(each.failure, BudgetError) or each.contract is None or each.contract.met:
        return each
    return replace(each, failure=BudgetError(f"{each.failure}; {alone}"))


def _tightest(budget: Budget | None, limit: int | None, original: int) -> Budget | None:
    """The tighter one of the user's budget and the device's limit.

    The limit counts where the original breaks it.
    """
    if limit is None or original <= limit:
        return budget
    if budget is not None and budget.limit(original) <= limit:
        return budget
    return Budget(value=limit, relative=False, given=f"{limit}B")


def reasons(*refused: Mapping[str, str]) -> str:
    """Why each layer has no choice, in one line."""
    pairs = (pair for each in refused for pair in each.items())
    return "; ".join(f"{name}: {reason}" for name, reason in pairs)
