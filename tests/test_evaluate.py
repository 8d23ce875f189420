"""The search for the smallest network within a drop, and its error when there is none."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from lrfc.config.build import Budget
from lrfc.costs.totals import totals
from lrfc.engine.closest import closest
from lrfc.engine.evaluate import FULLY, SAFE_DIVERGENCE, STEPS, smallest
from lrfc.engine.judge import Judge
from lrfc.engine.judgement import FULL, QUICK, Depth, Judgement
from lrfc.errors import BudgetError
from lrfc.ir.keras import io as keras_io
from lrfc.passes.factorize import Factorize
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import plan, run
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import reachable
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State
from lrfc.training.scoring import scorer
from tests.compression import explored, learnt


@cache
def state() -> State:
    return explored(learnt())


def at(budget: Budget, given: State) -> State:
    return run(
        given,
        plan(
            [SelectRanks(max_macs=budget), Factorize(), RecalibrateBatchNorm(), Refit()],
            known=(DesignSpace,),
        ),
    )


def drop(given: State, budget: Budget) -> float:
    teacher = keras_io.compiled(given.original)
    score = scorer(given.original, teacher, given.data)
    return score(teacher) - score(keras_io.compiled(at(budget, given).graph))


def least() -> float:
    return reachable(state(), "macs") / totals(state().original)["macs"]


@cache
def strict() -> tuple[Budget, list[str], list[int]]:
    """The budget for a drop of 3 percentage points, the log, and the steps of the bar."""
    lines: list[str] = []
    steps: list[int] = []
    return (
        smallest(
            replace(state(), progress=Progress(lambda title, total: steps.append, lines.append)),
            0.03,
        ).budget,
        lines,
        steps,
    )


def test_the_network_within_the_budget_keeps_the_drop() -> None:
    found, _, _ = strict()
    assert found.relative
    assert least() < found.value < 1
    assert drop(state(), found) <= 0.03
    assert (
        totals(at(found, state()).graph)["macs"] <= found.value * totals(state().original)["macs"]
    )


def test_every_plan_is_logged() -> None:
    _, lines, steps = strict()
    assert 2 <= len(lines) == len(steps) <= STEPS + FULLY
    assert all("% of the MACs: drop" in line for line in lines)


def test_a_quick_judgement_never_decides_alone(monkeypatch) -> None:
    fully: list[float] = []
    judged = Judge._evaluate

    def recorded(self: Judge, planned: State, depth: Depth) -> Judgement:
        if depth is FULL:
            fully.append(planned.fact(Selection).divergence)
        return judged(self, planned, depth)

    monkeypatch.setattr(Judge, "_evaluate", recorded)
    for allowed in (0.03, 1.0):
        fully.clear()
        bound = smallest(state(), allowed)
        assert bound.divergence in fully
        assert len(fully) <= FULLY + 1


def test_a_plan_that_is_clear_only_by_a_quick_judgement_is_refused(monkeypatch) -> None:
    def verdict(self: Judge, planned: State, depth: Depth) -> Judgement:
        within = depth is QUICK or planned.fact(Selection).cost("macs") > 0.7 * whole
        return Judgement(0.1, 0.0 if within else 1.0, 0.0)

    whole = totals(state().original)["macs"]
    monkeypatch.setattr(Judge, "_evaluate", verdict)
    bound = smallest(state(), 0.5)
    assert bound.budget.value > 0.7


def test_far_plans_are_judged_quickly_only(monkeypatch) -> None:
    depths: list[tuple[str, Depth]] = []
    lines: list[str] = []

    def verdict(self: Judge, planned: State, depth: Depth) -> Judgement:
        methods = {c.method for c in planned.fact(Selection).chosen if c.method}
        name = "mixed" if len(methods) > 1 else methods.pop()
        depths.append((name, depth))
        # The full judgement decides between the two near ones, one of which has quick fits only.
        quick, full = {"cp": (0.15, 0.11), "mixed": (0.10, 0.10)}.get(name, (0.5, 0.0))
        return Judgement(full if depth is FULL else quick, 0.0, 0.0)

    def share(planned: State) -> float:
        methods = {c.method for c in planned.fact(Selection).chosen if c.method}
        return float(methods == {"cp"})

    monkeypatch.setattr(Judge, "_evaluate", verdict)
    monkeypatch.setattr("lrfc.engine.closest.HOPELESS", 1e9)
    monkeypatch.setattr("lrfc.engine.closest._share_of_quick", share)
    logged = replace(state(), progress=Progress(log=lines.append))
    select = SelectRanks(max_macs=Budget(value=0.4, relative=True))
    assert closest(logged, select) == select
    assert {name for name, depth in depths if depth is FULL} == {"mixed", "cp"}
    quickly = {name for name, depth in depths if depth is QUICK}
    assert len(quickly) > 2
    assert (
        sum("judged quickly, output divergence 0.5000" in line for line in lines)
        == len(quickly) - 2
    )


def test_no_plan_is_judged_fully_where_quick_judgements_tell_them_apart(monkeypatch) -> None:
    depths: list[Depth] = []

    def verdict(self: Judge, planned: State, depth: Depth) -> Judgement:
        depths.append(depth)
        methods = {c.method for c in planned.fact(Selection).chosen if c.method}
        return Judgement(0.1 if methods == {"tucker2"} else 0.11, 0.0, 0.0)

    monkeypatch.setattr(Judge, "_evaluate", verdict)
    monkeypatch.setattr("lrfc.engine.closest.HOPELESS", 1e9)
    monkeypatch.setattr("lrfc.engine.closest._share_of_quick", lambda planned: 0.5)
    chosen = closest(state(), SelectRanks(max_macs=Budget(value=0.4, relative=True)))
    assert "tucker2" in (chosen.methods or ())
    assert set(depths) == {QUICK}
    assert len(depths) > 2


def test_with_every_drop_allowed_the_smallest_network_is_found(monkeypatch) -> None:
    monkeypatch.setattr("lrfc.engine.evaluate.STEPS", 4)
    found = smallest(state(), 1.0).budget
    assert found.value < strict()[0].value
    assert least() < found.value <= least() + (1 - least()) / 2**4


def test_a_drop_that_nothing_keeps(monkeypatch) -> None:
    monkeypatch.setattr("lrfc.engine.evaluate.STEPS", 2)
    with pytest.raises(
        BudgetError,
        match=(
            r"no factorization stays within --max-drop -500pp; allow a larger drop, or give a"
            r" budget"
        ),
    ):
        smallest(state(), -5)


def test_on_synthetic_data_the_prediction_decides() -> None:
    given = replace(state(), data=replace(state().data, synthetic=True))
    found = smallest(given, 0.01).budget
    predicted = SelectRanks(max_macs=found)(given).fact(Selection).divergence
    assert 0 < predicted <= SAFE_DIVERGENCE
    smaller = Budget(value=found.value - 0.05, relative=True)
    assert SelectRanks(max_macs=smaller)(given).fact(Selection).divergence > SAFE_DIVERGENCE
