"""The similarity measures: zero on equal maps, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.search.similarity import MEASURES, cosine, linear_cka, pearson, relative_l2

RNG = np.random.default_rng(0)
MAP = RNG.standard_normal((200, 6)).astype(np.float32) + 0.5
OTHER = RNG.standard_normal((200, 6)).astype(np.float32)


@pytest.mark.parametrize("name", MEASURES)
def test_equal_maps_are_at_zero_and_unrelated_ones_far_away(name) -> None:
    assert MEASURES[name](MAP, MAP) == pytest.approx(0, abs=1e-6)
    assert MEASURES[name](MAP, OTHER) > 0.5


@pytest.mark.parametrize("name", MEASURES)
def test_the_distance_grows_with_noise(name) -> None:
    distances = [MEASURES[name](MAP, MAP + noise * OTHER) for noise in (0.1, 0.3, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_relative_l2_by_hand() -> None:
    assert relative_l2(np.float32([[3, 4]]), np.float32([[3, 3]])) == pytest.approx(0.2)
    assert relative_l2(MAP, 2 * MAP) == pytest.approx(1, rel=1e-6)


def test_the_invariances_of_each_measure() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    rotated, shifted = (
        (MAP @ rotation).astype(np.float32),
        MAP + RNG.standard_normal(6).astype(np.float32),
    )
    assert cosine(MAP, 3 * MAP) == pytest.approx(0, abs=1e-6)
    assert cosine(MAP, shifted) > 0.01
    assert pearson(MAP, shifted) == pytest.approx(0, abs=1e-6)
    assert pearson(MAP, 3 * shifted) == pytest.approx(0, abs=1e-6)
    assert pearson(MAP, rotated) > 0.01
    assert linear_cka(MAP, rotated) == pytest.approx(0, abs=1e-5)
    assert linear_cka(MAP, 3 * shifted) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_maps_that_are_all_zero(name) -> None:
    zero = np.zeros_like(MAP)
    assert MEASURES[name](zero, zero) == 0
    assert MEASURES[name](zero, MAP) == pytest.approx(1)
    assert MEASURES[name](MAP, zero) == pytest.approx(1)
