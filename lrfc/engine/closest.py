"""Which methods to mix: plans of one method beside the mixed one, judged on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from lrfc.engine.judge import Judge
from lrfc.engine.judgement import QUICK
from lrfc.engine.plans import selected
from lrfc.errors import BudgetError
from lrfc.factorization.warm import quick
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State
from lrfc.system import spans

#: A plan is not run when its predicted divergence exceeds that of the mixed plan by this factor.
HOPELESS = 1.5
#: Output divergence by a quick judgement, relative to that by a full one, of a plan whose layers
#: are all fitted by few sweeps (CP): they leave up to 1.8 times the squared error.
BIAS = 2.0
#: The ratio of two divergences that is worth two full judgements: on ResNet-20, a fifth is less
#: than the noise of the accuracy on 10,000 images.
WORTH = 1.2

_Plans = Mapping[str, tuple[State, SelectRanks]]


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
    plans = _distinct(state, select, others)
    if len(plans) == 1:
        return select
    evaluate = Judge(state) if judge is None else judge()
    return plans[least_divergent(plans, evaluate, state.progress)][1]


def least_divergent(plans: _Plans, judge: Judge, progress: Progress) -> str:
    """The name of the plan whose outputs diverge the least from the original's.

    ``plans``: states with a Selection, and how it was selected. All are judged quickly, those that
    may be the closest fully.
    """
    near = _near(plans, judge, progress.log)
    if len(near) == 1:
        return next(iter(near))
    step = progress.stage("plans", len(near))
    results = {}
    for name, (planned, _) in near.items():
        with spans.span(name, "plan"):
            results[name] = judge(planned).divergence
            spans.verdict(f"output divergence {results[name]:.4f}")
        own = planned.fact(Selection).divergence
        progress.log(f"  {name}: predicted {own:.4f}, output divergence {results[name]:.4f}")
        step(1)
    return min(results, key=results.__getitem__)


def _distinct(
    state: State, select: SelectRanks, others: Iterable[tuple[str, SelectRanks]]
) -> _Plans:
    """The mixed plan and those of the others that are worth a run and other networks."""
    log = state.progress.log
    mixed = selected(state, select)
    predicted = mixed.fact(Selection).divergence
    plans = {"all together": (mixed, select)}
    networks = {mixed.fact(Selection).network: "all together"}
    for name, other in others:
        try:
            planned = selected(state, other)
        except BudgetError as error:
            log(f"  {name}: {error}")
            continue
        own = planned.fact(Selection).divergence
        if own > HOPELESS * predicted:
            log(f"  {name}: predicted {own:.4f}, the mixed plan {predicted:.4f}; not run")
            continue
        same = networks.setdefault(planned.fact(Selection).network, name)
        if same != name:
            log(f"  {name}: the same network as {same}")
        else:
            plans[name] = planned, other
    if len(plans) == 1:
        log(f"  all together: predicted {predicted:.4f}, the only plan to run")
    return plans


def _near(plans: _Plans, judge: Judge, log: Callable[[str], None]) -> _Plans:
    """The plans that may be the closest, by a quick judgement, the likely one first.

    The others are plans that would be closer by more than WORTH if the quick fits of one or the
    other were as bad as quick fits can be, or as good as full ones.
    """
    quickly, biases = {}, {}
    for name, (planned, _) in plans.items():
        with spans.span(f"{name}, quickly", "plan"):
            quickly[name] = judge(planned, QUICK).divergence
            spans.verdict(f"output divergence {quickly[name]:.4f}")
        biases[name] = 1 + (BIAS - 1) * _share_of_quick(planned)
        log(f"  {name}: judged quickly, output divergence {quickly[name]:.4f}")
    first = min(quickly, key=lambda name: quickly[name] / biases[name])
    near = [first]
    for name, value in quickly.items():
        least = value / max(1.0, biases[name] / biases[first])
        if name != first and WORTH * least < quickly[first]:
            near.append(name)
    return {name: plans[name] for name in near}


def _share_of_quick(planned: State) -> float:
    """The share of a plan's predicted divergence in layers whose quick judgement fits less well."""
    selection = planned.fact(Selection)
    fitted = [
        candidate.divergence
        for candidate in selection.chosen
        if candidate.method is not None
        and quick(selection.factors[candidate.layer]) is not selection.factors[candidate.layer]
    ]
    return sum(fitted) / max(selection.divergence, 1e-12)


def _alternatives(state: State, select: SelectRanks) -> Iterator[tuple[str, SelectRanks]]:
    """The selections that the mixed plan is compared with, each with its name in the log."""
    spaces = state.fact(DesignSpace).spaces
    dense = {
        c.method for s in spaces if not s.op.info.is_convolution for c in s.candidates if c.method
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
