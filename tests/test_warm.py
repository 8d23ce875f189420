"""CP fits that start from other factors."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.factorization import METHODS
from lrfc.factorization.als import khatri_rao
from lrfc.factorization.cp_fit import Problem, best_fit, quick_fit
from lrfc.factorization.linalg import Array
from lrfc.factorization.warm import quick, warm, warm_fit
from lrfc.ir.op import Op, Tensor

RNG = np.random.default_rng(0)
TARGET = RNG.standard_normal((6, 9, 8))
ROOT = RNG.standard_normal((54, 54)) * np.linspace(0.1, 3, 54)
GRAM = ROOT @ ROOT.T / 54
#: A kernel that is a little different, as after a regression.
NEAR = TARGET + 0.1 * RNG.standard_normal(TARGET.shape)


def error(factors: list[Array]) -> float:
    flat = TARGET.reshape(-1, 8)
    difference = flat - khatri_rao(factors[:-1]) @ factors[-1].T
    return float(np.vdot(difference, GRAM @ difference))


def test_a_warm_fit_lowers_the_error_of_its_start_and_is_near_the_best() -> None:
    start = best_fit(Problem(NEAR, GRAM), 10)
    fit = warm_fit(Problem(TARGET, GRAM), start)
    best = best_fit(Problem(TARGET, GRAM), 10)
    assert error(fit) < error(start)
    assert error(fit) < 1.2 * error(best)
    fewer = warm_fit(Problem(TARGET, GRAM), start, 1)
    assert error(fit) <= error(fewer) < error(start)


def test_without_a_covariance_or_a_sound_start_it_is_the_best_fit() -> None:
    start = quick_fit(Problem(NEAR, GRAM), 10)
    for one, other in zip(
        warm_fit(Problem(TARGET, None), start), best_fit(Problem(TARGET, None), 10), strict=True
    ):
        assert np.array_equal(one, other)
    term = [factor[:, :1] for factor in start]
    cancelling = [
        np.hstack([1e3 * x if n == 0 else x, (-1e3 if n == 0 else 1) * x, start[n][:, 2:]])
        for n, x in enumerate(term)
    ]
    fit = warm_fit(Problem(TARGET, GRAM), cancelling)
    assert error(fit) == pytest.approx(error(best_fit(Problem(TARGET, GRAM), 10)))


@pytest.mark.parametrize("groups", [1, 2])
def test_only_fits_of_ungrouped_layers_start_from_others(groups: int) -> None:
    kernel = RNG.standard_normal((3, 3, 6 // groups, 8)).astype(np.float32)
    op = Op(
        "conv", "Conv2D", {"filters": 8, "kernel_size": 3, "groups": groups}, {"kernel": kernel}
    )
    source = Tensor((None, 9, 9, 6))
    for name, method in METHODS.items():
        if method.refuses(op, source) is None:
            factors, start = (method.decompose(op, source) for _ in range(2))
            changes = warm(factors, start) is not factors
            assert changes == (groups == 1 and name in ("cp", "cp4"))
            assert (quick(factors) is not factors) == (name in ("cp", "cp4"))
