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
    """The components of one bond in each group, most important first.

    ``core`` (G, m, n) computes n features from the left side. ``outputs`` (G, n·taps, T or more) is
    the target of the later stages as a function of the features. It has the coordinates in which
    ``lower`` (the features' Cholesky factor, None for the identity) makes the features orthonormal,
    so that each row of ``outputs`` has its own share of the squared norm. ``gram`` is the features'
    Gram matrix. ``energy`` (G, n) is the squared norm of each component.
    """

    core: Array
    taps: int
    outputs: Array
    energy: Array
    gram: Array | None = None
    lower: Array | None = None

    def rest(self, rank: int) -> tuple[Array, Array | None]:
        """The target (G, rank, all later axes) of the later stages, and its Gram matrix."""
        size, groups = rank * self.taps, len(self.core)
        rows = self.outputs[:, :size]
        if self.lower is None or self.gram is None:
            return rows.reshape(groups, rank, -1), None
        solved = solve_lower(self.lower[:, :size, :size], rows, transposed=True)
        return solved.reshape(groups, rank, -1), self.gram[:, :size, :size]


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

    All arrays have a leading axis of groups, which are decomposed independently of each other.
    ``usual``: for each bond the largest rank that is usually asked for. Components beyond it are
    computed only when they are asked for.
    """

    def __init__(
        self,
        target: Array,
        gram: Array | LowRank | None = None,
        *,
        whitened: bool = True,
        usual: Ranks | None = None,
    ) -> None:
        self.shape = target.shape[1:]
        self._target, self.gram = target.reshape(len(target), self.shape[0], -1), gram
        self._usual = usual
        self.plain = None if whitened or gram is None else Unfolding(target, usual=usual)
        self._nodes: dict[Ranks, Node] = {}

    @cached_property
    def norm(self) -> Array:
        """The target's squared norm (G,)."""
        flat = self._flat
        return np.asarray(np.einsum("gij,gij->g", flat, self.cross, dtype=np.float64))

    @cached_property
    def cross(self) -> Array:
        """gram·target, (G, S·k_1·...·k_n, T)."""
        return self._flat if self.gram is None else self.gram @ self._flat

    @property
    def target(self) -> Array:
        """The tensors (G, S, k_1, ..., k_n, T)."""
        return self._target.reshape(-1, *self.shape)

    @property
    def _flat(self) -> Array:
        return self._target.reshape(len(self._target), -1, self.shape[-1])

    def supports(self, ranks: Ranks) -> bool:
        """Whether no rank is larger than its bond allows."""
        return self._bounded(ranks) == ranks

    def cores(self, ranks: Ranks) -> list[Array]:
        """The cores (G, r_{j-1}, k_j, r_j), with r_0 = S and r_n = T.

        Ranks that are larger than a bond allows are filled with zeros.
        """
        bounded, groups = self._bounded(ranks), len(self._target)
        matrices = [
            self.node(bounded[:j], rank).core[..., :rank] for j, rank in enumerate(bounded)
        ] + [self._rest(bounded)[0]]
        widths = (self.shape[0], *bounded, self.shape[-1])
        missing = (0, *(r - b for r, b in zip(ranks, bounded, strict=True)), 0)
        cores = []
        for j, matrix in enumerate(matrices):
            core = matrix.reshape(groups, widths[j], self.shape[j + 1], widths[j + 1])
            cores.append(np.pad(core, ((0, 0), (0, missing[j]), (0, 0), (0, missing[j + 1]))))
        return cores

    def loss(self, ranks: Ranks) -> Array:
        """The squared error (G,) at those ranks."""
        bounded = self._bounded(ranks)
        energy = self.node(bounded[:-1], bounded[-1]).energy[:, : bounded[-1]]
        return np.asarray(self.norm - energy.sum(1, dtype=np.float64))

    def features(self, patches: Array, rank: int) -> tuple[Array, Array, int]:
        """Features (G, N, n·taps), outputs (G, n·taps, T) and the taps of a component.

        They are those of two stages, with at least ``rank`` components. The patches are
        (G, N, S·k_1·k_2). The product of the first r·taps columns and rows is the response at rank
        r.
        """
        node = self.node((), self._bounded((rank,))[0])
        groups, count, taps = *patches.shape[:2], node.taps
        # (G, N, taps, m), so that one product serves all taps.
        left = patches.reshape(groups, count, -1, taps).swapaxes(2, 3)
        products = left.reshape(groups, count * taps, -1) @ node.core
        features = np.ascontiguousarray(
            products.reshape(groups, count, taps, -1).swapaxes(2, 3)
        ).reshape(groups, count, -1)
        if node.lower is not None:
            features = solve_lower(node.lower, features.mT).mT
        return features, node.outputs.reshape(groups, features.shape[2], -1), taps

    def node(self, prefix: Ranks, rank: int = 1) -> Node:
        """The bond after stages of those ranks, with at least ``rank`` components."""
        node = self._nodes.get(prefix)
        if node is None or node.core.shape[-1] < min(rank, self._most(prefix)):
            usual = self._most(prefix) if self._usual is None else self._usual[len(prefix)]
            count = self._most(prefix) if rank > usual else min(usual, self._most(prefix))
            target, gram = self._rest(prefix)
            left = target.shape[1] * self.shape[len(prefix) + 1]
            basis = None if self.plain is None else self.plain.node(prefix, count).core
            node = self._nodes[prefix] = _bond(
                target.reshape(len(target), left, -1),
                gram,
                prod(self.shape[len(prefix) + 2 : -1]),
                basis,
                count,
            )
        return node

    def forget_but(self, prefix: Ranks) -> None:
        """Free every node but the first and this one; a large layer's take a hundred MB each."""
        self._nodes = {ranks: node for ranks, node in self._nodes.items() if ranks in ((), prefix)}
        if self.plain is not None:
            self.plain.forget_but(prefix)

    def _rest(self, prefix: Ranks) -> tuple[Array, Array | LowRank | None]:
        """The target of the stages after those of these ranks, and its Gram matrix."""
        if not prefix:
            return self._target, self.gram
        return self.node(prefix[:-1], prefix[-1]).rest(prefix[-1])

    def _most(self, prefix: Ranks) -> int:
        """The number of components of the bond after stages of those ranks: its shorter side."""
        left = (prefix[-1] if prefix else self.shape[0]) * int(self.shape[len(prefix) + 1])
        return min(left, prod(self.shape[len(prefix) + 2 :]))

    def _bounded(self, ranks: Ranks) -> Ranks:
        """The ranks, none larger than its bond allows."""
        bounded: Ranks = ()
        for rank in ranks:
            bounded += (min(rank, self._most(bounded)),)
        return bounded


def _bond(
    target: Array, gram: Array | LowRank | None, taps: int, basis: Array | None, count: int
) -> Node:
    """The bond of targets (G, m, taps·T), where ``gram`` is (G, m·taps, m·taps).

    ``basis``: the columns to use as core, None for those of the nearest separable norm. ``count``:
    the number of components.
    """
    groups, rows = target.shape[:2]
    if gram is None or taps == 1:
        core, rest, energy = project(target, gram)
        return Node(core, taps, rest.reshape(groups, rest.shape[1] * taps, -1), energy)
    gram = gram.dense()[None] if isinstance(gram, LowRank) else gram
    if basis is None:
        basis = _separable_basis(target, gram.reshape(groups, rows, taps, rows, taps))
    core = np.ascontiguousarray(basis[..., :count])
    width = count * taps
    half = core.mT @ gram.reshape(groups, rows, -1)  # (G, count, taps·m·taps)
    cross = half.reshape(groups, width, rows * taps) @ target.reshape(groups, rows * taps, -1)
    rotated = half.reshape(groups, width, rows, taps).swapaxes(2, 3).reshape(groups, -1, rows)
    del half
    products = (rotated @ core).reshape(groups, width, taps, count).swapaxes(2, 3)
    features = products.reshape(groups, width, width)
    del rotated, products
    lower = cholesky(features)
    fitted = solve_lower(lower, cross)
    energy = np.square(fitted).reshape(groups, count, -1).sum(2, dtype=np.float64)
    return Node(core, taps, fitted, energy, features, lower)


def _separable_basis(target: Array, gram: Array) -> Array:
    """Bases of the left side of targets (G, m, taps·T), most important columns first.

    The norm is M₁ ⊗ M₂, the separable one nearest to ``gram`` (G, m, taps, m, taps).
    """
    groups, rows, taps = gram.shape[:3]
    left = np.einsum("gaibi->gab", gram) / taps
    right = np.einsum("gaiaj->gij", gram) / rows
    right *= taps / np.trace(right, axis1=1, axis2=2)[:, None, None]
    lower = cholesky(left)
    # (G, m, T, taps) @ (G, 1, taps, taps): the taps of each entry are mixed.
    entries = target.reshape(groups, rows, taps, -1).swapaxes(2, 3)
    white = lower.mT @ (entries @ cholesky(right)[:, None]).reshape(groups, rows, -1)
    _, basis = eigh(white @ white.mT)
    columns = min(rows, target.shape[2])
    return solve_lower(lower, basis[..., :columns], transposed=True)
