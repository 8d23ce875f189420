"""The accuracy contract: paired intervals, demanded confidence, and repeated looks."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.config.build import Drop
from lrfc.data.dataset import Split
from lrfc.metrics.contract import contract, held
from lrfc.metrics.metric import metric
from lrfc.metrics.outcome import short
from tests import helpers


def scores(lost: int, gained: int, count: int = 1_000) -> tuple[np.ndarray, np.ndarray]:
    before = np.ones(count, bool)
    before[: count // 10] = False
    after = before.copy()
    after[:gained] = True
    after[count // 2 : count // 2 + lost] = False
    return before, after


def test_the_drop_of_an_error_has_a_reference() -> None:
    labels = np.linspace(0, 1, 200)[:, None]
    split = Split((labels,), (labels,))
    result = held(
        metric("mse", helpers.graph_of(helpers.dense_net(1, (2,), 1)), split),
        split,
        (labels,),
        (labels + 0.1,),
        Drop(value=0.05),
    )
    assert (
        str(result)
        == "11.88 % of the variance of the labels (95 % interval 11.88 to 11.88 %, 200 samples)"
    )
    assert Drop(value=0.05, confidence=0.9).text(short(result.unit)) == "5%@90%"


def test_the_drop_is_the_difference_of_the_accuracies() -> None:
    before, after = scores(30, 10)
    result = contract(before, after, None)
    assert result.drop == pytest.approx(before.mean() - after.mean()) == pytest.approx(0.02)
    assert result.low < 0.02 < result.high
    assert result.met
    assert (
        str(result)
        == f"2.00 pp (95 % interval {100 * result.low:.2f} to {100 * result.high:.2f} pp, 1,000"
        " samples)"
    )


def test_the_limit_applies_to_the_drop_or_with_a_confidence_to_its_bound() -> None:
    before, after = scores(12, 2)
    assert contract(before, after, Drop(value=0.01)).met
    assert not contract(before, after, Drop(value=0.009)).met
    assert not contract(before, after, Drop(value=0.01, confidence=0.95)).met
    assert contract(before, after, Drop(value=0.03, confidence=0.95)).met


def test_the_interval_has_its_confidence() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        before = rng.random(500) < 0.9
        after = np.where(rng.random(500) < 0.05, rng.random(500) < 0.5, before)
        true = 0.05 * (0.9 - 0.5)
        result = contract(before, after, None)
        covered += result.low <= true <= result.high
    assert 0.91 <= covered / 400 <= 0.99


def test_nothing_changed_is_not_certainty() -> None:
    before = np.ones(50, bool)
    result = contract(before, before, Drop(value=0.01, confidence=0.95))
    assert result.drop == 0
    assert result.high > 0.01
    assert not result.met


def test_each_look_makes_a_demanded_confidence_stricter() -> None:
    before, after = scores(20, 10)
    bounds = [
        contract(before, after, Drop(value=0.02, confidence=0.95), looks).high
        for looks in (1, 2, 3)
    ]
    assert bounds[0] < bounds[1] < bounds[2]


def test_other_scores_are_compared_by_their_means() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(0, 1, 800)
    after = before - rng.normal(0.05, 0.1, 800)
    result = contract(before, after, Drop(value=0.06, confidence=0.95))
    assert result.drop == pytest.approx(0.05, abs=0.02)
    assert result.low < result.drop < result.high
    assert result.high - result.low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(800), rel=0.2)
