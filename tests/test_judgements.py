"""Judgements of plans that are stored between builds."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import Budget
from lrfc.engine.judge import Judge
from lrfc.engine.judgement import FULL, QUICK, Depth, Judgement
from lrfc.engine.plans import selected
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.state import State
from lrfc.system.database import cache_file
from tests.compression import explored, learnt


@cache
def state() -> State:
    return explored(learnt())


def at(share: float) -> State:
    return selected(state(), SelectRanks(max_macs=Budget(value=share, relative=True)))


@pytest.fixture(autouse=True)
def runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> list[Depth]:
    """An empty cache; every run of a plan adds its depth."""
    made: list[Depth] = []

    def evaluate(self: Judge, planned: State, depth: Depth) -> Judgement:
        made.append(depth)
        far = planned.fact(Selection).divergence
        return Judgement(far * (1 + depth.quick_fits), far / 3, 0.01 * far)

    monkeypatch.setenv("LRFC_CACHE", str(tmp_path))
    monkeypatch.setattr(Judge, "_evaluate", evaluate)
    return made


def test_a_plan_is_judged_once_for_all_builds(runs: list[Depth]) -> None:
    first, second = (Judge(state(), stored=True) for _ in range(2))
    judged = [(first(at(share), depth), first) for share in (0.7, 0.4) for depth in (QUICK, FULL)]
    again = [second(at(share), depth) for share in (0.7, 0.4) for depth in (QUICK, FULL)]
    assert again == [one for one, _ in judged]
    assert len({one.divergence for one in again}) == 4
    assert runs == [QUICK, FULL, QUICK, FULL]


def test_a_stored_full_judgement_does_not_stand_in_for_a_quick_one(runs: list[Depth]) -> None:
    full = Judge(state(), stored=True)(at(0.5))
    later = Judge(state(), stored=True)
    assert later(at(0.5), QUICK) != full
    assert not later.known(at(0.5))
    assert runs == [FULL, QUICK]


def test_nothing_is_read_or_stored_unless_asked(runs: list[Depth]) -> None:
    for stored in (False, True, False):
        Judge(state(), stored=stored)(at(0.5))
    assert len(runs) == 3


@pytest.mark.parametrize("change", ["seed", "labels", "images", "weights", "metric"])
def test_what_judgements_depend_on(change: str, runs: list[Depth]) -> None:
    Judge(state(), stored=True)(at(0.5))
    other, name = state(), None
    data = other.data
    if change == "seed":
        other = replace(other, seed=1)
    elif change == "labels":
        targets = tuple(np.roll(y, 1) for y in data.validation.targets or ())
        other = replace(
            other, data=replace(data, validation=replace(data.validation, targets=targets))
        )
    elif change == "images":
        inputs = tuple(np.flip(x, 1) for x in data.train.inputs)
        other = replace(other, data=replace(data, train=replace(data.train, inputs=inputs)))
    elif change == "weights":
        op = next(op for op in other.original.layers() if op.weights)
        weights = {name: 2 * w for name, w in op.weights.items()}
        other = replace(other, original=other.original.with_weights({op.name: weights}))
    else:
        name = "fidelity"
    Judge(other, name, stored=True)(at(0.5))
    assert runs == [FULL, FULL]


def test_a_metric_of_the_user_is_run_every_time(runs: list[Depth]) -> None:
    for _ in range(2):
        Judge(state(), "tests.test_judgements:hits", stored=True)(at(0.5))
    assert runs == [FULL, FULL]


def hits(outputs: Any, targets: Any) -> float:
    """The metric of a user."""
    return float(np.mean(np.argmax(outputs, -1) == targets))


@pytest.mark.parametrize("text", ["", "{", '{"drop": "much"}', "[1]", '{"divergence": NaN}'])
def test_a_damaged_entry_is_judged_again_and_replaced(text: str, runs: list[Depth]) -> None:
    found = Judge(state(), stored=True)(at(0.5))
    with sqlite3.connect(cache_file("judged.sqlite")) as connection:
        assert connection.execute("UPDATE judgements SET found = ?", [text]).rowcount == 1
    for _ in range(2):
        assert Judge(state(), stored=True)(at(0.5)) == found
    assert runs == [FULL, FULL]
