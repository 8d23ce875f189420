"""Alternating least squares in the norm of a layer's inputs, for CP and Tucker-2.

These two forms have no closed solution in that norm. The error is tr(EᵀGE), with G the inputs'
second moment. The factor of the output channels is solved for exactly. The factor of the input
channels would need a matrix with (S·R)² entries, because G couples all channels and taps.
Conjugate gradients do without it, started from the last sweep's factor and preconditioned by the
nearest separable norm. Three steps a sweep are enough: ten reach the same error on ResNet-20's
layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import chain
from math import prod

import numpy as np

from lrfc.factorization.als import NORM_LIMIT, balanced, contracted, khatri_rao, norm_ratio
from lrfc.factorization.base import Ranks
from lrfc.factorization.linalg import Array, cholesky, eigh, ridged, solve_lower, solve_positive

#: Steps of the conjugate gradients in each sweep.
_STEPS = 3
#: A sweep that lowers the squared error by less than this share of it is the last one.
_TOLERANCE = 1e-3
#: The most multiplications in the sweeps for one rank, and the most sweeps. Tucker-2 is evaluated
#: at a hundred pairs of ranks, CP at thirty ranks.
CP_WORK, CP_SWEEPS = 5e10, 10
TUCKER_WORK, TUCKER_SWEEPS = 4e9, 5
#: Relative ridge of the output factor, whose features have unit norm, and of the preconditioners.
_RIDGE = 1e-6


def fit_cp(
    target: Array,
    gram: Array,
    cross: Array,
    roots: Sequence[Array],
    factors: Sequence[Array],
    *,
    sweeps: int = CP_SWEEPS,
) -> list[Array]:
    """Improve CP terms of a tensor (n_0, ..., T) in the norm of ``gram`` (Π n, Π n).

    ``cross`` is gram·target, (Π n, T). ``roots`` are Cholesky factors of the nearest separable
    norm. The error falls with every sweep. A sweep whose terms start to cancel each other is
    discarded.
    """
    shape, flat = target.shape, target.reshape(-1, target.shape[-1])
    rank = factors[0].shape[1]
    sweep_work = 2 * (_STEPS + 1) * len(roots) * len(gram) ** 2 * min(rank, shape[-1])
    norm = float(np.linalg.norm(flat))
    total = float(np.vdot(flat, cross))
    best, last = list(factors), np.inf
    for _ in range(min(sweeps, int(CP_WORK // sweep_work))):
        improved = balanced(best)
        for mode, root in enumerate(roots):
            improved[mode] = _input_factor(mode, root, improved, roots, gram, cross)
        improved[-1], error = output_factor(improved[:-1], gram, cross, _RIDGE)
        error += total
        if norm_ratio(improved, norm) > NORM_LIMIT or error > last:
            break
        best, before, last = improved, last, error
        if before - error <= _TOLERANCE * error:
            break
    return best


def output_factor(
    factors: Sequence[Array], gram: Array, cross: Array, ridge: float
) -> tuple[Array, float]:
    """The best output factor (T, R) for the other factors, and its squared error.

    ``cross`` is gram·target. The target's squared norm is left out of the error.
    """
    return next(output_factors(factors, gram, cross, (ridge,)))


def output_factors(
    factors: Sequence[Array], gram: Array, cross: Array, ridges: Sequence[float]
) -> Iterator[tuple[Array, float]]:
    """The result of ``output_factor`` for each of several ridges, one at a time."""
    features = khatri_rao(factors)
    moment, right = features.T @ gram @ features, features.T @ cross
    unit = np.sqrt(np.maximum(np.diagonal(moment), np.finfo(moment.dtype).tiny))
    scaled = moment / np.outer(unit, unit)
    for ridge in ridges:
        solved = solve_positive(ridged(scaled, ridge), right / unit[:, None]) / unit[:, None]
        yield solved.T, float(np.vdot(solved, moment @ solved - 2 * right))


def _input_factor(
    mode: int,
    root: Array,
    factors: Sequence[Array],
    roots: Sequence[Array],
    gram: Array,
    cross: Array,
) -> Array:
    """The factor of one input mode, after some steps towards the optimum for the other factors."""
    outputs, shape = factors[-1], tuple(len(factor) for factor in factors[:-1])
    white = [
        factor if other is None else other.T @ factor
        for factor, other in zip(factors, chain(roots, [None]), strict=True)
    ]
    others = reduce(np.multiply, [factor.T @ factor for i, factor in enumerate(white) if i != mode])
    others[np.diag_indices(len(others))] *= 1 + _RIDGE

    def apply(factor: Array) -> Array:
        terms = khatri_rao([*factors[:mode], factor, *factors[mode + 1 : -1]])
        response = np.linalg.multi_dot([gram, terms, outputs.T, outputs])
        return contracted(response.reshape(*shape, -1), factors[:-1], mode)

    right = contracted((cross @ outputs).reshape(*shape, -1), factors[:-1], mode)
    return conjugate_gradients(
        apply, right, factors[mode], separable_solver(root, cholesky(others))
    )


def tucker_sweeps(shape: tuple[int, ...], ranks: Ranks, *, weighted: bool) -> int:
    """The number of sweeps that the work for one pair of ranks allows.

    ``shape``: (S, k, T) of the tensor. ``weighted``: whether the error has a norm of the inputs.
    """
    size, (left, right) = shape[0] * shape[1], ranks
    work = size**2 * (2 * left + 2 * (_STEPS + 1) * right) if weighted else 4 * prod(shape) * left
    return min(TUCKER_SWEEPS, int(TUCKER_WORK // work))


def fit_tucker(
    target: Array, gram: Array | None, cross: Array, starts: Sequence[Array], rank: int
) -> list[Array]:
    """Input factor (S, R), core (R, k, rank) and output factor (rank, T) of a tensor (S, k, T).

    ``starts`` are input factors (S, R), of which the best is improved. ``cross`` is gram·target,
    (S·k, T). Without ``gram`` it is the target, and this is the higher-order orthogonal iteration
    (De Lathauwer et al., SIAM J. Matrix Anal. 21(4), 2000), as in tensorly's ``partial_tucker``,
    which knows neither the norm of the inputs nor a start from the nested factors.
    """
    best = min(
        (_refitted(target, gram, cross, start, rank) for start in starts), key=lambda fit: fit[1]
    )
    left = (
        None
        if gram is None
        else cholesky(np.einsum("aibi->ab", gram.reshape(target.shape[:2] * 2)) / target.shape[1])
    )
    for _ in range(
        tucker_sweeps(target.shape, (starts[0].shape[1], rank), weighted=gram is not None)
    ):
        before = best[1]
        factor = _tucker_input(target.shape, gram, left, cross, best[0])
        improved = _refitted(target, gram, cross, factor, rank)
        if improved[1] >= before:
            break
        best = improved
        if before - improved[1] <= _TOLERANCE * improved[1]:
            break
    return best[0]


def _refitted(
    target: Array, gram: Array | None, cross: Array, factor: Array, rank: int
) -> tuple[list[Array], float]:
    """The optimal core and output factor for an input factor (S, R), and the squared error."""
    (size, taps, outputs), width = target.shape, factor.shape[1]
    lower = None
    if gram is None:
        factor = np.linalg.qr(factor)[0]
    else:
        half = np.tensordot(factor, gram.reshape(size, -1), (0, 0)).reshape(
            width * taps, size, taps
        )
        lower = cholesky(
            np.tensordot(half, factor, (1, 0)).swapaxes(1, 2).reshape(width * taps, width * taps)
        )
    white = np.tensordot(factor, cross.reshape(target.shape), (0, 0)).reshape(-1, outputs)
    if lower is not None:
        white = solve_lower(lower, white)
    energy, basis = eigh(white.T @ white)
    core = white @ basis[:, :rank]
    if lower is not None:
        core = solve_lower(lower, core, transposed=True)
    error = float(np.vdot(target, cross) - energy[:rank].sum())
    return [factor, core.reshape(width, taps, rank), basis[:, :rank].T], error


def _tucker_input(
    shape: tuple[int, ...],
    gram: Array | None,
    left: Array | None,
    cross: Array,
    factors: Sequence[Array],
) -> Array:
    """A better input factor for this core and output factor.

    ``left`` is the Cholesky factor of the channels' mean second moment.
    """
    factor, core, basis = factors
    projected = (cross @ basis.T).reshape(shape[0], -1)
    if gram is None or left is None:
        return eigh(projected @ projected.T)[1][:, : factor.shape[1]]
    inner, matrix = core.reshape(len(core), -1), gram

    def apply(factor: Array) -> Array:
        response = matrix @ (factor @ inner).reshape(len(matrix), -1)
        return response.reshape(shape[0], -1) @ inner.T

    others = inner @ inner.T
    others[np.diag_indices(len(others))] *= 1 + _RIDGE
    solved = conjugate_gradients(
        apply, projected @ inner.T, factor, separable_solver(left, cholesky(others))
    )
    # Columns that are orthonormal for the inputs keep the next solve well conditioned; the core is
    # fitted to them.
    return solve_lower(left, np.linalg.qr(left.T @ solved)[0], transposed=True)


def separable_solver(left: Array, right: Array) -> Callable[[Array], Array]:
    """The function X → M⁻¹·X·N⁻¹, for the Cholesky factors of M and N."""

    def solve(matrix: Array) -> Array:
        rows = solve_lower(left, solve_lower(left, matrix), transposed=True)
        return solve_lower(right, solve_lower(right, rows.T), transposed=True).T

    return solve


def conjugate_gradients(
    apply: Callable[[Array], Array],
    right: Array,
    start: Array,
    solve: Callable[[Array], Array],
    steps: int = _STEPS,
) -> Array:
    """Solve apply(X) = right by some steps of the conjugate gradients, preconditioned by ``solve``.

    Each step lowers the quadratic error.
    """
    solution, residual = start, right - apply(start)
    direction = solved = solve(residual)
    energy = float(np.vdot(residual, solved))
    for _ in range(steps):
        applied = apply(direction)
        curvature = float(np.vdot(direction, applied))
        if energy <= 0 or curvature <= 0:
            break  # at the optimum, up to rounding
        solution, residual = (
            solution + energy / curvature * direction,
            residual - energy / curvature * applied,
        )
        solved = solve(residual)
        before, energy = energy, float(np.vdot(residual, solved))
        direction = solved + energy / before * direction
    return solution
