"""The measured loop: allocate, rewrite, emit, measure, correct the prices, and allocate again until what is predicted is what is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lrfc.config.build import Budget, Drop
from lrfc.costs.latency import CostProfile, corrected
from lrfc.costs.workload import Signature
from lrfc.engine import budgets
from lrfc.engine import evaluate as judge
from lrfc.engine.plans import rewritten, selected
from lrfc.errors import BudgetError
from lrfc.ir.graph import Graph
from lrfc.metrics.source import MEASURED
from lrfc.passes.price_layers import PriceLayers, executed
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Target
from lrfc.pruning.costs import narrower
from lrfc.pruning.facts import Selection
from lrfc.pruning.kept_fractions import Shares
from lrfc.pruning.selection import Minimised, fixed
from lrfc.pruning.space import FilterSpace
from lrfc.results.manifest import Round
from lrfc.search.facts import DesignSpace, Price
from lrfc.search.pricing import Reading, key
from lrfc.state import Progress, State
from lrfc.targets.devices.speed import Ratio

#: Plans that are emitted and measured at most, and how close prediction and measurement are when the loop ends.
ROUNDS = 5
AGREE = 0.05
#: What ``--objective`` names → the quantity of a candidate that is minimised, and the one whose budget is walked to learn what the accuracy allows.
OBJECTIVES: Mapping[str, Minimised] = {"latency": "latency", "cycles": "latency", "macs": "macs", "size": "params", "ram": "macs"}


class Measured(Protocol):
    """A plan beside the original; see ``lrfc.engine.benchmark.Trial``."""

    @property
    def ratio(self) -> Ratio: ...  # noqa: D102
    @property
    def time(self) -> float: ...  # noqa: D102
    @property
    def ops(self) -> tuple[Signature, ...]: ...  # noqa: D102
    @property
    def known(self) -> Mapping[Signature, float]: ...  # noqa: D102


class Measures(Protocol):
    """Measures plans on the device; see ``lrfc.engine.benchmark.Bench``."""

    time: float
    ms_per_unit: float
    ops: tuple[Signature, ...]
    known: Mapping[Signature, float]
    reading: Reading

    def __call__(self, graph: Graph) -> Measured: ...  # noqa: D102
    def prices(self, wanted: Sequence[Signature]) -> Mapping[Signature, float]: ...  # noqa: D102


@dataclass(frozen=True)
class Wish:
    """What a plan has to keep, and what it is to be best in.

    ``select``: budgets on MACs, parameters and latency, and the methods. ``objective``: the quantity to make small as far as ``max_drop`` allows; None
    to keep the outputs as close as the budgets allow, and then ``max_drop`` is only looked at in the end. ``metric``: what drops, see lrfc.metrics.metric.
    """

    select: SelectRanks
    max_size: Budget | None = None
    max_ram: Budget | None = None
    objective: str | None = None
    max_drop: Drop | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Plan:
    """A selection to build, the state to run it on, and how it was found: the turns of the loop and, with an objective, the divergence allowed.

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
class _Turn:
    """A plan before it is measured: ``found`` is the state with its Selection."""

    state: State
    select: SelectRanks
    found: State


@dataclass(frozen=True)
class _Tried:
    state: State
    select: SelectRanks
    trial: Measured
    impact: float

    @property
    def slower(self) -> bool:
        return self.trial.ratio.high < 1


class Loop:
    """Settles on a plan for one device. ``profile``: the prices to begin with, whatever they were fitted on; they are corrected by each measurement."""

    def __init__(self, state: State, target: Target, bench: Measures, profile: CostProfile) -> None:
        self._state, self._target, self._bench, self._profile = state, target, bench, profile
        self._executed = executed(state, bench.reading)
        self._seen: list[tuple[tuple[Signature, ...], float]] = [(bench.ops, bench.time)]
        wanted, filters = self._executed.distinct(), state.known(FilterSpace)
        if filters is not None:
            wanted += narrower(state.graph, Shares(state.graph, filters), self._executed)
        self._alone = bench.prices(wanted)
        self._known = {**self._alone, **bench.known}

    def settle(self, wish: Wish, allowed: float | None = None) -> Plan:
        """The plan. ``allowed``: the divergence that ``max_drop`` allows, where an earlier loop on the same data has found it.

        MACs do not tell time: a plan may have half of them and be slower. Each plan is emitted and measured before work goes into it; what was measured
        corrects the prices, and one that is slower than the original loses the method that most of its layers have. The loop ends when prediction
        and measurement agree within 5 %, when a plan comes again, or after five plans. BudgetError when a budget cannot be met.
        """
        if wish.objective is not None and allowed is None:
            allowed = self._allowed(wish)
        methods = _methods(self._state) if wish.select.methods is None else wish.select.methods
        tried: dict[tuple[object, ...], _Tried] = {}
        rounds: list[Round] = []
        narrowed: SelectRanks | None = None
        while len(rounds) < ROUNDS:
            try:
                turn = self._chosen(wish, methods, narrowed, allowed)
            except BudgetError as error:
                if not tried:
                    raise
                self._state.progress.log(f"  at the corrected prices no other plan keeps the budgets: {error}")
                break
            narrowed, found = turn.select, turn.found
            selection = found.fact(Selection)
            place = (*map(key, selection.chosen), *((name, len(keep.units)) for name, keep in selection.keeps.items()))
            if place in tried:
                break
            trial = self._bench(rewritten(found))
            price = found.fact(Price)
            predicted = fixed(found)["latency"] + selection.cost("latency")
            rounds.append(self._round(price, predicted, trial))
            self._told(selection, rounds[-1], trial)
            tried[place] = this = _Tried(turn.state, turn.select, trial, selection.impact)
            self._seen.append((trial.ops, trial.time))
            self._known |= trial.known
            used = [c.method for c in selection.chosen if c.method is not None]
            if this.slower and used:
                methods = tuple(m for m in methods if m != Counter(used).most_common(1)[0][0])
                narrowed = None
                if not methods:
                    break
            elif abs(predicted / trial.time - 1) <= AGREE and not self._late(wish, trial):
                break
        best = min(tried.values(), key=lambda each: self._rank(wish, each))
        design = self._priced(slower=True).fact(DesignSpace)
        return Plan(best.state, best.select, tuple(rounds), wish.objective, allowed, wish.max_drop, design)

    # -- one turn --------------------------------------------------------------------------------------------------------------

    def _chosen(self, wish: Wish, methods: tuple[str, ...], narrowed: SelectRanks | None, allowed: float | None) -> _Turn:
        """The plan at the prices as they stand. ``narrowed``: what an earlier turn found to be the best to mix, None to find it."""
        if wish.objective in ("macs", "size", "ram"):  # what is small may take its time, as long as the whole is not slower
            return self._selected(self._priced(slower=True), wish, methods, narrowed, allowed)
        try:
            return self._selected(self._priced(slower=False), wish, methods, narrowed, allowed)
        except BudgetError:
            found = self._selected(self._priced(slower=True), wish, methods, narrowed, allowed)
            self._state.progress.log("  the budgets need layers that take longer than they do now: these are allowed")
            return found

    def _selected(self, priced: State, wish: Wish, methods: tuple[str, ...], narrowed: SelectRanks | None, allowed: float | None) -> _Turn:
        select = replace(wish.select, methods=methods)
        if narrowed is not None:
            select = replace(select, methods=narrowed.methods, prune=narrowed.prune)
        if wish.objective is not None:
            state, select = self._least(priced, wish, select, allowed)
        else:
            state, select = budgets.meet(priced, select, wish.max_size, wish.max_ram, [self._target])
            if narrowed is None:
                select = judge.closest(state, select)
        return _Turn(state, select, selected(state, select))

    def _least(self, state: State, wish: Wish, select: SelectRanks, allowed: float | None) -> tuple[State, SelectRanks]:
        """The selection that is best in the objective with no more than the allowed divergence."""
        assert wish.objective is not None
        select = replace(select, max_impact=allowed)
        if wish.objective != "ram":
            return budgets.meet(state, replace(select, minimise=OBJECTIVES[wish.objective]), wish.max_size, wish.max_ram, [self._target])
        return _least_ram(state, select, wish, self._target)

    def _priced(self, *, slower: bool) -> State:
        profile = corrected(self._profile, self._seen)
        price = PriceLayers(profile, self._known, self._alone, self._bench.ms_per_unit, slower, self._executed)
        return price(self._state)

    def _allowed(self, wish: Wish) -> float:
        """The predicted divergence that ``max_drop`` allows, learnt by running plans along the objective."""
        assert wish.objective is not None
        assert wish.max_drop is not None
        priced = self._priced(slower=OBJECTIVES[wish.objective] != "latency")
        return judge.smallest(priced, wish.max_drop.value, OBJECTIVES[wish.objective], wish.select, wish.metric).impact

    def _round(self, price: Price, predicted: float, trial: Measured) -> Round:
        cycles = price.unit == "cycles"
        return Round(
            predicted_ms=predicted * price.ms_per_unit, measured_ms=trial.time * price.ms_per_unit,
            predicted_cycles=round(predicted) if cycles else None, measured_cycles=round(trial.time) if cycles else None,
            source=trial.ratio.source,
        )  # fmt: skip

    def _told(self, selection: Selection, turn: Round, trial: Measured) -> None:
        used = ", ".join(dict.fromkeys(c.method for c in selection.chosen if c.method is not None)) or "nothing factorized"
        used += f", {len(selection.keeps)} groups of filters cut" if selection.keeps else ""
        ratio = trial.ratio
        sure = f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.source == MEASURED else ""
        self._state.progress.log(
            f"  {used}: predicted {turn.predicted_ms:.4g} ms, {ratio.source} {turn.measured_ms:.4g} ms,"
            f" speed-up of the plan ×{ratio.median:.2f}{sure}"
        )

    def _late(self, wish: Wish, trial: Measured) -> bool:
        """Whether the plan misses the latency budget."""
        limit = wish.select.max_latency
        return limit is not None and trial.time > limit.limit(self._bench.time * self._bench.ms_per_unit) / self._bench.ms_per_unit

    def _rank(self, wish: Wish, each: _Tried) -> tuple[bool, bool, float]:
        timed = wish.objective in ("latency", "cycles") or each.slower or self._late(wish, each.trial)
        return self._late(wish, each.trial), each.slower, each.trial.time if timed else _goal(each, wish)


def _goal(each: _Tried, wish: Wish) -> float:
    if wish.objective is None:
        return each.impact
    selection = selected(each.state, each.select).fact(Selection)
    return selection.cost(OBJECTIVES[wish.objective])


def _methods(state: State) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.method for s in state.fact(DesignSpace).spaces for c in s.candidates if c.method))


def _least_ram(state: State, select: SelectRanks, wish: Wish, target: Target) -> tuple[State, SelectRanks]:
    """The least activation memory within the allowed divergence, found by bisection; of the plans with it the one with the fewest MACs."""
    select = replace(select, minimise="macs")
    low, high = 0.0, 1.0 if wish.max_ram is None else wish.max_ram.value if wish.max_ram.relative else 1.0
    best = budgets.meet(state, select, wish.max_size, wish.max_ram, [target])
    silent = replace(state, progress=Progress())  # one line for each limit says nothing
    while high - low > 0.01:
        share = (low + high) / 2
        try:
            limit = Budget(value=share, relative=True)
            found = budgets.meet(silent, select, wish.max_size, limit, [target])
            selected(*found)
        except BudgetError:
            low = share
        else:
            best, high = (replace(found[0], progress=state.progress), found[1]), share
    return best
