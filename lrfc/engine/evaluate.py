"""How far compression may go: a search over plans that run on data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lrfc.config.build import Budget
from lrfc.engine.judge import Judge
from lrfc.engine.judgement import QUICK, Judgement
from lrfc.engine.plans import selected
from lrfc.errors import BudgetError
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import reachable, without_filters
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import costs
from lrfc.state import State
from lrfc.system import spans
from lrfc.text import percent

#: Largest predicted divergence (see lrfc.search.sensitivity) of a plan without data to run it on.
SAFE_DIVERGENCE = 0.01
#: Most plans that the search for the smallest network runs, and most of them that are judged fully,
#: before full judgements confirm its result; the width of the interval, as a share of the quantity,
#: at which it stops.
STEPS, FULLY = 7, 4
WIDTH = 0.01
#: Predicted divergence of the first plan, as a multiple of the allowed drop.
START = 2.0
#: While none of more than two plans is within the drop, the next one has this share of the
#: divergence that the curve allows, and again for each further plan that was not.
AIM = 0.8
#: Quantity → its name in the log.
NOUNS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


@dataclass(frozen=True)
class Bound:
    """The smallest budget at which the drop is allowed, and the predicted divergence there."""

    budget: Budget
    divergence: float


@dataclass(frozen=True)
class _Point:
    """A plan on the curve of drop against predicted divergence.

    ``excess``: the drop, with its margin, as a multiple of the allowed one. ``text``: for the log.
    ``full``: False after a quick judgement, which was clear.
    """

    predicted: float
    excess: float
    within: bool
    text: str
    full: bool = True


def smallest(
    state: State,
    max_drop: float,
    quantity: str = "macs",
    select: SelectRanks | None = None,
    judge: Callable[[], Judge] | None = None,
) -> Bound:
    """Search for the smallest budget on a quantity that keeps the accuracy before fine-tuning.

    The drop of the validation score has to be within ``max_drop``, with 90 % confidence.
    ``quantity``: 'macs', 'params' or 'latency'. ``select``: other budgets, which hold too.
    ``judge`` returns the judge that runs the plans, by its metric; None for a new one.

    Plans on the Pareto front are run one after the other. The first one has a predicted divergence
    in proportion to the drop; the next ones follow from the curve of drop against predicted
    divergence through the plans that were run. A plan is judged quickly first, and fully unless
    that is clear; the one whose budget is returned was judged fully. Without data no plan is run:
    the predicted divergence must stay below ``SAFE_DIVERGENCE``. BudgetError when not even the
    largest plan is within.
    """
    base = select or SelectRanks()

    def at(share: float) -> State:
        budget: dict[str, Any] = {f"max_{quantity}": Budget(value=share, relative=True)}
        return selected(state, replace(base, **budget))

    search = _Search(state, max_drop, quantity, _evaluation(state, max_drop, judge), at)
    # With filters an allocation takes seconds: too long to search for the next plan on the curve.
    bisect = base.prune and state.known(FilterSpace) is not None
    bound = search.run(*_range(state, base, quantity), bisect=bisect)
    if bound is None:
        raise BudgetError(
            f"no factorization stays within --max-drop {100 * max_drop:.3g}pp; allow a larger drop,"
            " or give a budget such as --max-macs 80%"
        )
    return bound


class _Search:
    """The search for the smallest share of a quantity; ``at`` returns the selection at a share."""

    def __init__(
        self,
        state: State,
        max_drop: float,
        quantity: str,
        evaluate: _Evaluate,
        at: Callable[[float], State],
    ) -> None:
        self._evaluate, self._at, self._max_drop = evaluate, at, max_drop
        self._log, self._noun = state.progress.log, NOUNS[quantity]
        self._step = state.progress.stage("budget", STEPS + FULLY)
        self._runs: list[_Point] = []
        #: The shares that are within the drop by a quick judgement, the smallest last, and the
        #: predicted divergence of each.
        self._promising: list[tuple[float, float]] = []
        self._bound: Bound | None = None

    def run(self, low: float, high: float, *, bisect: bool) -> Bound | None:
        """The bound between two shares; None where no plan is within the drop."""
        middle = (low + high) / 2
        share = middle if bisect else self._share(START * self._max_drop, low, high)
        top = high
        for _ in range(STEPS - 1):
            try:
                planned = self._at(share)
            except BudgetError:  # the other budgets cannot be met with so little
                low, share = share, (share + high) / 2
                continue
            if self._run(planned, share, fully=False):
                high = share
            else:
                low = share
            done = self._bound is not None and sum(p.full for p in self._runs) >= FULLY
            if done or high - low < WIDTH:
                break
            share = (low + high) / 2 if bisect else self._next(low, high)
        return self._confirmed(top)

    def _run(self, planned: State, share: float, *, fully: bool) -> bool:
        """Whether a plan is within the drop, by a full judgement or a clear quick one."""
        with spans.span(f"{percent(share)} of the {self._noun}", "plan"):
            point = self._evaluate(planned, fully)
            spans.verdict(point.text)
        self._runs.append(point)
        self._log(f"  {percent(share)} of the {self._noun}: {point.text}")
        self._step(1)
        if point.within and point.full:
            self._bound = Bound(Budget(value=share, relative=True), point.predicted)
            self._promising = [other for other in self._promising if other[0] < share]
        elif point.within:
            self._promising.append((share, point.predicted))
        return point.within

    def _confirmed(self, top: float) -> Bound | None:
        """The bound after full judgements of plans that were within the drop by a quick one only.

        After one that is not, the next one is clearly nearer to the original, if there is one.
        Where none of them is, the search goes on between the largest of them and ``top``.
        """
        share, least = top, np.inf
        while self._promising:
            share, predicted = self._promising.pop()
            if predicted > least and self._promising:
                continue
            if self._run(self._at(share), share, fully=True):
                break
            least = AIM * predicted
        for _ in range(FULLY if self._bound is None and share < top else 0):
            share = (share + top) / 2
            if self._run(self._at(share), share, fully=True):
                break
        return self._bound

    def _next(self, low: float, high: float) -> float:
        """The share to run next.

        The curve through the plans tells the divergence at which the drop is just allowed. After
        one plan, the drop counts as proportional to the divergence. Where no curve rises, it is the
        middle of the interval.
        """
        points = [p for p in self._runs if p.predicted > 0 and p.excess > 0]
        full = [p for p in points if p.full]
        points = full if len({p.predicted for p in full}) > 1 else points
        x, y = np.log([p.predicted for p in points]), np.log([p.excess for p in points])
        if len(points) == 1:
            return self._share(float(np.exp(x[0] - np.clip(y[0], -2, 2))), low, high)
        if len({*x}) < 2:
            return (low + high) / 2
        slope, offset = np.polyfit(x, y, 1)
        if not slope > 0.1:
            return (low + high) / 2
        failed = 0 if self._bound or self._promising else max(0, len(self._runs) - 2)
        return self._share(float(np.exp(-offset / slope)) * AIM**failed, low, high)

    def _share(self, divergence: float, low: float, high: float) -> float:
        """The share with that predicted divergence, away from the ends of the interval."""
        edge = (high - low) / 6
        inner, outer = low + edge, high - edge
        for _ in range(12):  # the divergence falls as the share grows
            share = (inner + outer) / 2
            try:
                above = self._at(share).fact(Selection).divergence > divergence
            except BudgetError:
                above = True
            inner, outer = (share, outer) if above else (inner, share)
            if outer - inner < WIDTH / 4:
                break
        return (inner + outer) / 2


#: The evaluation of a plan; True: judged fully, False: quickly where that is clear.
_Evaluate = Callable[[State, bool], _Point]


def _evaluation(state: State, max_drop: float, given: Callable[[], Judge] | None) -> _Evaluate:
    """The function that evaluates a plan: on data, or by its prediction where there are none."""
    if state.data.synthetic:
        return _by_prediction
    judge = Judge(state) if given is None else given()
    limit = f"{100 * max_drop:.3g}{judge.unit}"
    sure = judge.sure(max_drop)
    if not sure:
        state.progress.log(
            f"  too few samples to confirm a drop of {limit}: the drop on them is taken without its"
            " margin"
        )

    def point(planned: State, judgement: Judgement, *, full: bool) -> _Point:
        return _Point(
            planned.fact(Selection).divergence,
            (judgement.drop + judgement.margin) / max(max_drop, 1e-12),
            judgement.within(max_drop),
            f"{judgement} (at most {limit}{'' if full else '; judged quickly'})",
            full,
        )

    def on_data(planned: State, fully: bool) -> _Point:
        if not fully:
            judgement = judge(planned, QUICK)
            if judgement.within(max_drop) or judgement.drop - judgement.margin > max_drop:
                return point(planned, judgement, full=judge.known(planned))
        judgement = judge(planned)
        judgement = judgement if sure else replace(judgement, margin=0.0)
        return point(planned, judgement, full=True)

    return on_data


def _by_prediction(planned: State, fully: bool) -> _Point:
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
