"""Plans judged by running them on data: how far compression may go, and which methods to mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from lrfc.text import percent, points

#: Without data nothing can be measured: the predicted divergence of the outputs (see
#: lrfc.search.sensitivity) stays below this.
SAFE_DIVERGENCE = 0.01
#: Plans that the search for the smallest network runs at most, and the width of the interval, as a
#: share of the MACs, at which it stops.
STEPS = 7
WIDTH = 0.01
#: A method's own plan is not run when its predicted impact is this many times that of the mixed
#: plan.
HOPELESS = 1.5
#: What a share of a quantity is a share of, in words.
NOUNS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
#: How sure it has to be that the drop is within what is allowed: an interval of 80 %, that is 90 %
#: on the one side.
SURE = 0.8


@dataclass(frozen=True)
class Verdict:
    """What running a plan showed on validation inputs.

    ``divergence`` of the outputs from the original's; ``drop`` of the metric and ``margin`` of that
    figure (one-sided 90 %), times 100 in ``unit``.
    """

    divergence: float
    drop: float
    margin: float
    unit: str = "pp"

    def within(self, allowed: float) -> bool:
        """Whether the drop is at most that, and surely so."""
        return self.drop + self.margin <= allowed

    def __str__(self) -> str:
        sure = f" ± {points(self.margin, short(self.unit))}" if self.margin else ""
        return f"drop {points(self.drop, self.unit)}{sure} before fine-tuning"


class Judge:
    """Rewrites a state that has a Selection, refits it and runs it on validation inputs."""

    def __init__(self, state: State, name: str | None = None) -> None:
        # Few validation samples say little; training samples that no layer is fitted to say more.
        validation, train = state.data.validation, state.data.train
        few = validation.head(JUDGED)
        first = min(FITTED, len(train))
        last = min(FITTED + JUDGED - len(few), len(train))
        unseen = train.take(np.arange(first, last))
        self._few = _joined(few, unseen)
        self._reference = keras_io.predict(state.original, self._few.inputs)
        self._metric = metric(name, state.original, self._few)
        self.unit = short(self._metric.drop_unit)

    def sure(self, allowed: float) -> bool:
        """Whether there are enough samples to be sure of such a drop at all."""
        same = held(self._metric, self._few, self._reference, self._reference, confidence=SURE)
        return same.high <= allowed

    def __call__(self, planned: State) -> Verdict:
        """The verdict on the plan of that state."""
        repairs = (RecalibrateBatchNorm(samples=FITTED), Refit(samples=FITTED, patches=8_192))
        graph = rewritten(planned, repairs)
        outputs = keras_io.predict(graph, self._few.inputs)
        found = held(self._metric, self._few, self._reference, outputs, confidence=SURE)
        return Verdict(
            divergence(self._reference, outputs), found.drop, found.high - found.drop, found.unit
        )


def _joined(one: Split, two: Split) -> Split:
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
    """How far compression may go: the smallest budget at which the drop is within what is allowed, and the predicted divergence of the plan there."""

    budget: Budget
    divergence: float


def smallest(
    state: State,
    max_drop: float,
    quantity: str = "macs",
    select: SelectRanks | None = None,
    name: str | None = None,
) -> Bound:
    """The smallest budget on a quantity at which the drop of the validation score before fine-tuning is within ``max_drop``, with 90 % confidence.

    ``quantity``: 'macs', 'params' or 'latency'; ``select`` holds the budgets that are kept besides.
    Points of the Pareto front are run one after the other; where the next one lies follows from the
    curve of drop against predicted divergence that the points so far show on this very model.
    ``name`` is that of the metric (lrfc.metrics.metric); without labels it is the fidelity to the
    original's outputs. On synthetic data nothing is run: the predicted divergence must stay below
    ``SAFE_DIVERGENCE``. BudgetError when not even the largest candidate is within.
    """
    judge = None if state.data.synthetic else Judge(state, name)
    sure = judge is None or judge.sure(max_drop)
    if judge is not None and not sure:
        state.progress.log(
            f"  too few samples to be sure of {100 * max_drop:.3g}{judge.unit}: the drop that they"
            " show is taken as it is"
        )
    base, field = select or SelectRanks(), f"max_{quantity}"
    whole, given = costs(state)[quantity], getattr(base, field)
    low, high = reachable(state if base.prune else without_filters(state), quantity) / whole, 1.0
    if given is not None:
        high = min(high, given.value if given.relative else given.value / whole)

    def at(share: float) -> State:
        bound: dict[str, Any] = {field: Budget(value=share, relative=True)}
        return selected(state, replace(base, **bound))

    step = state.progress.stage("budget", STEPS)
    seen: list[tuple[float, float]] = []
    found = None
    share = (low + high) / 2
    for _ in range(STEPS):
        try:
            planned = at(share)
        except BudgetError:  # the budgets that are kept besides do not allow so little
            low, share = share, (share + high) / 2
            continue
        impact = planned.fact(Selection).divergence
        if judge is None:
            good = impact <= SAFE_DIVERGENCE
            state.progress.log(
                f"  {percent(share)} of the {NOUNS[quantity]}: predicted divergence {impact:.4f}"
                f" (at most {SAFE_DIVERGENCE})"
            )
            seen.append((impact, impact / SAFE_DIVERGENCE))
        else:
            verdict = judge(planned)
            verdict = verdict if sure else replace(verdict, margin=0.0)
            good = verdict.within(max_drop)
            state.progress.log(
                f"  {percent(share)} of the {NOUNS[quantity]}: {verdict} (at most"
                f" {100 * max_drop:.3g}{judge.unit})"
            )
            seen.append((impact, (verdict.drop + verdict.margin) / max(max_drop, 1e-12)))
        if good:
            found, high = Bound(Budget(value=share, relative=True), impact), share
        else:
            low = share
        step(1)
        if high - low < WIDTH:
            break
        # With filters in it an allocation takes seconds: too long to search for the next point on
        # the curve.
        share = (
            (low + high) / 2
            if base.prune and state.known(FilterSpace) is not None
            else _next(at, seen, low, high)
        )
    if found is None:
        raise BudgetError(
            f"no factorization stays within --max-drop {100 * max_drop:.3g}pp; allow a larger drop,"
            " or give a budget such as --max-macs 80%"
        )
    return found


def _next(
    at: Callable[[float], State], seen: list[tuple[float, float]], low: float, high: float
) -> float:
    """The share of the quantity to run next: where the curve through what was seen meets 1, kept off the interval's ends; its middle without a curve.

    ``at`` gives the selection at a share; ``seen`` holds predicted divergences and the drop there
    as a multiple of the allowed one.
    """
    middle = (low + high) / 2
    points = [(x, y) for x, y in seen if x > 0 and y > 0]
    if len({x for x, _ in points}) < 2:
        return middle
    x, y = (np.log([point[axis] for point in points]) for axis in (0, 1))
    slope, offset = np.polyfit(x, y, 1)
    if not slope > 0.1:
        return middle
    wanted = np.exp(-offset / slope)
    edge = (high - low) / 6
    inner, outer = low + edge, high - edge
    for _ in range(12):  # the impact falls with the share, so bisection finds it
        share = (inner + outer) / 2
        try:
            above = at(share).fact(Selection).divergence > wanted
        except BudgetError:
            above = True
        inner, outer = (share, outer) if above else (inner, share)
        if outer - inner < WIDTH / 4:
            break
    return (inner + outer) / 2


def closest(state: State, select: SelectRanks) -> SelectRanks:
    """The selection whose plan keeps the network closest to the original when it is run: all methods mixed, or one convolution method throughout.

    The impact of a plan is predicted layer by layer; how the errors of many layers add up is not.
    So the best mixed plan and the best plan of each convolution method (with all that factorize
    fully connected layers) are rewritten, refitted and run on validation inputs, and the one with
    the least output divergence is taken; where filters may be cut, also the best plans that cut
    none and that cut nothing else. Plans that are predicted to be far worse than the mixed one are
    not run. On synthetic data, where nothing can be refitted, the mixed plan is taken.
    """
    others = list(_alternatives(state, select))
    if state.data.synthetic or not others:
        return select
    judge = Judge(state)
    step = state.progress.stage("plans", len(others) + 1)
    mixed = selected(state, select)
    predicted = mixed.fact(Selection).divergence
    found = [(judge(mixed).divergence, select)]
    state.progress.log(
        f"  all together: predicted {predicted:.4f}, output divergence {found[0][0]:.4f}"
    )
    step(1)
    for name, other in others:
        step(1)
        try:
            planned = selected(state, other)
        except BudgetError as error:
            state.progress.log(f"  {name}: {error}")
            continue
        impact = planned.fact(Selection).divergence
        if impact > HOPELESS * predicted:
            state.progress.log(
                f"  {name}: predicted {impact:.4f}, the mixed plan {predicted:.4f}; not run"
            )
            continue
        found.append((judge(planned).divergence, other))
        state.progress.log(
            f"  {name}: predicted {impact:.4f}, output divergence {found[-1][0]:.4f}"
        )
    return min(found, key=lambda each: each[0])[1]


def _alternatives(state: State, select: SelectRanks) -> Iterator[tuple[str, SelectRanks]]:
    """The plans that the mixed one is held against, each with its name."""
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
        for one in convolutions:
            choice = tuple(m for m in methods if m == one or m in dense)
            yield ", ".join(choice), replace(select, methods=choice)
    if select.prune and state.known(FilterSpace) is not None and methods:
        if not select.rooms:  # memory is minded with the filters, or in the candidates
            yield "no filters cut", replace(select, prune=False)
        yield "filters alone", replace(select, methods=())
