"""The tuning loop: allocate, rewrite, emit, measure, correct the predicted latencies, repeat.

It ends when the prediction agrees with the measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from lrfc.config.build import Budget, Drop
from lrfc.costs.latency import CostProfile
from lrfc.engine import budgets, evaluate
from lrfc.engine.closest import closest
from lrfc.engine.growth import limited
from lrfc.engine.judge import Judge
from lrfc.engine.plans import fitted_quickly, rewritten, selected
from lrfc.engine.times import Measured, Measures, Times, times_of
from lrfc.errors import BudgetError
from lrfc.metrics.source import MEASURED
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Target
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import Minimised, fixed
from lrfc.results.manifest import Round
from lrfc.search.facts import DesignSpace, Price
from lrfc.state import State
from lrfc.system.spans import span
from lrfc.text import factor, milliseconds

#: Most plans that are emitted and measured, and the relative difference between prediction and
#: measurement at which the loop ends.
ROUNDS = 5
AGREE = 0.05
#: Value of ``--objective`` → the quantity of a candidate that is minimised. The search for the
#: divergence that the accuracy constraint allows varies a budget on the same quantity.
OBJECTIVES: Mapping[str, Minimised] = {
    "latency": "latency",
    "cycles": "latency",
    "macs": "macs",
    "size": "params",
    "ram": "macs",
}


@dataclass(frozen=True)
class Wish:
    """Budgets of a plan, and its objective.

    ``select``: budgets on MACs, parameters and latency, and the methods. ``objective``: the
    quantity to minimise within ``max_drop``. None minimises the divergence within the budgets;
    ``max_drop`` is then tested on the emitted file only.
    """

    select: SelectRanks
    max_size: Budget | None = None
    max_ram: Budget | None = None
    objective: str | None = None
    max_drop: Drop | None = None


@dataclass(frozen=True)
class Plan:
    """The plan for a destination, and the measurements that led to it.

    ``select`` on ``state`` returns the selection. ``rounds``: predicted and measured times of the
    plans that were measured. ``allowed``: with an objective, the divergence that the accuracy
    constraint allows. ``design``: every candidate with its last predicted latency, including those
    that are slower than their layer.
    """

    state: State
    select: SelectRanks
    rounds: tuple[Round, ...]
    objective: str | None
    allowed: float | None
    max_drop: Drop | None
    design: DesignSpace


@dataclass(frozen=True)
class _Choice:
    """A plan before it is measured: the state with its Selection, and the pass that selected it."""

    state: State
    select: SelectRanks

    @property
    def selection(self) -> Selection:
        return self.state.fact(Selection)

    @property
    def predicted(self) -> float:
        """The predicted latency of the network, in the unit of the cost profile."""
        return fixed(self.state)["latency"] + self.selection.cost("latency")


@dataclass(frozen=True)
class _Tried:
    """A plan with its measurement."""

    choice: _Choice
    measured: Measured

    @property
    def slower(self) -> bool:
        """Whether it is slower than the original, with the confidence of the interval."""
        return self.measured.ratio.high < 1

    @property
    def predictable(self) -> bool:
        """Whether prediction and measurement agree."""
        return abs(self.choice.predicted / self.measured.time - 1) <= AGREE


@dataclass(frozen=True)
class Loop:
    """The tuning loop for one destination.

    ``profile``: the first cost profile, possibly of another device. Each measurement corrects it.
    ``growth``: bytes of activation memory that a plan may add; see ``lrfc.engine.growth.limited``.
    ``metric``: the name of the metric that plans are judged by. ``stored``: take judgements of
    earlier builds.
    """

    state: State
    target: Target
    bench: Measures
    profile: CostProfile
    growth: int | None = None
    metric: str | None = None
    stored: bool = False

    def settle(self, wish: Wish, allowed: float | None = None) -> Plan:
        """The plan. ``allowed``: the divergence that ``max_drop`` allows, where it is known.

        MACs do not predict latency: a plan may have half of them and be slower. Each plan is
        emitted and measured before it is trained. The measurement corrects the cost profile; a plan
        that is slower than the original loses the method that most of its layers use. The loop ends
        when prediction and measurement agree within 5 %, when a plan repeats, or after five plans.
        BudgetError when a budget cannot be met.
        """
        times = times_of(self.state, self.bench, self.profile)
        if wish.objective is not None and allowed is None:
            allowed = self._allowed(wish, times)
        methods = wish.select.methods
        if methods is None:
            methods = _methods(self.state)
        tried: dict[tuple[object, ...], _Tried] = {}
        rounds: list[Round] = []
        previous: SelectRanks | None = None
        while len(rounds) < ROUNDS:
            try:
                with span(f"round {len(rounds) + 1}"):
                    choice = self._chosen(wish, times, methods, previous, allowed)
            except BudgetError as error:
                if not tried:
                    raise
                reason = "with the corrected latencies no other plan meets the budgets"
                self.state.progress.log(f"  {reason}: {error}")
                break
            if choice.selection.network in tried:
                break
            previous = choice.select
            with span(f"round {len(rounds) + 1}"):
                # No time depends on the values of weights.
                trial = _Tried(choice, self.bench(rewritten(fitted_quickly(choice.state))))
            tried[choice.selection.network] = trial
            rounds.append(_round(trial))
            self.state.progress.log(_line(trial, rounds[-1]))
            times = times.with_measured(trial.measured)
            used = [c.method for c in choice.selection.chosen if c.method is not None]
            if trial.slower and used:
                ((worst, _),) = Counter(used).most_common(1)
                methods = tuple(method for method in methods if method != worst)
                previous = None
                if not methods:
                    break
            elif trial.predictable and not self._late(wish, trial.measured):
                break
        best = min(tried.values(), key=lambda trial: self._rank(wish, trial)).choice
        design = times.priced(self.state, slower=True).fact(DesignSpace)
        rest = tuple(rounds), wish.objective, allowed, wish.max_drop, design
        return Plan(best.state, best.select, *rest)

    @cached_property
    def _limited(self) -> State:
        """The state with the candidates that a plan may choose."""
        return limited(self.state, self.target.precision, self.growth)

    @cached_property
    def judge(self) -> Judge:
        """The judge of plans, one for all attempts: a plan that returns is not run again."""
        return Judge(self.state, self.metric, stored=self.stored)

    # -- one round ---------------------------------------------------------------------------------

    @span("allocation")
    def _chosen(
        self,
        wish: Wish,
        times: Times,
        methods: tuple[str, ...],
        previous: SelectRanks | None,
        allowed: float | None,
    ) -> _Choice:
        """The best plan by the latencies known so far.

        ``previous``: the selection of an earlier round, whose methods are taken again; None to
        compare the methods on data.
        """
        with_slower = partial(times.priced, self._limited, slower=True)
        if wish.objective in ("macs", "size", "ram"):
            # A small layer may be slower, as long as the network is not.
            return self._selected(with_slower(), wish, methods, previous, allowed)
        try:
            faster = times.priced(self._limited, slower=False)
            return self._selected(faster, wish, methods, previous, allowed)
        except BudgetError:
            choice = self._selected(with_slower(), wish, methods, previous, allowed)
            self.state.progress.log(
                "  the budgets need factorizations that are slower than their layers: these are"
                " allowed"
            )
            return choice

    def _selected(
        self,
        priced: State,
        wish: Wish,
        methods: tuple[str, ...],
        previous: SelectRanks | None,
        allowed: float | None,
    ) -> _Choice:
        select = replace(wish.select, methods=methods)
        if previous is not None:
            select = replace(select, methods=previous.methods, prune=previous.prune)
        if wish.objective is not None:
            state, select = self._least(priced, wish, select, allowed)
        else:
            targets = [self.target]
            state, select = budgets.meet(priced, select, wish.max_size, wish.max_ram, targets)
            if previous is None:
                select = closest(state, select, lambda: self.judge)
        return _Choice(selected(state, select), select)

    def _least(
        self,
        state: State,
        wish: Wish,
        select: SelectRanks,
        allowed: float | None,
    ) -> tuple[State, SelectRanks]:
        """The selection that is best in the objective within the allowed divergence."""
        assert wish.objective is not None
        select = replace(select, max_divergence=allowed)
        if wish.objective == "ram":
            return budgets.least_ram(state, select, wish.max_size, wish.max_ram, self.target)
        select = replace(select, minimise=OBJECTIVES[wish.objective])
        return budgets.meet(state, select, wish.max_size, wish.max_ram, [self.target])

    @span("allowed divergence")
    def _allowed(self, wish: Wish, times: Times) -> float:
        """The predicted divergence that ``max_drop`` allows, by plans that are run on data."""
        assert wish.objective is not None
        assert wish.max_drop is not None
        quantity = OBJECTIVES[wish.objective]
        priced = times.priced(self._limited, slower=quantity != "latency")
        drop, judge = wish.max_drop.value, lambda: self.judge
        bound = evaluate.smallest(priced, drop, quantity, wish.select, judge)
        return bound.divergence

    def _late(self, wish: Wish, measured: Measured) -> bool:
        """Whether the plan exceeds the latency budget."""
        limit = wish.select.max_latency
        if limit is None:
            return False
        bench = self.bench
        return measured.time > limit.limit(bench.time * bench.ms_per_unit) / bench.ms_per_unit

    def _rank(self, wish: Wish, trial: _Tried) -> tuple[bool, bool, float]:
        """The order of measured plans, the best first."""
        late = self._late(wish, trial.measured)
        timed = wish.objective in ("latency", "cycles") or trial.slower or late
        return late, trial.slower, trial.measured.time if timed else _goal(trial.choice, wish)


def _round(tried: _Tried) -> Round:
    price, time = tried.choice.state.fact(Price), tried.measured.time
    predicted, cycles = tried.choice.predicted, price.unit == "cycles"
    return Round(
        predicted_ms=predicted * price.ms_per_unit,
        measured_ms=time * price.ms_per_unit,
        predicted_cycles=round(predicted) if cycles else None,
        measured_cycles=round(time) if cycles else None,
        source=tried.measured.ratio.source,
    )


def _line(tried: _Tried, latencies: Round) -> str:
    """The measured plan as a line of the log."""
    selection, ratio = tried.choice.selection, tried.measured.ratio
    methods = dict.fromkeys(c.method for c in selection.chosen if c.method is not None)
    used = ", ".join(methods) or "nothing factorized"
    used += f", {len(selection.keeps)} groups of filters cut" if selection.keeps else ""
    interval = f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.source == MEASURED else ""
    predicted = f"predicted {milliseconds(latencies.predicted_ms)}"
    measured = f"{ratio.source} {milliseconds(latencies.measured_ms)}"
    speed = f"speed-up of the plan {factor(ratio.median)}{interval}"
    return f"  {used}: {predicted}, {measured}, {speed}"


def _goal(choice: _Choice, wish: Wish) -> float:
    """The value of the objective."""
    if wish.objective is None:
        return choice.selection.divergence
    return choice.selection.cost(OBJECTIVES[wish.objective])


def _methods(state: State) -> tuple[str, ...]:
    spaces = state.fact(DesignSpace).spaces
    return tuple(dict.fromkeys(c.method for s in spaces for c in s.candidates if c.method))
