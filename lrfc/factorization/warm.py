"""Fits that start from those of another decomposition, and fits of few sweeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrfc.factorization.als import RIDGE, cancelling, khatri_rao
from lrfc.factorization.base import Factors
from lrfc.factorization.covariance_als import CP_SWEEPS, fit_cp, output_factors
from lrfc.factorization.cp import CPFactors
from lrfc.factorization.cp_fit import RANDOM_UP_TO, best_fit
from lrfc.factorization.linalg import Array
from lrfc.factorization.norms import separable_roots

#: Sweeps of a fit that starts from another one: more than after a choice of several starts.
SWEEPS = 2 * CP_SWEEPS


def quick(factors: Factors) -> Factors:
    """The factors from fits of few sweeps, where each rank has a fit of its own."""
    return factors.quick if isinstance(factors, CPFactors) else factors


def warm(factors: Factors, start: Factors, *, starts: bool) -> Factors:
    """The factors of a layer, with each fit started from that of ``start`` at the same rank.

    ``start`` are factors of a similar kernel. ``starts``: see ``warm_fit``. Methods with a closed
    form stay as they are, and so do grouped layers and layers of another size.
    """
    if not (isinstance(factors, CPFactors) and isinstance(start, CPFactors)):
        return factors
    sizes = [(f.layout.groups, f.layout.tensor().shape, f.split) for f in (factors, start)]
    if sizes[0] != sizes[1] or factors.layout.groups > 1:
        return factors

    def fit(target: Array, rank: int, gram: Array | None) -> list[Array]:
        *inputs, last = (factor[0] for factor in start.terms(rank))
        return warm_fit(target, gram, [*inputs, last * factors.scale[:, None]], starts=starts)

    return replace(factors, fit=fit)


def warm_fit(
    target: Array, gram: Array | None, start: list[Array], *, starts: bool = False
) -> list[Array]:
    """The factors of a tensor (S, k..., T), improved from others under the covariance.

    Without a covariance, or where the terms cancel each other, it is ``best_fit``. With ``starts``
    and short patches it is the better of both: on ResNet-20 the error is up to a third above that
    of ``best_fit`` without, and on its longer patches 1 to 4 % below.
    """
    flat, rank = target.reshape(-1, target.shape[-1]), start[0].shape[1]
    norm = float(np.linalg.norm(flat))

    def allowed(fits: list[list[Array]]) -> list[list[Array]]:
        return [factors for factors in fits if cancelling(factors, norm) is None]

    if gram is None or not allowed([start]):
        return best_fit(target, rank, gram)
    cross = gram @ flat

    def error(factors: list[Array]) -> float:
        difference = flat - khatri_rao(factors[:-1]) @ factors[-1].T
        return float(np.vdot(difference, gram @ difference))

    solved = output_factors(start[:-1], gram, cross, (1e-8, 1e-5, RIDGE))
    best = min(allowed([start, *([*start[:-1], last] for last, _ in solved)]), key=error)
    roots = separable_roots(gram, target.shape[:-1])
    fits = [best, *allowed([fit_cp(target, gram, roots, best, sweeps=SWEEPS)])]
    if starts and len(flat) <= RANDOM_UP_TO:
        fits.append(best_fit(target, rank, gram))
    return min(fits, key=error)
