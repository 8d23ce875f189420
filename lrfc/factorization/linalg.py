"""Linear algebra of the factorizations: projections, shrunk covariances, canonical cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from lrfc import text
from lrfc.errors import ModelError
from lrfc.system import memory

Array = NDArray[np.float64]

#: The most memory that one decomposition may need, in bytes.
MEMORY_LIMIT = 6 << 30
#: Least weight of the identity in a covariance. It bounds the condition number, so that no
#: whitening divides by zero.
LEAST_SHRINKAGE = 1e-6


@dataclass(frozen=True, eq=False)
class LowRank:
    """The positive matrix XᵀX + ridge·I, (D, D), by its rows X (N, D).

    It suits a layer that has many more inputs than there are samples.
    """

    rows: Array
    ridge: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        return len(self), len(self)

    def __len__(self) -> int:
        return int(self.rows.shape[1])

    def __matmul__(self, right: Array) -> Array:
        product = self.rows.T @ (self.rows @ right)
        if self.ridge:
            product += self.ridge * right
        return np.asarray(product)

    def between(self, matrix: Array) -> Array:
        """MᵀGM for M (..., D, T), (..., T, T) in float64, without G or G·M."""
        response = self.rows @ matrix
        ridge = self.ridge * (matrix.mT @ matrix).astype(np.float64)
        return np.asarray(response.mT @ response + ridge)

    def dense(self) -> Array:
        """The whole matrix."""
        whole = self.rows.T @ self.rows
        whole[np.diag_indices(len(whole))] += self.ridge
        return np.asarray(whole)


def need(layer: str, what: str, *shapes: Sequence[int]) -> None:
    """Raise ModelError when float64 arrays of these shapes together exceed the memory limit."""
    size, limit = 8 * sum(prod(shape) for shape in shapes), memory.limit(MEMORY_LIMIT)
    if size > limit:
        more = ", or allow more with --memory" if limit < MEMORY_LIMIT else ""
        raise ModelError(
            f"layer '{layer}': {what} needs {text.size(size)}, above the limit of"
            f" {text.size(limit)}; exclude the layer with --keep {layer}{more}"
        )


def shrink(covariance: Array, count: int) -> Array:
    """The covariance, shrunk towards a multiple of the identity.

    It is positive definite for any number of samples: (1-ρ)·Σ + ρ·tr(Σ)/D·I with the oracle
    approximating shrinkage ρ of Chen, Wiesel, Eldar and Hero (IEEE Trans. Signal Processing
    58(10), 2010, eq. 23), but at least LEAST_SHRINKAGE. A covariance of zero (a layer that reads
    zeros only) becomes the identity.
    """
    size = len(covariance)
    trace = float(np.trace(covariance, dtype=np.float64))
    if trace <= 0:
        return np.eye(size, dtype=covariance.dtype)
    squared = sum(float(np.vdot(row, row)) for row in covariance)
    weight = shrinkage(size, trace, squared, count)
    shrunk = (1 - weight) * (covariance + covariance.T) / 2
    shrunk[np.diag_indices(size)] += weight * trace / size
    return np.asarray(shrunk)


def shrink_rows(covariance: LowRank, count: int) -> LowRank:
    """The result of ``shrink`` for a covariance that is stored by its rows."""
    size, trace = len(covariance), float(np.vdot(covariance.rows, covariance.rows))
    if trace <= 0:
        return LowRank(covariance.rows, 1.0)
    weight = shrinkage(
        size, trace, float(np.sum(np.square(covariance.rows @ covariance.rows.T))), count
    )
    return LowRank(np.sqrt(1 - weight) * covariance.rows, weight * trace / size)


def shrinkage(size: int, trace: float, squared: float, count: int) -> float:
    """The weight ρ of the identity for a covariance of that size, trace and squared norm."""
    spread = (max(count, 1) + 1 - 2 / size) * (squared - trace**2 / size)
    weight = 1.0 if spread <= 0 else ((1 - 2 / size) * squared + trace**2) / spread
    return min(1.0, max(LEAST_SHRINKAGE, weight))


def eigh(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues in descending order, clipped at zero, and the eigenvectors as columns.

    ``gram``: a matrix, or a stack of them.
    """
    values, vectors = np.linalg.eigh(gram)
    return np.clip(values[..., ::-1], 0, None), vectors[..., ::-1]


def project(matrix: Array, gram: Array | LowRank | None = None) -> tuple[Array, Array, Array]:
    """Factors (core, rest) of a matrix (m, n) for all ranks, and the energy of each component.

    ``core`` has orthonormal columns (in the norm of ``gram``, (m, m), where there is one), ``rest``
    has the weights, and ``core[:, :r] @ rest[:r]`` is the best approximation of rank r in the norm
    tr(EᵀGE). It is an SVD from the Gram matrix of the shorter side: both factors are projections
    onto an orthonormal eigenbasis, so that all components together reproduce the matrix exactly,
    however small its singular values are. Stacks of matrices have stacks of factors.
    """
    rows, columns = matrix.shape[-2:]
    if rows < columns:
        if gram is None:
            energy, basis = eigh(matrix @ matrix.mT)
            return basis, basis.mT @ matrix, energy
        lower = cholesky(gram.dense()[None] if isinstance(gram, LowRank) else gram)
        white = lower.mT @ matrix
        energy, basis = eigh(white @ white.mT)
        return solve_lower(lower, basis, transposed=True), basis.mT @ white, energy
    energy, basis = eigh(
        gram.between(matrix)
        if isinstance(gram, LowRank)
        else matrix.mT @ (matrix if gram is None else gram @ matrix)
    )
    sigma = np.sqrt(np.maximum(energy, (1e-9**2) * energy[..., :1]))
    sigma[sigma == 0] = 1.0  # a matrix of zeros
    return (
        matrix @ (basis / sigma[..., None, :]).astype(matrix.dtype),
        (sigma[..., None] * basis.mT).astype(matrix.dtype),
        energy,
    )


def cholesky(gram: Array) -> Array:
    """The lower Cholesky factor of a positive definite matrix, or of each of a stack.

    Where rounding makes it fail, the least sufficient ridge is added; single precision is given up
    before. The covariance of inputs that hardly vary may be nothing but rounding, with eigenvalues
    below zero as large as those above.
    """
    try:
        return np.asarray(np.linalg.cholesky(gram))
    except np.linalg.LinAlgError:
        if gram.ndim > 2:
            return np.stack([cholesky(matrix) for matrix in gram])
    if gram.dtype == np.float32:
        try:
            return _cholesky_in_place(gram.astype(np.float64, order="F")).astype(np.float32)
        except np.linalg.LinAlgError:
            return cholesky(gram.astype(np.float64)).astype(np.float32)
    bound = float(np.max(np.sum(np.abs(gram), axis=1))) or 1.0  # no eigenvalue is larger
    largest = float(np.max(np.diagonal(gram)))
    ridge = 1e-13 * (largest if largest > 0 else bound)
    while True:
        try:
            return np.asarray(np.linalg.cholesky(gram + ridge * np.eye(len(gram))))
        except np.linalg.LinAlgError:
            if not ridge <= bound:
                raise
            ridge *= 10


def _cholesky_in_place(gram: Array) -> Array:
    """The lower Cholesky factor in the memory of ``gram``, which has Fortran's order."""
    return np.asarray(linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False))


def solve_lower(lower: Array, right: Array, *, transposed: bool = False) -> Array:
    """L⁻¹·B, or L⁻ᵀ·B, for a lower triangular L, or for each of a stack."""
    if lower.ndim == 2:
        # LAPACK itself: the checks of SciPy's function take longer than a small system. It reads
        # the transpose of an array in C's order.
        (solve,) = linalg.get_lapack_funcs(("trtrs",), (lower, right))
        solution, failed = solve(lower.T, right, lower=False, trans=not transposed)
        if failed:
            raise np.linalg.LinAlgError(f"a triangular matrix with 0 in row {failed}")
        return np.asarray(solution)
    if len(lower) == 1:
        return solve_lower(lower[0], right[0], transposed=transposed)[None]
    # SciPy solves the systems of a stack one by one, which takes longer for many small ones.
    return np.asarray(np.linalg.solve(lower.mT if transposed else lower, right))


def ridged(matrix: Array, ridge: float) -> Array:
    """M + ρI in the precision of M."""
    result = np.array(matrix, order="C")
    result.flat[:: len(result) + 1] += ridge
    return result


def solve_positive(matrix: Array, right: Array) -> Array:
    """M⁻¹·B for a positive definite M."""
    (solve,) = linalg.get_lapack_funcs(("posv",), (matrix, right))
    _, solution, failed = solve(matrix, right, lower=True)
    if not failed:
        return np.asarray(solution)
    lower = cholesky(matrix)
    return solve_lower(lower, solve_lower(lower, right), transposed=True)


def canonical(cores: Sequence[Array]) -> list[Array]:
    """The same chains of cores (G, r_{j-1}, k_j, r_j), with well-conditioned bonds.

    A QR sweep from the left makes the cores orthonormal. An SVD sweep from the right splits every
    bond as U√Σ · √ΣVᵀ: each side gets the root of the singular values. The shapes do not
    change.
    """
    result = list(cores)
    for j in range(len(result) - 1):
        groups, left, size, right = result[j].shape
        q, r = np.linalg.qr(result[j].reshape(groups, left * size, right))
        result[j] = _padded(q, right, axis=2).reshape(groups, left, size, right)
        after = result[j + 1]
        product = _padded(r, right, axis=1) @ after.reshape(groups, right, -1)
        result[j + 1] = product.reshape(after.shape)
    for j in range(len(result) - 1, 0, -1):
        groups, left, size, right = result[j].shape
        u, s, v = np.linalg.svd(result[j].reshape(groups, left, size * right), full_matrices=False)
        root = np.sqrt(s)[:, None]
        result[j] = _padded(root.mT * v, left, axis=1).reshape(groups, left, size, right)
        before = result[j - 1]
        product = before.reshape(groups, -1, left) @ _padded(u * root, left, axis=2)
        result[j - 1] = product.reshape(before.shape)
    return result


def _padded(matrix: Array, length: int, axis: int) -> Array:
    """The matrices with zeros up to that length along one axis."""
    missing = length - matrix.shape[axis]
    if missing == 0:
        return matrix
    return np.pad(matrix, [(0, missing if i == axis else 0) for i in range(matrix.ndim)])
