"""Nested cores of a kernel tensor: the TT-SVD, in the plain norm or in that of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from lrfc.factorization.base import Ranks
from lrfc.factorization.linalg import Array, LowRank, cholesky, eigh, project, solve_lower


@dataclass(frozen=True, eq=False)
class Node:
    """All components of one bond, most important first.

    ``core`` (m, n) computes n features from the left side. ``outputs`` (n·taps, T or more) is the
    target of the later stages as a function of the features. It has the coordinates in which
    ``lower`` (the features' Cholesky factor, None for the identity) makes the features orthonormal,
    so that each row of ``outputs`` has its own share of the squared norm. ``gram`` is the features'
    Gram matrix. ``energy`` is the squared norm of each component.
    """

    core: Array
    taps: int
    outputs: Array
    energy: Array
    gram: Array | None = None
    lower: Array | None = None

    def rest(self, rank: int) -> tuple[Array, Array | None]:
        """The target (rank, all later axes) of the later stages, and its Gram matrix."""
        size = rank * self.taps
        if self.lower is None or self.gram is None:
            return self.outputs[:size].reshape(rank, -1), None
        return (
            solve_lower(self.lower[:size, :size], self.outputs[:size], transposed=True).reshape(
                rank, -1
            ),
            self.gram[:size, :size],
        )


class Unfolding:
    """The chain of cores of a tensor (S, k_1, ..., k_n, T), nested in the rank of each bond.

    Without ``gram`` this is the TT-SVD (Oseledets, SIAM J. Sci. Comput. 33(5), 2011, alg. 1): an
    SVD at every bond from the left. For one bond it is the optimum. tensorly's ``tensor_train`` has
    the same cores, but for one choice of ranks at a time and in the plain norm only.

    With ``gram`` (n, n), n = S·k_1·...·k_n, the error is tr(EᵀGE): that of the layer's outputs
    for inputs of that second moment. A bond with nothing but output channels on its right is solved
    exactly (truncated SVD of G^½·W, which is the PCA of the outputs: Zhang et al., arXiv
    1505.06798). A bond with kernel taps on its right has no closed form, because several taps read
    each input. There the basis comes from the nearest separable norm (G ≈ M₁ ⊗ M₂, by
    partial traces), and everything on its right is refitted to the outputs by least squares. One
    Cholesky factor of the features' Gram matrix, ordered component by component, is enough for the
    refits of all ranks: they use its leading blocks.

    With ``whitened=False`` the bases are those of the TT-SVD without ``gram``, which is then
    ``plain``, and only the refit uses ``gram``. The better of the two is never worse than without
    data.
    """

    def __init__(
        self, target: Array, gram: Array | LowRank | None = None, *, whitened: bool = True
    ) -> None:
        self.shape = target.shape
        self._target, self.gram = target.reshape(self.shape[0], -1), gram
        self.plain = None if whitened or gram is None else Unfolding(target)
        self._nodes: dict[Ranks, Node] = {}

    @cached_property
    def norm(self) -> float:
        """The target's squared norm."""
        return float(np.vdot(self._target, self.cross))

    @cached_property
    def cross(self) -> Array:
        """gram·target, (S·k_1·...·k_n, T)."""
        flat = self._target.reshape(-1, self.shape[-1])
        return flat if self.gram is None else self.gram @ flat

    @property
    def target(self) -> Array:
        """The tensor (S, k_1, ..., k_n, T)."""
        return self._target.reshape(self.shape)

    def supports(self, ranks: Ranks) -> bool:
        """Whether no rank is larger than the left side of its bond allows."""
        return self._bounded(ranks) == ranks

    def cores(self, ranks: Ranks) -> list[Array]:
        """The cores (r_{j-1}, k_j, r_j), with r_0 = S and r_n = T.

        Ranks that are larger than the left side of a bond allows are filled with zeros.
        """
        bounded = self._bounded(ranks)
        matrices = [self.node(bounded[:j]).core[:, :rank] for j, rank in enumerate(bounded)] + [
            self._rest(bounded)[0]
        ]
        widths = (self.shape[0], *bounded, self.shape[-1])
        missing = (0, *(r - b for r, b in zip(ranks, bounded, strict=True)), 0)
        cores = []
        for j, matrix in enumerate(matrices):
            core = matrix.reshape(widths[j], self.shape[j + 1], widths[j + 1])
            cores.append(np.pad(core, ((0, missing[j]), (0, 0), (0, missing[j + 1]))))
        return cores

    def loss(self, ranks: Ranks) -> float:
        """The squared error at those ranks."""
        bounded = self._bounded(ranks)
        return self.norm - float(self.node(bounded[:-1]).energy[: bounded[-1]].sum())

    def features(self, patches: Array) -> tuple[Array, Array, int]:
        """Features (N, n·taps), outputs (n·taps, T) and the taps of a component, of two stages.

        The patches are (N, S·k_1·k_2). The product of the first r·taps columns and rows is the
        response at rank r.
        """
        node = self.node(())
        left = patches.reshape(len(patches), len(node.core), node.taps)
        features = np.ascontiguousarray(
            np.tensordot(left, node.core, (1, 0)).swapaxes(1, 2)
        ).reshape(len(patches), -1)
        if node.lower is not None:
            features = solve_lower(node.lower, features.T).T
        return features, node.outputs.reshape(features.shape[1], -1), node.taps

    def node(self, prefix: Ranks) -> Node:
        """The bond after stages of those ranks."""
        if prefix not in self._nodes:
            target, gram = self._rest(prefix)
            left = len(target) * self.shape[len(prefix) + 1]
            basis = None if self.plain is None else self.plain.node(prefix).core
            self._nodes[prefix] = _bond(
                target.reshape(left, -1), gram, prod(self.shape[len(prefix) + 2 : -1]), basis
            )
        return self._nodes[prefix]

    def forget_but(self, prefix: Ranks) -> None:
        """Free every node but the first and this one; a large layer's take a hundred MB each."""
        self._nodes = {ranks: node for ranks, node in self._nodes.items() if ranks in ((), prefix)}
        if self.plain is not None:
            self.plain.forget_but(prefix)

    def _rest(self, prefix: Ranks) -> tuple[Array, Array | LowRank | None]:
        """The target of the stages after those of these ranks, and its Gram matrix."""
        return self.node(prefix[:-1]).rest(prefix[-1]) if prefix else (self._target, self.gram)

    def _bounded(self, ranks: Ranks) -> Ranks:
        """The ranks, none larger than the left side of its bond allows."""
        bounded: Ranks = ()
        for rank in ranks:
            bounded += (min(rank, self.node(bounded).core.shape[1]),)
        return bounded


def _bond(target: Array, gram: Array | LowRank | None, taps: int, basis: Array | None) -> Node:
    """The bond of a target (m, taps·T), where ``gram`` is (m·taps, m·taps).

    ``basis``: the columns to use as core, None for those of the nearest separable norm.
    """
    if gram is None or taps == 1:
        core, rest, energy = project(target, gram)
        return Node(core, taps, rest.reshape(len(rest) * taps, -1), energy)
    gram = gram.dense() if isinstance(gram, LowRank) else gram
    rows, outputs = len(target), target.shape[1] // taps
    core = (
        _separable_basis(target, gram.reshape(rows, taps, rows, taps)) if basis is None else basis
    )
    count = core.shape[1]
    half = np.tensordot(core, gram.reshape(rows, -1), (0, 0)).reshape(count * taps, rows, taps)
    features = np.tensordot(half, core, (1, 0)).swapaxes(1, 2).reshape(count * taps, count * taps)
    cross = half.reshape(count * taps, rows * taps) @ target.reshape(rows * taps, outputs)
    del half
    lower = cholesky(features)
    fitted = solve_lower(lower, cross)
    return Node(core, taps, fitted, (fitted**2).reshape(count, -1).sum(1), features, lower)


def _separable_basis(target: Array, gram: Array) -> Array:
    """A basis of the left side of a target (m, taps·T), most important columns first.

    The norm is M₁ ⊗ M₂, the separable one nearest to ``gram`` (m, taps, m, taps).
    """
    rows, taps = gram.shape[:2]
    left = np.einsum("aibi->ab", gram) / taps
    right = np.einsum("aiaj->ij", gram) / rows
    right *= taps / np.trace(right)
    lower = cholesky(left)
    mixed = np.tensordot(target.reshape(rows, taps, -1), cholesky(right), (1, 0)).reshape(rows, -1)
    white = lower.T @ mixed
    _, basis = eigh(white @ white.T)
    columns = min(rows, target.shape[1])
    return solve_lower(lower, basis[:, :columns], transposed=True)
