"""EVBMF: the rank of a matrix under noise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.evbmf import evbmf_rank


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_rank_under_noise_is_estimated(shape, rank) -> None:
    rng = np.random.default_rng(rank)
    signal = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    assert evbmf_rank(signal + 0.1 * rng.standard_normal(shape)) == rank


def test_noise_and_zeros_have_rank_zero() -> None:
    assert evbmf_rank(np.random.default_rng(0).standard_normal((60, 90))) == 0
    assert evbmf_rank(np.zeros((5, 8))) == 0


def test_more_noise_lowers_the_rank() -> None:
    rng = np.random.default_rng(1)
    signal = (rng.standard_normal((80, 40)) * np.geomspace(1, 0.01, 40)) @ rng.standard_normal(
        (40, 60)
    )
    noise = rng.standard_normal((80, 60))
    ranks = [evbmf_rank(signal + level * noise) for level in (0.05, 0.3, 1.5)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]
