"""Fits of CP terms to a tensor from several starts; the best result without cancellation counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np

from lrfc.factorization.als import RIDGE, als, cancelling, khatri_rao, random_start, slices_start
from lrfc.factorization.covariance_als import fit_cp, output_factors
from lrfc.factorization.linalg import Array, solve_lower
from lrfc.factorization.norms import separable_roots

_log = logging.getLogger("lrfc.factorization")

#: Random starts in addition to the exact one, and the longest patches that get them. They lower the
#: error by up to 5 % at low ranks of such layers, at 64 channels by less than 1 %.
RANDOM_STARTS, RANDOM_UP_TO = 2, 300
#: Sweeps, stopping rule and multiplications of the fits by which ranks are compared.
QUICK_SWEEPS, QUICK_COVARIANCE_SWEEPS, QUICK_TOLERANCE, QUICK_WORK = 30, 1, 1e-3, 5e9


def best_fit(target: Array, rank: int, gram: Array | None) -> list[Array]:
    """The factors of a tensor (S, k..., T) with the least error whose terms do not cancel."""
    flat = target.reshape(-1, target.shape[-1])
    norm = float(np.linalg.norm(flat))
    small = prod(target.shape[:-1]) <= RANDOM_UP_TO
    seeds = range(RANDOM_STARTS if small else 0)
    randoms = [partial(random_start, seed=seed) for seed in seeds]
    fits = decompositions(target, rank, (slices_start, *randoms))
    if gram is None:
        return min(
            _allowed(fits, norm),
            key=lambda factors: float(
                np.linalg.norm(flat - khatri_rao(factors[:-1]) @ factors[-1].T)
            ),
        )
    roots = separable_roots(gram, target.shape[:-1])
    white = _whitened(target, roots)
    fits += [
        [*_unwhitened(fit[:-1], roots), fit[-1]]
        for fit in decompositions(white, rank, (slices_start,))
    ]
    cross = gram @ flat
    fits += [
        [*fit[:-1], last]
        for fit in fits
        for last, _ in output_factors(fit[:-1], gram, cross, (1e-8, 1e-5, RIDGE))
    ]

    def error(factors: list[Array]) -> float:
        difference = flat - khatri_rao(factors[:-1]) @ factors[-1].T
        return float(np.vdot(difference, gram @ difference))

    best = min(_allowed(fits, norm), key=error)
    return min(_allowed([best, fit_cp(target, gram, roots, best)], norm), key=error)


def quick_fit(target: Array, rank: int, gram: Array | None) -> list[Array]:
    """Factors for the comparison of ranks, by few sweeps from one start.

    Some sweeps use the nearest separable norm, one the whole covariance. On ResNet-20's layers the
    error is up to a third above that of ``best_fit``, in a quarter of the time.
    """
    flat = target.reshape(-1, target.shape[-1])
    norm = float(np.linalg.norm(flat))
    if gram is None:
        start = slices_start(target, rank)
        return _allowed(
            [
                als(target, start, sweeps=QUICK_SWEEPS, tolerance=QUICK_TOLERANCE, work=QUICK_WORK),
                start,
            ],
            norm,
        )[0]
    roots = separable_roots(gram, target.shape[:-1])
    white = _whitened(target, roots)
    fit = als(
        white,
        slices_start(white, rank),
        sweeps=QUICK_SWEEPS,
        tolerance=QUICK_TOLERANCE,
        work=QUICK_WORK,
    )
    inputs = _unwhitened(fit[:-1], roots)
    cross = gram @ flat
    fits = _allowed(
        [[*inputs, last] for last, _ in output_factors(inputs, gram, cross, (1e-5, RIDGE))], norm
    ) or [slices_start(target, rank)]
    return fit_cp(target, gram, roots, fits[0], sweeps=QUICK_COVARIANCE_SWEEPS)


def _whitened(target: Array, roots: Sequence[Array]) -> Array:
    """A tensor whose plain norm is the separable norm of ``target`` with these Cholesky factors."""
    for mode, root in enumerate(roots):
        target = np.moveaxis(np.tensordot(root.T, target, (1, mode)), 0, mode)
    return target


def _unwhitened(factors: Sequence[Array], roots: Sequence[Array]) -> list[Array]:
    """The input factors of a tensor from those of its whitened form."""
    return [
        solve_lower(root, factor, transposed=True)
        for root, factor in zip(roots, factors, strict=True)
    ]


def _allowed(fits: list[list[Array]], norm: float) -> list[list[Array]]:
    """The fits whose terms do not cancel each other; the others are logged.

    The exact start is always among the allowed ones.
    """
    sound = []
    for factors in fits:
        reason = cancelling(factors, norm)
        if reason is None:
            sound.append(factors)
        else:
            _log.info("a CP fit of rank %d is rejected: %s", factors[0].shape[1], reason)
    return sound


def decompositions(
    target: Array, rank: int, starts: Sequence[Callable[[Array, int], list[Array]]]
) -> list[list[Array]]:
    """Decompositions in the plain norm: the exact start, and the result of ALS from each start.

    With one mode for each axis, ALS starts from the best terms of the merged form: on ResNet-20's
    layers that ends with a lower error.
    """
    start = slices_start(target, rank)
    if rank >= prod(target.shape[1:-1]) * min(target.shape[0], target.shape[-1]):
        return [start]  # exact
    joined = target.reshape(target.shape[0], -1, target.shape[-1])
    fits = [als(joined, begin(joined, rank)) for begin in starts]
    if target.ndim == 3:
        return [start, *fits]
    merged = min(fits, key=lambda factors: float(np.linalg.norm(joined - _multiplied(factors))))
    u, s, vt = np.linalg.svd(merged[1].T.reshape(rank, *target.shape[1:-1]), full_matrices=False)
    return [start, als(target, [merged[0], u[:, :, 0].T * s[:, 0], vt[:, 0].T, merged[2]])]


def _multiplied(factors: Sequence[Array]) -> Array:
    """The tensor (S, k, T) of three factors."""
    shape = [len(factor) for factor in factors]
    return np.asarray((khatri_rao(factors[:-1]) @ factors[-1].T).reshape(shape))
