"""Canonical polyadic decomposition of a tensor: starts, and alternating least squares.

The norms of the terms are bounded. The tests compare with tensorly's ``parafac``. It is not called
here: it knows no norm of the inputs, its ridge weighs large terms more than small ones and so
bounds nothing, and for each mode it forms a Khatri-Rao product of all others, which for 256
channels is 260 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from lrfc.factorization.linalg import Array, eigh, ridged, solve_positive

#: Relative ridge of every least-squares solve. With unit columns, the solution c of (G + ρI)c = b
#: obeys ‖c‖ ≤ ‖X‖ / (2√ρ): at 1/400 the joint norm of the terms cannot exceed ten
#: times the tensor's. On the layers of ResNet-20 it changes the error by less than 1 %.
RIDGE = 1 / 400
#: The most multiplications of the sweeps of a fit: about 20 sweeps at 3×3×512×512, rank 512.
WORK = 5e10
#: Terms whose joint norm is above this multiple of the tensor's norm are cancelling each other (the
#: degeneracy of Phan et al., arXiv 2008.05441).
NORM_LIMIT = 10.0


def khatri_rao(factors: Sequence[Array]) -> Array:
    """The column-wise Kronecker product (Π n_i, R) of factors (n_i, R), first index slowest."""
    return reduce(
        lambda left, right: (left[:, None, :] * right[None, :, :]).reshape(-1, left.shape[1]),
        factors,
    )


def norm_ratio(factors: Sequence[Array], norm: float) -> float:
    """The terms' joint norm √(Σ_r ‖term_r‖²), relative to the tensor's norm.

    It is 1 for orthogonal terms, and large for terms that cancel each other.
    """
    squares: Array = np.ones(factors[0].shape[1])
    for factor in factors:
        squares = squares * (factor**2).sum(0)
    return float(np.sqrt(squares.sum())) / max(norm, 1e-300)


def cancelling(factors: Sequence[Array], norm: float) -> str | None:
    """The reason to reject terms that approximate a tensor of this norm, as one clause, or None."""
    ratio = norm_ratio(factors, norm)
    if ratio <= NORM_LIMIT:
        return None
    return (
        f"its terms cancel each other: their joint norm is {ratio:.3g} times the kernel's,"
        f" above {NORM_LIMIT:.3g}"
    )


def balanced(factors: Sequence[Array]) -> list[Array]:
    """The same terms, with the norm of each spread evenly over its factors."""
    norms = [np.maximum(np.linalg.norm(factor, axis=0), 1e-300) for factor in factors]
    share = reduce(np.multiply, norms) ** (1 / len(norms))
    return [factor / norm * share for factor, norm in zip(factors, norms, strict=True)]


def contracted(partial: Array, factors: Sequence[Array], mode: int) -> Array:
    """The contraction (n_mode, R) of a tensor (n_0, ..., R) with the factors of all other modes.

    Column r of the tensor meets column r of each factor (n_i, R).
    """
    for other in reversed(range(len(factors))):
        if other != mode:
            shape = (
                [1] * other
                + list(factors[other].shape[:1])
                + [1] * (partial.ndim - other - 2)
                + [partial.shape[-1]]
            )
            partial = np.sum(partial * factors[other].reshape(shape), axis=other, keepdims=True)
    return partial.reshape(-1, partial.shape[-1])


@dataclass(frozen=True, eq=False)
class Slices:
    """The SVDs of all slices of a tensor (S, k_1, ..., T): starts of a decomposition, of any rank.

    The slices are taken along the principal axes of each middle mode. Terms of one slice are
    orthogonal, and so are the slices: no term cancels another, and Π k_i · min(S, T) terms
    reproduce the tensor exactly.
    """

    tensor: Array

    def start(self, rank: int) -> list[Array]:
        """The best terms: the factors (n_i, rank), with zeros beyond the number of terms."""
        bases, u, s, vt = self._decomposed
        order = np.argsort(s, axis=None)[::-1][:rank]
        number, component = np.unravel_index(order, s.shape)
        index = np.unravel_index(number, self.tensor.shape[1:-1])
        weights = s[number, component]
        inner = [basis[:, i] for basis, i in zip(bases, index, strict=True)]
        factors = [u[number, :, component].T * weights, *inner, vt[number, component].T]
        return [np.pad(factor, ((0, 0), (0, rank - len(order)))) for factor in factors]

    @cached_property
    def _decomposed(self) -> tuple[list[Array], Array, Array, Array]:
        """The principal axes of the middle modes, and the SVDs of the slices along them."""
        bases = []
        rotated = tensor = self.tensor
        for mode in range(1, tensor.ndim - 1):
            unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
            bases.append(eigh(unfolded @ unfolded.T)[1])
            rotated = np.moveaxis(np.tensordot(bases[-1].T, rotated, (1, mode)), 0, mode)
        slices = (
            np.moveaxis(rotated, -1, 1)
            .reshape(tensor.shape[0], tensor.shape[-1], -1)
            .transpose(2, 0, 1)
        )
        return bases, *np.linalg.svd(slices, full_matrices=False)


def slices_start(tensor: Array, rank: int) -> list[Array]:
    """The best terms of the SVDs of all slices of a tensor; see ``Slices``."""
    return Slices(tensor).start(rank)


def random_start(tensor: Array, rank: int, seed: int) -> list[Array]:
    """Normally distributed factors, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, rank)) for size in tensor.shape]


def als(
    tensor: Array,
    start: Sequence[Array],
    *,
    ridge: float = RIDGE,
    sweeps: int = 100,
    tolerance: float = 1e-4,
    work: float = WORK,
) -> list[Array]:
    """Extrapolated alternating least squares with a ridge in every solve.

    Carroll and Chang 1970, Harshman 1970; reference sheet §9. Columns have unit norm, so that the
    ridge weighs every term alike. Each sweep starts a step beyond the last one, in the direction of
    its change; where that raises the error, the step is undone and shortened (Ang, Cohen, Hien and
    Gillis, Extrapolated Alternating Algorithms for Approximate Canonical Polyadic Decomposition,
    ICASSP 2020). On ResNet-20's layers 30 such sweeps reach the error of 100 plain ones. All modes
    but the last share one product with the last factor (a dimension tree: Phan, Tichavský and
    Cichocki, IEEE Trans. Signal Processing 61(19), 2013).

    It ends when a sweep lowers the squared error by less than ``tolerance`` of it, or after
    ``sweeps`` sweeps: fewer where they would take more than ``work`` multiplications, but at least
    three.
    """
    flat = tensor.reshape(-1, tensor.shape[-1])
    total = _dot(tensor, tensor)
    units = [_unit(factor) for factor in start]
    best, guess, step, last = list(start), units, 0.5, np.inf
    sweep_work = 2 * tensor.size * start[0].shape[1]
    for _ in range(min(sweeps, max(3, int(work // sweep_work)))):
        factors = list(guess)
        grams = [factor.T @ factor for factor in factors]
        partial = (flat @ factors[-1]).reshape(*tensor.shape[:-1], -1)
        for mode in range(tensor.ndim):
            gram = reduce(np.multiply, (own for i, own in enumerate(grams) if i != mode))
            right = (
                contracted(partial, factors[:-1], mode)
                if mode < tensor.ndim - 1
                else flat.T @ khatri_rao(factors[:-1])
            )
            solved = solve_positive(ridged(gram, ridge), right.T).T
            factors[mode] = _unit(solved)
            grams[mode] = factors[mode].T @ factors[mode]
        error = total - 2 * _dot(solved, right) + _dot(solved.T @ solved, gram)
        if error > last:
            if guess is units:
                break
            guess, step = units, step / 1.5
            continue
        best = [*factors[:-1], solved]
        if last - error <= tolerance * error or error <= 1e-12 * total:
            break
        guess = [
            _unit(now + step * (now - before)) for now, before in zip(factors, units, strict=True)
        ]
        units, step, last = factors, min(1.05 * step, 1.0), error
    return best


def _dot(left: Array, right: Array) -> float:
    """The inner product, summed in double precision: differences of such products count."""
    return float(np.vdot(left.astype(np.float64), right.astype(np.float64)))


def _unit(factor: Array) -> Array:
    norms = np.sqrt(np.einsum("ij,ij->j", factor, factor))
    return np.asarray(factor / np.maximum(norms, np.finfo(factor.dtype).tiny))
