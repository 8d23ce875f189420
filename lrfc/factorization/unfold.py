"""Nested cores of one kernel tensor: the TT-SVD, in the plain norm or in the norm of the layer's inputs."""

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

    ``core`` (m, n) makes n features of the left side; ``outputs`` (n·taps, T or more) is what the
    rest of the chain has to make of them, in the coordinates in which ``lower`` (their Cholesky
    factor, None for the identity) makes the features orthonormal, so that each row of ``outputs``
    holds its own share of the squared norm. ``gram`` is the features' Gram matrix.
    """

    core: Array
    taps: int
    outputs: Array
    energy: Array
    gram: Array | None = None
    lower: Array | None = None

    def rest(self, rank: int) -> tuple[Array, Array | None]:
        """The target (rank, everything after) of the later stages and its Gram matrix."""
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
    SVD at every bond from the left. For one bond it is the optimum. tensorly's ``tensor_train``
    gives the same cores, but for one choice of ranks at a time and in the plain norm only.

    With ``gram`` (n, n), n = S·k_1·...·k_n, the error is tr(EᵀGE): what the layer's outputs lose on
    inputs of that second moment. A bond that has only output channels on its right is solved
    exactly (truncated SVD of G^½·W, which is the PCA of the outputs: Zhang et al., arXiv
    1505.06798). A bond with kernel taps on its right has no closed form, because each input is read
    by several taps. There the basis comes from the nearest separable norm (G ≈ M₁ ⊗ M₂, by partial
    traces), and everything on its right is refitted to the outputs by least squares. One Cholesky
    factor of the features' Gram matrix, ordered component by component, holds the refits of all
    ranks: its leading blocks are theirs.

    ``whitened=False`` takes the bases of the TT-SVD without ``gram``, which is then ``plain``, and
    only refits. The better of both is never worse than data-free.
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
        """Whether no rank is beyond what the left side of its bond supports."""
        return self._held(ranks) == ranks

    def cores(self, ranks: Ranks) -> list[Array]:
        """The cores (r_{j-1}, k_j, r_j), with r_0 = S and r_n = T.

        Ranks beyond what the left side of a bond supports are filled with zeros.
        """
        held = self._held(ranks)
        matrices = [self.node(held[:j]).core[:, :rank] for j, rank in enumerate(held)] + [
            self._rest(held)[0]
        ]
        true, wanted = (
            (self.shape[0], *held, self.shape[-1]),
            (self.shape[0], *ranks, self.shape[-1]),
        )
        cores = []
        for j, matrix in enumerate(matrices):
            core = matrix.reshape(true[j], self.shape[j + 1], true[j + 1])
            cores.append(
                np.pad(core, ((0, wanted[j] - true[j]), (0, 0), (0, wanted[j + 1] - true[j + 1])))
            )
        return cores

    def loss(self, ranks: Ranks) -> float:
        """The squared error at those ranks."""
        held = self._held(ranks)
        return self.norm - float(self.node(held[:-1]).energy[: held[-1]].sum())

    def features(self, patches: Array) -> tuple[Array, Array, int]:
        """For a chain of two stages: features (N, n·taps) of patches (N, S·k_1·k_2), outputs (n·taps, T) and the taps of a component.

        The product of the first r·taps columns and rows is the response at rank r.
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
        """The bond behind stages of those ranks."""
        if prefix not in self._nodes:
            target, gram = self._rest(prefix)
            left = len(target) * self.shape[len(prefix) + 1]
            basis = None if self.plain is None else self.plain.node(prefix).core
            self._nodes[prefix] = _bond(
                target.reshape(left, -1), gram, prod(self.shape[len(prefix) + 2 : -1]), basis
            )
        return self._nodes[prefix]

    def forget_but(self, prefix: Ranks) -> None:
        """Free every node but the first and this one: of a large layer each takes a hundred megabytes."""
        self._nodes = {ranks: node for ranks, node in self._nodes.items() if ranks in ((), prefix)}
        if self.plain is not None:
            self.plain.forget_but(prefix)

    def _rest(self, prefix: Ranks) -> tuple[Array, Array | LowRank | None]:
        return self.node(prefix[:-1]).rest(prefix[-1]) if prefix else (self._target, self.gram)

    def _held(self, ranks: Ranks) -> Ranks:
        held: Ranks = ()
        for rank in ranks:
            held += (min(rank, self.node(held).core.shape[1]),)
        return held


def _bond(target: Array, gram: Array | LowRank | None, taps: int, basis: Array | None) -> Node:
    """The bond of a target (m, taps·T) whose left side and taps have the Gram matrix (m·taps, m·taps)."""
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
    """Columns spanning the left side of a target (m, taps·T) in the norm M₁ ⊗ M₂ nearest to ``gram`` (m, taps, m, taps), most important first."""
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
