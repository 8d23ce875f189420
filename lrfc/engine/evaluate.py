"""Evaluation of plans on data: how far compression may go, and which methods to mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lrfc.config.build import Budget
from lrfc.data.counts import FITTED, JUDGED
from lrfc.data.dataset import Split
from lrfc.engine.plans import rewritten, selected
from lrfc.errors import BudgetError
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.contract import held
from lrfc.metrics.metric import metric
from lrfc.metrics.outcome import short
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import reachable, without_filters
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace, costs
from lrfc.search.sensitivity import divergence
from lrfc.state import State
from lrfc.system import spans
from lrfc.text import percent, points

#: Largest predicted divergence (see lrfc.search.sensitivity) of a plan without data to run it on.
SAFE_DIVERGENCE = 0.01
#: Most plans that the search for the smallest network runs, and the width of the interval, as a
#: share of the quantity, at which it stops.
STEPS = 7
WIDTH = 0.01
#: A plan is not run when its predicted divergence exceeds that of the mixed plan by this factor.
HOPELESS = 1.5
#: Quantity → its name in the log.
NOUNS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
#: Confidence of the two-sided interval of the drop: 80 %, that is 90 % on one side.
SURE = 0.8


@dataclass(frozen=True)
class Verdict:
    """The evaluation of a plan on validation samples.

    ``divergence`` of the outputs from the original's; ``drop`` of the metric, and its one-sided
    90 % ``margin``. Times 100, both are in ``unit``.
    """

    divergence: float
    drop: float
    margin: float
    unit: str = "pp"

    def within(self, allowed: float) -> bool:
        """Whether the drop with its margin is at most that."""
        return self.drop + self.margin <= allowed

    def __str__(self) -> str:
        margin = f" ± {points(self.margin, short(self.unit))}" if self.margin else ""
        return f"drop {points(self.drop, self.unit)}{margin} before fine-tuning"


class Judge:
    """Rewrites a state that has a Selection, refits it and runs it on validation samples."""

    def __init__(self, state: State, name: str | None = None) -> None:
        # Where there are few validation samples, training samples that no layer is fitted to join.
        train, validation = state.data.train, state.data.validation.head(JUDGED)
        first = min(FITTED, len(train))
        last = min(FITTED + JUDGED - len(validation), len(train))
        unseen = train.take(np.arange(first, last))
        self._samples = _joined(validation, unseen)
        self._reference = keras_io.predict(state.original, self._samples.inputs)
        self._verdicts: dict[tuple[object, ...], Verdict] = {}
        self._metric = metric(name, state.original, self._samples)
        self.unit = short(self._metric.drop_unit)

    def sure(self, allowed: float) -> bool:
        """Whether there are enough samples: without any drop, the margin is within ``allowed``."""
        same = held(self._metric, self._samples, self._reference, self._reference, confidence=SURE)
        return same.high <= allowed

    def __call__(self, planned: State) -> Verdict:
        """The evaluation of the plan of a state; a plan that returns is not run again."""
        network = planned.fact(Selection).network
        if network not in self._verdicts:
            self._verdicts[network] = self._evaluate(planned)
        return self._verdicts[network]

    def _evaluate(self, planned: State) -> Verdict:
        repairs = (RecalibrateBatchNorm(samples=FITTED), Refit(samples=FITTED, patches=8_192))
        graph = rewritten(planned, repairs)
        outputs = keras_io.predict(graph, self._samples.inputs)
        loss = held(self._metric, self._samples, self._reference, outputs, confidence=SURE)
        return Verdict(
            divergence(self._reference, outputs), loss.drop, loss.high - loss.drop, loss.unit
        )


def _joined(one: Split, two: Split) -> Split:
    """The samples of both, with targets where both have them."""
    if one.targets is None or two.targets is None:
        return Split(
            tuple(np.concatenate(pair) for pair in zip(one.inputs, two.inputs, strict=True))
        )
    return Split(
        *(
            tuple(np.concatenate(pair) for pair in zip(a, b, strict=True))
            for a, b in ((one.inputs, two.inputs), (one.targets, two.targets))
        )
    )


@dataclass(frozen=True)
class Bound:
    """The smallest budget at which the drop is allowed, and the predicted divergence there."""

    budget: Budget
    divergence: float


@dataclass(frozen=True)
class _Point:
    """A plan on the curve of drop against predicted divergence.

    ``excess``: the drop, with its margin, as a multiple of the allowed one. ``text``: for the log.
    """

    predicted: float
    excess: float
    within: bool
    text: str


def smallest(
    state: State,
    max_drop: float,
    quantity: str = "macs",
    select: SelectRanks | None = None,
    name: str | None = None,
) -> Bound:
    """Search for the smallest budget on a quantity that keeps the accuracy before fine-tuning.

    The drop of the validation score has to be within ``max_drop``, with 90 % confidence.
    ``quantity``: 'macs', 'params' or 'latency'. ``select``: other budgets, which hold too.
    ``name``: of the metric (lrfc.metrics.metric); without labels it is the fidelity to the
    original's outputs.

    Plans on the Pareto front are run one after the other. The next one follows from the curve of
    drop against predicted divergence through the plans that were run. Without data no plan is run:
    the predicted divergence must stay below ``SAFE_DIVERGENCE``. BudgetError when not even the
    largest plan is within.
    """
    evaluate = _evaluation(state, max_drop, name)
    base = select or SelectRanks()

    def at(share: float) -> State:
        budget: dict[str, Any] = {f"max_{quantity}": Budget(value=share, relative=True)}
        return selected(state, replace(base, **budget))

    low, high = _range(state, base, quantity)
    # With filters an allocation takes seconds: too long to search for the next plan on the curve.
    bisect = base.prune and state.known(FilterSpace) is not None
    step = state.progress.stage("budget", STEPS)
    runs: list[_Point] = []
    bound = None
    share = (low + high) / 2
    for _ in range(STEPS):
        try:
            planned = at(share)
        except BudgetError:  # the other budgets cannot be met with so little
            low, share = share, (share + high) / 2
            continue
        with spans.span(f"{percent(share)} of the {NOUNS[quantity]}", "plan"):
            point = evaluate(planned)
            spans.verdict(point.text)
        runs.append(point)
        state.progress.log(f"  {percent(share)} of the {NOUNS[quantity]}: {point.text}")
        if point.within:
            bound, high = Bound(Budget(value=share, relative=True), point.predicted), share
        else:
            low = share
        step(1)
        if high - low < WIDTH:
            break
        share = (low + high) / 2 if bisect else _next(at, runs, low, high)
    if bound is None:
        raise BudgetError(
            f"no factorization stays within --max-drop {100 * max_drop:.3g}pp; allow a larger drop,"
            " or give a budget such as --max-macs 80%"
        )
    return bound


def _evaluation(state: State, max_drop: float, name: str | None) -> Callable[[State], _Point]:
    """The function that evaluates a plan: on data, or by its prediction where there are none."""
    if state.data.synthetic:
        return _by_prediction
    judge = Judge(state, name)
    limit = f"{100 * max_drop:.3g}{judge.unit}"
    sure = judge.sure(max_drop)
    if not sure:
        state.progress.log(
            f"  too few samples to confirm a drop of {limit}: the drop on them is taken without its"
            " margin"
        )

    def on_data(planned: State) -> _Point:
        verdict = judge(planned)
        verdict = verdict if sure else replace(verdict, margin=0.0)
        return _Point(
            planned.fact(Selection).divergence,
            (verdict.drop + verdict.margin) / max(max_drop, 1e-12),
            verdict.within(max_drop),
            f"{verdict} (at most {limit})",
        )

    return on_data


def _by_prediction(planned: State) -> _Point:
    """The plan by its predicted divergence, without running it."""
    predicted = planned.fact(Selection).divergence
    return _Point(
        predicted,
        predicted / SAFE_DIVERGENCE,
        predicted <= SAFE_DIVERGENCE,
        f"predicted divergence {predicted:.4f} (at most {SAFE_DIVERGENCE})",
    )


def _range(state: State, base: SelectRanks, quantity: str) -> tuple[float, float]:
    """The least share of a quantity that is possible, and the largest that the budget allows."""
    whole, budget = costs(state)[quantity], getattr(base, f"max_{quantity}")
    low = reachable(state if base.prune else without_filters(state), quantity) / whole
    if budget is None:
        return low, 1.0
    return low, min(1.0, budget.value if budget.relative else budget.value / whole)


def _next(at: Callable[[float], State], runs: Sequence[_Point], low: float, high: float) -> float:
    """The share of the quantity to run next; ``at`` returns the selection at a share.

    The curve through the plans tells the divergence at which the drop is just allowed; the share
    there is found by bisection, away from the ends of the interval. Without a curve it is the
    middle of the interval.
    """
    middle = (low + high) / 2
    curve = [(p.predicted, p.excess) for p in runs if p.predicted > 0 and p.excess > 0]
    if len({x for x, _ in curve}) < 2:
        return middle
    x, y = (np.log([pair[axis] for pair in curve]) for axis in (0, 1))
    slope, offset = np.polyfit(x, y, 1)
    if not slope > 0.1:
        return middle
    allowed = np.exp(-offset / slope)
    edge = (high - low) / 6
    inner, outer = low + edge, high - edge
    for _ in range(12):  # the divergence falls as the share grows
        share = (inner + outer) / 2
        try:
            above = at(share).fact(Selection).divergence > allowed
        except BudgetError:
            above = True
        inner, outer = (share, outer) if above else (inner, share)
        if outer - inner < WIDTH / 4:
            break
    return (inner + outer) / 2


def closest(
    state: State, select: SelectRanks, judge: Callable[[], Judge] | None = None
) -> SelectRanks:
    """Compare the mixed plan with plans of one convolution method, and return the closest one.

    ``judge`` returns the judge that runs the plans; None for a new one.

    The divergence is predicted layer by layer, but the errors of many layers do not simply add up.
    So the best mixed plan and the best plan of each convolution method (with all methods for fully
    connected layers) are rewritten, refitted and run on validation samples. The one with the least
    divergence of the outputs is taken. With pruning, the best plans without cut filters and with
    nothing but cut filters are compared too. Plans whose predicted divergence is far above that of
    the mixed plan are not run. On synthetic data nothing can be refitted: the mixed plan is taken.
    """
    others = list(_alternatives(state, select))
    if state.data.synthetic or not others:
        return select
    evaluate = Judge(state) if judge is None else judge()
    step = state.progress.stage("plans", len(others) + 1)
    mixed = selected(state, select)
    predicted = mixed.fact(Selection).divergence
    with spans.span("all together", "plan"):
        results = [(evaluate(mixed).divergence, select)]
        spans.verdict(f"output divergence {results[0][0]:.4f}")
    state.progress.log(
        f"  all together: predicted {predicted:.4f}, output divergence {results[0][0]:.4f}"
    )
    step(1)
    for name, other in others:
        step(1)
        try:
            planned = selected(state, other)
        except BudgetError as error:
            state.progress.log(f"  {name}: {error}")
            continue
        own = planned.fact(Selection).divergence
        if own > HOPELESS * predicted:
            state.progress.log(
                f"  {name}: predicted {own:.4f}, the mixed plan {predicted:.4f}; not run"
            )
            continue
        with spans.span(name, "plan"):
            results.append((evaluate(planned).divergence, other))
            spans.verdict(f"output divergence {results[-1][0]:.4f}")
        state.progress.log(f"  {name}: predicted {own:.4f}, output divergence {results[-1][0]:.4f}")
    return min(results, key=lambda result: result[0])[1]


def _alternatives(state: State, select: SelectRanks) -> Iterator[tuple[str, SelectRanks]]:
    """The selections that the mixed plan is compared with, each with its name in the log."""
    spaces = state.fact(DesignSpace).spaces
    dense = {
        c.method for s in spaces if s.op.info.is_matrix_product for c in s.candidates if c.method
    }
    offered = {
        c.method for s in spaces if s.op.info.is_convolution for c in s.candidates if c.method
    }
    methods = tuple(sorted(dense | offered)) if select.methods is None else select.methods
    convolutions = [m for m in methods if m in offered]
    if len(convolutions) > 1:
        for convolution in convolutions:
            subset = tuple(m for m in methods if m == convolution or m in dense)
            yield ", ".join(subset), replace(select, methods=subset)
    if select.prune and state.known(FilterSpace) is not None and methods:
        if not select.peak_memory:  # the peak-memory constraint needs the filters in the MILP
            yield "no filters cut", replace(select, prune=False)
        yield "filters alone", replace(select, methods=())
