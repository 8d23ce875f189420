"""The tuning loop: allocate, rewrite, emit, measure, correct the prices, and allocate again.

It ends when what is predicted is what is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from lrfc.config.build import Budget, Drop
from lrfc.costs.latency import CostProfile
from lrfc.engine import budgets
from lrfc.engine import evaluate as judge
from lrfc.engine.plans import rewritten, selected
from lrfc.engine.times import Measured, Measures, Times, times_of
from lrfc.errors import BudgetError
from lrfc.metrics.source import MEASURED
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Target
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import Minimised, fixed
from lrfc.results.manifest import Round
from lrfc.search.facts import DesignSpace, Price
from lrfc.search.pricing import key
from lrfc.state import State
from lrfc.text import factor, milliseconds

#: Plans that are emitted and measured at most, and how close prediction and measurement are when
#: the loop ends.
ROUNDS = 5
AGREE = 0.05
#: What ``--objective`` names → the quantity of a candidate that is minimised, and the one whose
#: budget is walked to learn what the accuracy allows.
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
    quantity to make small as far as ``max_drop`` allows; None to keep the outputs as close as the
    budgets allow, and then ``max_drop`` is only looked at in the end. ``metric``: what drops, see
    lrfc.metrics.metric.
    """

    select: SelectRanks
    max_size: Budget | None = None
    max_ram: Budget | None = None
    objective: str | None = None
    max_drop: Drop | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Plan:
    """What was chosen for a destination, and what is predicted of it.

    ``select`` on ``state`` gives the selection. ``rounds``: predicted and measured times of the
    plans that were tried. ``allowed``: with an objective, the divergence that is allowed.
    ``design``: every candidate at the last prices, also those that do not pay.
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
    """A plan before it is measured: the priced state with its Selection, and what selected it."""

    state: State
    select: SelectRanks

    @property
    def selection(self) -> Selection:
        return self.state.fact(Selection)

    @property
    def predicted(self) -> float:
        """The latency of the network, in the unit of the prices."""
        return fixed(self.state)["latency"] + self.selection.cost("latency")

    @property
    def same_as(self) -> tuple[object, ...]:
        """What is the same for plans that do not differ in what runs."""
        keeps = self.selection.keeps
        widths = ((name, len(keep.units)) for name, keep in keeps.items())
        return *map(key, self.selection.chosen), *widths


@dataclass(frozen=True)
class _Tried:
    """A plan with its measurement."""

    choice: _Choice
    measured: Measured

    @property
    def slower(self) -> bool:
        """Whether it is surely slower than the original."""
        return self.measured.ratio.high < 1

    @property
    def predictable(self) -> bool:
        """Whether prediction and measurement agree."""
        return abs(self.choice.predicted / self.measured.time - 1) <= AGREE


@dataclass(frozen=True)
class Loop:
    """Settles on a plan for one device.

    ``profile``: the prices to begin with, whatever they were fitted on; they are corrected by each
    measurement.
    """

    state: State
    target: Target
    bench: Measures
    profile: CostProfile

    def settle(self, wish: Wish, allowed: float | None = None) -> Plan:
        """The plan. ``allowed``: the divergence that ``max_drop`` allows, where it is known.

        MACs do not tell time: a plan may have half of them and be slower. Each plan is emitted and
        measured before work goes into it; what was measured corrects the prices, and one that is
        slower than the original loses the method that most of its layers have. The loop ends when
        prediction and measurement agree within 5 %, when a plan comes again, or after five plans.
        BudgetError when a budget cannot be met.
        """
        known = times_of(self.state, self.bench, self.profile)
        if wish.objective is not None and allowed is None:
            allowed = self._allowed(wish, known)
        methods = wish.select.methods
        if methods is None:
            methods = _methods(self.state)
        tried: dict[tuple[object, ...], _Tried] = {}
        rounds: list[Round] = []
        narrowed: SelectRanks | None = None
        while len(rounds) < ROUNDS:
            try:
                choice = self._chosen(wish, known, methods, narrowed, allowed)
            except BudgetError as error:
                if not tried:
                    raise
                none = "at the corrected prices no other plan keeps the budgets"
                self.state.progress.log(f"  {none}: {error}")
                break
            narrowed = choice.select
            if choice.same_as in tried:
                break
            this = _Tried(choice, self.bench(rewritten(choice.state)))
            tried[choice.same_as] = this
            rounds.append(_round(this))
            self.state.progress.log(_line(this, rounds[-1]))
            known = known.with_measured(this.measured)
            used = [c.method for c in choice.selection.chosen if c.method is not None]
            if this.slower and used:
                ((worst, _),) = Counter(used).most_common(1)
                methods = tuple(method for method in methods if method != worst)
                narrowed = None
                if not methods:
                    break
            elif this.predictable and not self._late(wish, this.measured):
                break
        best = min(tried.values(), key=lambda each: self._rank(wish, each)).choice
        design = known.priced(self.state, slower=True).fact(DesignSpace)
        rest = tuple(rounds), wish.objective, allowed, wish.max_drop, design
        return Plan(best.state, best.select, *rest)

    # -- one turn ----------------------------------------------------------------------------------

    def _chosen(
        self,
        wish: Wish,
        known: Times,
        methods: tuple[str, ...],
        narrowed: SelectRanks | None,
        allowed: float | None,
    ) -> _Choice:
        """The plan at the prices as they stand.

        ``narrowed``: what an earlier turn found to be the best to mix, None to find it.
        """
        all_priced = partial(known.priced, self.state, slower=True)
        if wish.objective in ("macs", "size", "ram"):
            # What is small may take its time, as long as the whole is not slower.
            return self._selected(all_priced(), wish, methods, narrowed, allowed)
        try:
            paying = known.priced(self.state, slower=False)
            return self._selected(paying, wish, methods, narrowed, allowed)
        except BudgetError:
            found = self._selected(all_priced(), wish, methods, narrowed, allowed)
            why = "the budgets need layers that take longer than they do now"
            self.state.progress.log(f"  {why}: these are allowed")
            return found

    def _selected(
        self,
        priced: State,
        wish: Wish,
        methods: tuple[str, ...],
        narrowed: SelectRanks | None,
        allowed: float | None,
    ) -> _Choice:
        select = replace(wish.select, methods=methods)
        if narrowed is not None:
            select = replace(select, methods=narrowed.methods, prune=narrowed.prune)
        if wish.objective is not None:
            state, select = self._least(priced, wish, select, allowed)
        else:
            targets = [self.target]
            state, select = budgets.meet(priced, select, wish.max_size, wish.max_ram, targets)
            if narrowed is None:
                select = judge.closest(state, select)
        return _Choice(selected(state, select), select)

    def _least(
        self,
        state: State,
        wish: Wish,
        select: SelectRanks,
        allowed: float | None,
    ) -> tuple[State, SelectRanks]:
        """The selection that is best in the objective with no more than the allowed divergence."""
        assert wish.objective is not None
        select = replace(select, max_divergence=allowed)
        if wish.objective == "ram":
            return budgets.least_ram(state, select, wish.max_size, wish.max_ram, self.target)
        select = replace(select, minimise=OBJECTIVES[wish.objective])
        return budgets.meet(state, select, wish.max_size, wish.max_ram, [self.target])

    def _allowed(self, wish: Wish, known: Times) -> float:
        """The predicted divergence that ``max_drop`` allows.

        It is found by running plans along the objective.
        """
        assert wish.objective is not None
        assert wish.max_drop is not None
        quantity = OBJECTIVES[wish.objective]
        priced = known.priced(self.state, slower=quantity != "latency")
        found = judge.smallest(priced, wish.max_drop.value, quantity, wish.select, wish.metric)
        return found.divergence

    def _late(self, wish: Wish, measured: Measured) -> bool:
        """Whether the plan misses the latency budget."""
        limit = wish.select.max_latency
        if limit is None:
            return False
        bench = self.bench
        return measured.time > limit.limit(bench.time * bench.ms_per_unit) / bench.ms_per_unit

    def _rank(self, wish: Wish, each: _Tried) -> tuple[bool, bool, float]:
        late = self._late(wish, each.measured)
        timed = wish.objective in ("latency", "cycles") or each.slower or late
        return late, each.slower, each.measured.time if timed else _goal(each.choice, wish)


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


def _line(tried: _Tried, turn: Round) -> str:
    """The measured plan as a line of the log."""
    selection, ratio = tried.choice.selection, tried.measured.ratio
    methods = dict.fromkeys(c.method for c in selection.chosen if c.method is not None)
    used = ", ".join(methods) or "nothing factorized"
    used += f", {len(selection.keeps)} groups of filters cut" if selection.keeps else ""
    sure = f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.source == MEASURED else ""
    predicted = f"predicted {milliseconds(turn.predicted_ms)}"
    found = f"{ratio.source} {milliseconds(turn.measured_ms)}"
    return f"  {used}: {predicted}, {found}, speed-up of the plan {factor(ratio.median)}{sure}"


def _goal(choice: _Choice, wish: Wish) -> float:
    if wish.objective is None:
        return choice.selection.divergence
    return choice.selection.cost(OBJECTIVES[wish.objective])


def _methods(state: State) -> tuple[str, ...]:
    spaces = state.fact(DesignSpace).spaces
    return tuple(dict.fromkeys(c.method for s in spaces for c in s.candidates if c.method))
