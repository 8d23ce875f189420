"""One build from the canonical graph to files that are known: what is done once, and what is done for each destination."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import lcm
from pathlib import Path

from lrfc.config import build as options_
from lrfc.config.build import Budget, BuildConfig, Drop
from lrfc.config.precision import PRECISIONS
from lrfc.costs.measurements import Store
from lrfc.data.counts import TIMED
from lrfc.data.dataset import Data
from lrfc.engine.baseline import Baseline, baseline
from lrfc.engine.benchmark import Bench, NPUBench, fallbacks
from lrfc.engine.candidate import Build, Draft, draft
from lrfc.engine.destinations import Destination
from lrfc.engine.replay import Locked
from lrfc.engine.tuning import Loop, Settled, Wish
from lrfc.errors import BudgetError, ModelError, NoGainError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.rounding import steps_of
from lrfc.metrics.metric import Metric, metric
from lrfc.metrics.outcome import short
from lrfc.passes.balance_stages import BalanceStages
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune
from lrfc.passes.fold_batchnorm import FoldBatchNorm
from lrfc.passes.lock_filters import LockFilters
from lrfc.passes.lock_layers import LockLayers
from lrfc.passes.profile import profile
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.quantize_aware import QuantizeAware, QuantizedModel
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.passes.weigh_rounding import WeighRounding
from lrfc.pipeline import name_of, plan, run
from lrfc.protocols import Pass, Target
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.search.cache import place
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State
from lrfc.system import scratch
from lrfc.targets.devices.runners import runner

#: Builds that are held against the accuracy contract at most.
ATTEMPTS = 3

#: Pass → its rung on the ladder of accuracies.
RUNGS = {
    "Factorize": "factorized", "PruneFilters": "pruned", "RecalibrateBatchNorm": "recalibrated", "Refit": "refitted", "FineTune": "finetuned",
}  # fmt: skip


def pipeline(config: BuildConfig, select: SelectRanks) -> tuple[Pass, ...]:
    """The passes after exploration, in order. Each comment says why it stands where it stands."""
    return (
        # One choice per layer, once every layer's choices are known.
        select,
        Factorize(),
        # Cut where the factors stand already: which filters go was decided with the ranks.
        PruneFilters(),
        # The statistics of the original no longer fit; wrong ones would cost the fine-tune its first epochs.
        RecalibrateBatchNorm(),
        # In closed form what can be, before gradients start from there.
        Refit(),
        *([finetune(config)] if config.epochs else []),
    )


def weighing(precision: str, form: str = "tflite", *, cached: bool = False) -> tuple[Pass, ...]:
    """The passes that take the explored layers from float to the precision that ships, in that format; none where nothing is rounded."""
    return (WeighRounding(precision, cached=cached, steps=steps_of(form)),) if PRECISIONS[precision].integer else ()


def rounding(config: BuildConfig, precision: str) -> tuple[Pass, ...]:
    """The passes behind FoldBatchNorm that prepare a file of integers; none for other precisions."""
    if not PRECISIONS[precision].integer:
        return ()
    # The function stays the same, and what is rounded from here on suits it better.
    return (BalanceStages(bits=8 * PRECISIONS[precision].activation, convolutions=config.qat),)


def finetune(config: BuildConfig) -> FineTune:
    """The one fine-tune of a build."""
    # A killed build goes on after the last epoch, as its exploration does.
    kept = place().parent / "finetune" if config.resume else None
    return FineTune(epochs=config.epochs, time_budget=config.time_budget, augment=config.augment, metric=config.metric, checkpoints=kept)


def exploration(config: BuildConfig, multiple: int = 1) -> ExploreLayers:
    """The pass that explores the layers. ``multiple``: of ranks, what the devices compute at once."""
    return ExploreLayers(methods=config.methods, keep=config.keep, only=config.only, rank_multiple=multiple, cached=config.resume)


@contextmanager
def bench_of(goal: Destination, state: State, folder: Path) -> Iterator[Bench]:
    """The device of a destination, ready to measure; left as it was at the end."""
    profile, note = goal.profile()
    if note is not None:
        state.progress.log(note)
    with ExitStack() as stack:
        reached = None if goal.device.reach.kind == "analytic" else stack.enter_context(runner(goal.device))
        kind = NPUBench if goal.device.reach.kind == "vela" else Bench
        few = state.data.train.head(TIMED).inputs
        store = Store(log=state.progress.log)
        yield kind(goal.target, goal.device, reached, profile, state.original, few, goal.threads, folder, store)


class Line:
    """The straight line of one build: what is done once, and what is done for each destination."""

    def __init__(
        self, source: Path, config: BuildConfig, goals: Sequence[Destination], data: Data, progress: Progress, locked: Locked | None = None
    ) -> None:
        if data.synthetic and config.epochs:
            claimed = "accuracy is read on the test samples" if data.judged else "nothing is claimed about accuracy"
            progress.log(f"no data: calibrated and refitted on synthetic inputs, not fine-tuned, and {claimed}")
            config = config.model_copy(update={"epochs": 0})
        if data.few:
            config = config.model_copy(update={"epochs": 0})
        self._source, self._config, self._data, self._progress, self._locked = source, config, data, progress, locked
        self._goals = tuple(goals)
        # Below what a device computes at once no rank saves time; with several devices, ranks suit all of them.
        multiple = config.rank_multiple or lcm(*(goal.device.rank_multiple for goal in goals))
        # Exact folds first: everything after them sees one normal form, and it is the original that all else is compared with.
        explore = exploration(config, multiple)
        self._first: list[Pass] = [Canonicalise(), explore if locked is None else LockLayers(locked.choices, config.keep, config.only)]
        if locked is not None and (locked.filters or config.prune != "off"):
            self._first.append(LockFilters(locked.filters, config.keep, config.only))
        elif config.prune != "off":
            self._first.append(ExploreFilters(keep=config.keep, only=config.only, multiple=multiple))
        self._ladder: dict[str, float] = {}
        self._metric: Metric | None = None
        self._weighed: dict[tuple[Pass, ...], State] = {}
        self._trained: dict[tuple[object, ...], tuple[State, dict[str, float]]] = {}
        self._made: dict[tuple[object, ...], Build] = {}
        self._baselines: dict[tuple[Target, bool], Baseline] = {}
        self._seconds = 0.0

    def explored(self, graph: Graph) -> State:
        """The canonical graph with its DesignSpace."""
        config, progress = self._config, self._progress
        state = run(State(graph, graph, self._data, config.seed, progress), plan(self._first[:1]), self._after)
        state = replace(state, original=state.graph)
        for note in self._left_to_the_cpu(state):
            progress.log(note)
        if self._locked is not None:
            self._locked.check(self._source, state.original)
        self._metric = metric(config.metric, state.original, self._data.test) if self._data.judged else None
        self._rung("before", state)
        start = time.perf_counter()
        state = run(state, plan(self._first[1:]), self._after)
        self._seconds = time.perf_counter() - start
        design, filters = state.fact(DesignSpace), state.known(FilterSpace)
        ranked = bool(design.spaces) and config.prune != "only"
        if not ranked and (filters is None or not filters.choices):
            why = reasons({} if config.prune == "only" else design.skipped, {} if filters is None else filters.refused)
            raise ModelError(f"no layer of model '{graph.name}' can be made smaller: {why}")
        progress.log(f"  {design.size:,} candidates, {design.undominated:,} of them not dominated")
        return state

    def drafted(self, state: State, goal: Destination, bench: Bench, folder: Path) -> tuple[list[Draft], Draft]:
        """The files of a destination that were held against the accuracy contract, and the one to ship.

        Where the contract fails and an objective was followed, the divergence that is allowed shrinks as the drop was too large, so that rank goes
        back to the layers with the most effect on the output, and all is done once more.
        """
        drafts: list[Draft] = []
        alone = self._baseline(state, goal, folder)
        allowed: float | None = None  # each destination learns its own: another's, or what is left of it, would make its files depend on the order
        while True:
            number = len(drafts) + 1
            place = folder / str(number)
            place.mkdir()
            made, settled = self.compressed(state, goal, bench, allowed)
            allowed = settled.allowed
            drafts.append(draft(made, goal, bench, settled, place, looks=number))
            held = drafts[-1].contract
            if held is None or held.met or allowed is None or number == ATTEMPTS:
                break
            assert held.allowed is not None
            lost = held.drop if held.allowed.confidence is None else held.high
            allowed *= min(0.7, max(0.3, held.allowed.value / lost))
            self._progress.log(
                f"the emitted file lost {held}, {held.allowed.text(short(held.unit))} is allowed: rank is given back, attempt {number + 1} of {ATTEMPTS}"
            )
        if alone is not None:
            drafts = [_explained(each, alone) for each in drafts]
        useful = [each for each in drafts if not isinstance(each.failure, NoGainError)] or drafts
        return drafts, min(useful, key=lambda each: (each.failure is not None, 0.0 if each.contract is None else each.contract.drop))

    def compressed(self, state: State, goal: Destination, bench: Bench, allowed: float | None) -> tuple[Build, Settled]:
        """The compressed graph for a destination and all that is known about it. Destinations for which the same is chosen share the work on it.

        ``allowed``: the predicted divergence, None where it is to be learnt.
        """
        config, state = self._config, self._in_precision(state, goal.target.precision, goal.target.name)
        design = state.fact(DesignSpace)
        if self._locked is None:
            settled = Loop(state, goal.target, bench, bench.profile).settle(self._wish(state, goal, bench), allowed)
        else:  # one candidate a layer: nothing is weighed
            settled = Settled(state, SelectRanks(), (), None, None, self._max_drop(), design)
        state = run(settled.state, plan([settled.select], known=(DesignSpace,)), self._after)
        rest = pipeline(config, settled.select)[1:]
        selection = state.fact(Selection)
        key = (*((c.layer, c.method, c.ranks) for c in selection.chosen), *((name, tuple(keep.units)) for name, keep in selection.keeps.items()))
        if key not in self._trained:
            for rung in RUNGS.values():  # those of an earlier attempt
                self._ladder.pop(rung, None)
            self._trained[key] = run(state, plan(rest, known=(DesignSpace, Selection)), self._after), dict(self._ladder)
        trained, ladder = self._trained[key]
        correct = CorrectBiases(steps=steps_of(goal.target.name))
        steps = rounding(config, goal.target.precision)
        if (key, steps, correct) not in self._made:
            # Last, because BatchNorm has to be there as long as statistics are estimated or weights trained.
            state = run(trained, plan([FoldBatchNorm(), *steps]), self._after)
            if config.qat:
                state = self._quantise_aware(state)
            # Only the file has these biases: they make good what rounding does to it, and would be wrong in the float network.
            corrected = steps and state.known(QuantizedModel) is None
            shipped = run(state, plan([correct]), self._after).graph if corrected else state.graph
            self._made[key, steps, correct] = Build(
                self._source, config, state, trained.graph, shipped, fold_batchnorm(state.original), design, ladder, self._metric, self._seconds
            )
        made = self._made[key, steps, correct]
        # What was selected is the same; why the other layers were not is told of this destination's prices.
        return replace(made, state=made.state.with_fact(selection), design=design), settled

    def _baseline(self, state: State, goal: Destination, folder: Path) -> Baseline | None:
        """What the original loses in the precision of a destination, where that is more than the build may lose; it is said before work goes into it."""
        allowed = self._max_drop()
        if self._metric is None or allowed is None or not PRECISIONS[goal.target.precision].rounding:
            return None
        place = goal.target, goal.device.rounds_like_reference
        if place not in self._baselines:
            self._baselines[place] = baseline(self._metric, state, goal, folder, allowed, qat=self._config.qat)
            if not self._baselines[place].contract.met:
                self._progress.log(str(self._baselines[place]))
        return None if self._baselines[place].contract.met else self._baselines[place]

    def _left_to_the_cpu(self, state: State) -> Iterator[str]:
        """What NPUs cannot run of the original, before work goes into it."""
        for goal in self._goals:
            if goal.device.reach.kind == "vela":
                with scratch.folder() as folder:
                    note = fallbacks(goal.target, goal.device, state.original, self._data.train.inputs, folder)
                if note is not None:
                    yield note

    def _in_precision(self, state: State, precision: str, form: str) -> State:
        """The explored state as it is in the precision of a destination. A repeated build has its choices already: nothing is weighed."""
        if self._locked is not None:
            return state
        passes = weighing(precision, form, cached=self._config.resume)
        if passes not in self._weighed:
            self._weighed[passes] = run(state, plan(passes, known=(DesignSpace,)), self._after)
        return self._weighed[passes]

    def _quantise_aware(self, state: State) -> State:
        """The network trained with its rounding; as it is where that cannot be done, and then it is quantised as it is."""
        try:
            return run(state, plan([QuantizeAware(metric=self._config.metric)]), self._after)
        except ModelError as error:
            self._progress.log(f"  not trained with its rounding, quantised as it is: {error}")
            return state

    def _wish(self, state: State, goal: Destination, bench: Bench) -> Wish:
        """The user's budgets, and the limits of the device where the original breaks them."""
        config = self._config
        objective = config.objective or (None if config.budgets else "latency")
        if objective == "cycles" and bench.profile.unit != "cycles":
            raise UsageError(f"--objective cycles: device '{goal.device.name}' is timed in milliseconds; take --objective latency")
        arena = profile(fold_batchnorm(state.original), goal.target.precision).arena_bytes
        return Wish(
            SelectRanks(config.max_macs, config.max_params, () if config.prune == "only" else config.methods, config.max_latency),
            _tightest(config.max_size, goal.device.flash_bytes, bench.original.bytes),
            _tightest(config.max_ram, goal.device.ram_bytes, arena),
            objective,
            self._max_drop(),
            config.metric,
        )

    def _max_drop(self) -> Drop | None:
        """What the score may lose: what is given; without that and any budget the default."""
        config = self._config
        return config.max_drop if config.max_drop is not None or (config.objective is None and config.budgets) else options_.DEFAULT_DROP

    def _after(self, step: Pass, state: State) -> None:
        if name_of(step) in self._config.print_after:
            self._progress.log(str(state.graph))
        if name_of(step) in RUNGS and not _idle(step, state):
            self._rung(RUNGS[name_of(step)], state)
        if name_of(step) == self._config.stop_after:
            raise Stop

    def _rung(self, name: str, state: State) -> None:
        """Put the score of the network as it stands on the ladder."""
        if self._metric is not None:
            self._ladder[name] = self._metric.score(keras_io.predict(state.graph, self._data.test.inputs), self._data.test)
            self._progress.log(f"  {self._metric.name} {self._metric.shown(self._ladder[name])}")


def _idle(step: Pass, state: State) -> bool:
    """Whether a rewrite had nothing to do: no layer to factorize, no filter to cut."""
    selection = state.known(Selection)
    if selection is None:
        return False
    if isinstance(step, Factorize):
        return all(candidate.method is None for candidate in selection.chosen)
    return isinstance(step, PruneFilters) and not selection.removed


def _explained(each: Draft, alone: Baseline) -> Draft:
    """The draft, its failure with what the original loses by itself where that is part of it."""
    if not isinstance(each.failure, BudgetError) or each.contract is None or each.contract.met:
        return each
    return replace(each, failure=BudgetError(f"{each.failure}; {alone}"))


class Stop(Exception):  # noqa: N818  not an error
    """The user asked to stop after this pass."""


def _tightest(budget: Budget | None, limit: int | None, original: int) -> Budget | None:
    """The tighter one of the user's budget and the device's limit, which counts where the original breaks it."""
    if limit is None or original <= limit or (budget is not None and budget.limit(original) <= limit):
        return budget
    return Budget(value=limit, relative=False, given=f"{limit}B")


def reasons(*told: Mapping[str, str]) -> str:
    """Why each layer has no choice, in one line."""
    return "; ".join(f"{name}: {reason}" for each in told for name, reason in each.items())
