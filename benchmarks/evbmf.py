"""Ranks from weights alone, by empirical variational Bayesian matrix factorization.

This is a baseline for ranks chosen by feature-map similarity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]


def evbmf_rank(matrix: NDArray[np.floating]) -> int:
    """Return the number of components of an (m, n) matrix above its noise, which is estimated.

    The global analytic solution of Nakajima, Sugiyama, Babacan and Tomioka (JMLR 14, 2013, theorems
    2 and 3), which Kim et al. (arXiv 1511.06530) use for the ranks of Tucker-2: applied to the
    unfoldings along the input and the output channels. 0 for a matrix of zeros.
    """
    values: Array = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    short, long = sorted(matrix.shape)
    if not values[0] > 0:
        return 0
    alpha = short / long
    edge = 2.5129 * np.sqrt(alpha)  # above it a component is kept (section 4.2)
    least = (1 + edge) * (1 + alpha / edge)
    held = max(min(int(np.ceil(short / (1 + alpha))) - 1, short) - 1, 0)
    rest = values[min(held + 1, short - 1) :] ** 2
    low = max(
        rest[0] / (long * least), float(rest.mean()) / long, 1e-12 * float(values[0] ** 2) / long
    )
    high = max(float(np.sum(values**2)) / (short * long), low * (1 + 1e-9))

    def energy(logarithm: float) -> float:
        """Return the free energy at a noise variance, up to constants."""
        noise = np.exp(logarithm)
        x = values**2 / (long * noise)
        kept, lost = x[x > least], np.maximum(x[x <= least], 1e-300)
        tau = _tau(kept, alpha)
        signal = np.sum(kept - tau + np.log((tau + 1) / kept) + alpha * np.log(tau / alpha + 1))
        return float(np.sum(lost - np.log(lost)) + signal)

    noise = np.exp(minimize_scalar(energy, bounds=(np.log(low), np.log(high)), method="bounded").x)
    return int(np.sum(values**2 > long * noise * least))


def _tau(x: Array, alpha: float) -> Array:
    return np.asarray(0.5 * (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha)))
