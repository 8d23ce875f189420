"""Alternating least squares in the norm of the inputs: gain, descent, and the optimum."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lrfc.factorization import METHODS, covariance_als
from lrfc.factorization.als import NORM_LIMIT, khatri_rao, norm_ratio, random_start, slices_start
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import cholesky
from lrfc.factorization.norms import separable_roots
from tests.factorized import (
    conv,
    one_thread,  # noqa: F401  the fixture applies to this file
    parts,
    statistics,
)
from tests.test_factorization_norms import loss


def problem(
    inputs: int = 4, taps: int = 6, outputs: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A tensor (S, k, T), and the second moment (S·k, S·k) of inputs that are not separable."""
    rng = np.random.default_rng(seed)
    length = inputs * taps
    rows = np.maximum(
        rng.standard_normal((20 * length, length))
        @ (rng.standard_normal((length, length)) * np.logspace(0, -1, length)).T,
        -0.5,
    )
    return rng.standard_normal((inputs, taps, outputs)), rows.T @ rows / len(rows)


def squared(target: np.ndarray, gram: np.ndarray, product: np.ndarray) -> float:
    missing = (target - product.reshape(target.shape)).reshape(len(gram), -1)
    return float(np.vdot(missing, gram @ missing))


def terms(factors) -> np.ndarray:
    return khatri_rao(factors[:-1]) @ factors[-1].T


def tucker_product(factors) -> np.ndarray:
    return np.einsum("sa,akb,bt->skt", *factors)


def test_conjugate_gradients_solve_and_descend():
    rng = np.random.default_rng(0)
    half = rng.standard_normal((12, 12))
    matrix, right, start = (
        half @ half.T + np.eye(12),
        rng.standard_normal((12, 3)),
        rng.standard_normal((12, 3)),
    )

    def quadratic(x):
        return float(np.vdot(x, matrix @ x) - 2 * np.vdot(x, right))

    solve = covariance_als.separable_solver(cholesky(np.diag(np.diagonal(matrix))), np.eye(3))
    steps = [
        covariance_als.conjugate_gradients(lambda x: matrix @ x, right, start, solve, steps=n)
        for n in range(60)
    ]
    assert all(quadratic(after) <= quadratic(before) + 1e-9 for before, after in pairwise(steps))
    np.testing.assert_array_equal(steps[0], start)
    np.testing.assert_allclose(steps[-1], np.linalg.solve(matrix, right), atol=1e-6)
    exact = covariance_als.separable_solver(cholesky(matrix), np.eye(3))
    np.testing.assert_allclose(
        covariance_als.conjugate_gradients(lambda x: matrix @ x, right, start, exact, steps=1),
        np.linalg.solve(matrix, right),
        atol=1e-9,
    )
    np.testing.assert_array_equal(
        covariance_als.conjugate_gradients(lambda x: matrix @ x, matrix @ start, start, exact),
        start,
    )


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("rank", [2, 5])
def test_cp_lowers_the_error_of_its_start(modes, rank):
    target, gram = problem()
    target = target if modes == 1 else target.reshape(4, 2, 3, 5)
    roots = separable_roots(gram, target.shape[:-1])
    start = slices_start(target, rank)
    start[-1] = covariance_als.output_factor(start[:-1], gram, gram @ target.reshape(24, 5), 1e-9)[
        0
    ]
    found = covariance_als.fit_cp(target, gram, gram @ target.reshape(len(gram), -1), roots, start)
    assert squared(target, gram, terms(found)) < 0.9 * squared(target, gram, terms(start))
    assert norm_ratio(found, float(np.linalg.norm(target))) <= NORM_LIMIT


def test_cp_reaches_what_dense_solves_reach(monkeypatch):
    """With enough sweeps the error is that of ALS with dense normal equations."""
    monkeypatch.setattr(covariance_als, "CP_SWEEPS", 300)
    monkeypatch.setattr(covariance_als, "_TOLERANCE", 1e-7)
    target, gram = problem()
    flat, root = target.reshape(24, 5), np.linalg.cholesky(gram).T
    start = slices_start(target, 3)
    a, b, c = start
    for _ in range(300):
        for mode in range(3):
            sizes = (4, 6, 5)
            basis = np.eye(sizes[mode] * 3).reshape(-1, sizes[mode], 3)
            columns = [
                (root @ terms([*(a, b, c)[:mode], each, *(a, b, c)[mode + 1 :]])).ravel()
                for each in basis
            ]
            solved = np.linalg.lstsq(np.stack(columns, 1), (root @ flat).ravel(), rcond=None)[
                0
            ].reshape(sizes[mode], 3)
            a, b, c = (solved if i == mode else each for i, each in enumerate((a, b, c)))
    cross = gram @ flat
    found = covariance_als.fit_cp(target, gram, cross, separable_roots(gram, (4, 6)), start)
    assert squared(target, gram, terms(found)) <= 1.01 * squared(target, gram, terms([a, b, c]))


def test_cp_whose_terms_start_to_cancel_stops_before(monkeypatch):
    target, gram = problem()
    start = random_start(target, 3, 0)
    monkeypatch.setattr(covariance_als, "NORM_LIMIT", 1e-3)
    cross, roots = gram @ target.reshape(24, 5), separable_roots(gram, (4, 6))
    assert covariance_als.fit_cp(target, gram, cross, roots, start) == start


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("aware", [False, True])
def test_tucker_falls_to_a_point_where_no_side_can_be_better_alone(monkeypatch, ranks, aware):
    monkeypatch.setattr(covariance_als, "TUCKER_SWEEPS", 300)
    monkeypatch.setattr(covariance_als, "_TOLERANCE", 1e-9)
    target, moment = problem()
    gram = moment if aware else None
    norm = moment if aware else np.eye(24)
    cross = norm @ target.reshape(24, 5)
    rng = np.random.default_rng(1)
    start = rng.standard_normal((4, ranks[0]))
    found = covariance_als.fit_tucker(target, gram, cross, [start], ranks[1])
    reached = squared(target, norm, tucker_product(found))
    # The input factor solved for densely, with the others as they are, is no better.
    root = np.linalg.cholesky(norm).T
    basis = np.eye(4 * ranks[0]).reshape(-1, 4, ranks[0])
    columns = [(root @ tucker_product([each, *found[1:]]).reshape(24, 5)).ravel() for each in basis]
    least = np.linalg.lstsq(
        np.stack(columns, 1), (root @ target.reshape(24, 5)).ravel(), rcond=None
    )[1]
    assert reached <= 1.001 * float(least[0])
    # So is no random start.
    others = [
        covariance_als.fit_tucker(target, gram, cross, [rng.standard_normal(start.shape)], ranks[1])
        for _ in range(3)
    ]
    assert reached <= 1.2 * min(squared(target, norm, tucker_product(each)) for each in others)


def test_tucker_takes_the_best_start(monkeypatch):
    monkeypatch.setattr(covariance_als, "TUCKER_SWEEPS", 0)
    target, gram = problem()
    cross = gram @ target.reshape(24, 5)
    starts = [np.random.default_rng(seed).standard_normal((4, 2)) for seed in range(4)]
    errors = [
        squared(
            target, gram, tucker_product(covariance_als.fit_tucker(target, gram, cross, [start], 3))
        )
        for start in starts
    ]
    assert max(errors) > 1.05 * min(errors)
    assert squared(
        target, gram, tucker_product(covariance_als.fit_tucker(target, gram, cross, starts, 3))
    ) == pytest.approx(min(errors))


def test_large_layers_get_no_sweeps():
    """A sweep over a 512-channel layer takes seconds; a search needs a hundred pairs of ranks."""
    sweeps = covariance_als.tucker_sweeps
    assert sweeps((512, 9, 512), (128, 128), weighted=True) == 0
    assert sweeps((512, 9, 512), (128, 128), weighted=False) >= 1
    assert sweeps((64, 9, 64), (32, 32), weighted=True) == covariance_als.TUCKER_SWEEPS


def test_methods_use_them():
    """The error at a rank is below that of the factors without the sweeps."""

    graph = conv((3, 3), 8, 8)
    op, source = parts(graph)
    stats = statistics(Layout.of(op, source))
    for name, ranks in (("tucker2", (4, 4)), ("cp", (12,)), ("cp4", (12,))):
        errors = []
        for work in (0, 1e10):  # without sweeps, and with as many as there may be
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(covariance_als, "CP_WORK", work)
                patch.setattr(covariance_als, "TUCKER_WORK", work)
                errors.append(
                    loss(
                        graph,
                        METHODS[name].decompose(op, source, statistics=stats).kernel(ranks),
                        stats,
                    )
                )
        assert errors[1] < 0.99 * errors[0], name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("error")
def test_inputs_that_never_change_leave_finite_factors(dtype: type) -> None:
    target, gram = (part.astype(dtype) for part in problem())
    gram *= 0
    factors = [part.astype(dtype) for part in random_start(target, 3, 0)]
    cross = gram @ target.reshape(len(gram), -1)
    found, error = covariance_als.output_factor(factors[:-1], gram, cross, 1e-6)
    assert np.isfinite(found).all()
    assert error == 0
