"""TT-matrix: a Dense layer's weights as a tensor train over pairs of input and output factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import tensorized
from lrfc.factorization.base import Cost, Factors, Ranks, Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import Array, need, solve_lower, solve_positive
from lrfc.factorization.norms import input_grams, separable_roots
from lrfc.factorization.tensorized import Step, TensorizedFactors, factorizations
from lrfc.factorization.unfold import Unfolding
from lrfc.ir.op import Op, Tensor

#: The rank at which shapes are compared; a core between two bonds has its square as a factor.
_USUAL_RANK = 8
_INPUTS, _OUTPUTS, _BONDS = "abc", "xyz", "rs"
#: The largest rank · Π i_k at which the last core is refitted. Beyond it a train saves nothing,
#: and the matrices of the refit become large.
LARGEST_REFIT = 4096


@lru_cache(maxsize=1024)
def shapes(inputs: int, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The factors (i_1, ..., i_d) and (o_1, ..., o_d), with d 2 or 3.

    They have the fewest weights at rank 8, and of those the fewest MACs.
    """
    return min(
        (
            (i, o)
            for d in (2, 3)
            for i in factorizations(inputs, d)
            for o in factorizations(outputs, d)
        ),
        key=lambda shape: _weights(shape, (_USUAL_RANK,) * (len(shape[0]) - 1)),
    )


def _weights(shape: tuple[Sequence[int], Sequence[int]], ranks: Ranks) -> tuple[int, int]:
    """Weights and MACs of the train, contracted from the left."""
    bonds = (1, *ranks, 1)
    params = macs = 0
    for k, (i, o) in enumerate(zip(*shape, strict=True)):
        core = bonds[k] * i * o * bonds[k + 1]
        params += core
        macs += core * prod(shape[0][k + 1 :]) * prod(shape[1][:k])
    return params, macs


@dataclass(frozen=True)
class TTMatrix:
    """Cores (r_{k-1}, i_k, o_k, r_k), contracted one by one (Novikov et al., arXiv 1509.06569).

    Σ r_{k-1}·i_k·o_k·r_k weights. From the left the contraction has
    Σ_k r_{k-1}·i_k·o_k·r_k · Π_{j>k} i_j · Π_{j<k} o_j MACs, from the right likewise; the
    cheaper order is taken. It saves memory far more than time. With two factors it is a sum of
    Kronecker products.
    """

    name: str = "tt_matrix"

    def refuses(self, op: Op, source: Tensor) -> str | None:
        """The reason why the method cannot factorize the op, as one clause; None when it can."""
        return tensorized.refusal(op, source)

    def full(self, op: Op, source: Tensor) -> Ranks:
        """The smaller side of every bond."""
        inputs, outputs = _shape_of(op)
        pairs = [i * o for i, o in zip(inputs, outputs, strict=True)]
        return tuple(min(prod(pairs[:k]), prod(pairs[k:])) for k in range(1, len(pairs)))

    def cost(self, op: Op, source: Tensor, ranks: Ranks) -> Cost:
        """Parameters and MACs of the stages at those ranks, bias included."""
        return _cheaper(op, source, ranks)[1]

    def decompose(
        self,
        op: Op,
        source: Tensor,
        *,
        scale: NDArray[Any] | None = None,
        statistics: Statistics | None = None,
    ) -> Factors:
        """The factors of the layer.

        ``scale`` is not used: the outputs' weights do not factor over the tensor's axes.
        """
        return TTMatrixFactors(Layout.of(op, source), statistics)

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The factor layers, decomposed without statistics; see ``Method``."""
        return self.decompose(op, source).stages(ranks)


def _shape_of(op: Op) -> tuple[tuple[int, ...], tuple[int, ...]]:
    inputs, outputs = op.weights["kernel"].shape
    return shapes(int(inputs), int(outputs))


def _sizes(op: Op, ranks: Ranks) -> dict[str, int]:
    inputs, outputs = _shape_of(op)
    return (
        dict(zip(_INPUTS, inputs, strict=False))
        | dict(zip(_OUTPUTS, outputs, strict=False))
        | dict(zip(_BONDS, ranks, strict=False))
    )


def _cheaper(op: Op, source: Tensor, ranks: Ranks) -> tuple[bool, Cost]:
    """Whether to contract from the left, and the cost."""
    count = len(ranks) + 1
    sizes = _sizes(op, ranks)
    costs = []
    for left in (True, False):
        steps = [
            Step(*_letters(k, count, left=left))
            for k in (range(count) if left else reversed(range(count)))
        ]
        costs.append(tensorized.cost(op, source, steps, _INPUTS[:count], sizes))
    # Of equals the order from the right is taken: it starts at the input's last axis, and needs one
    # Permute less.
    left = costs[0].macs < costs[1].macs
    return left, costs[0 if left else 1]


def _letters(k: int, count: int, *, left: bool) -> tuple[str, str]:
    """The letters of the axes that core k sums over, and of those that it makes."""
    before, after = _BONDS[k - 1 : k] if k else "", _BONDS[k : k + 1] if k < count - 1 else ""
    if left:
        return before + _INPUTS[k], _OUTPUTS[k] + after
    return _INPUTS[k] + after, before + _OUTPUTS[k]


@dataclass(frozen=True, eq=False)
class TTMatrixFactors(TensorizedFactors):
    """The train at every rank.

    With statistics it is truncated in the nearest separable norm of the input factors, and the last
    core is refitted under the whole covariance. The plain train, refitted likewise, is used where
    its error is lower.
    """

    layout: Layout
    statistics: Statistics | None

    @property
    def inputs(self) -> str:
        """The letters of the input's axes."""
        return _INPUTS[: len(self._shape[0])]

    @property
    def outputs(self) -> str:
        """The letters of the output's axes."""
        return _OUTPUTS[: len(self._shape[0])]

    def steps(self, ranks: Ranks) -> tuple[list[Step], dict[str, int]]:
        """One contraction for each core."""
        op, count = self.layout.op, len(ranks) + 1
        left, _ = _cheaper(op, self.layout.source, ranks)
        cores = self._cores(ranks)
        steps = []
        for k in range(count) if left else reversed(range(count)):
            r, i, o, s = cores[k].shape
            weights = (
                cores[k].reshape(r * i, o * s)
                if left
                else cores[k].transpose(1, 3, 0, 2).reshape(i * s, r * o)
            )
            steps.append(Step(*_letters(k, count, left=left), weights))
        return steps, _sizes(op, ranks)

    def matrix(self, ranks: Ranks) -> Array:
        """The matrix (I, O)."""
        return _multiplied(self._cores(ranks))

    @cached_property
    def _shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return _shape_of(self.layout.op)

    @cached_property
    def _target(self) -> Array:
        return np.asarray(self.layout.tensor()[0])

    @cached_property
    def _gram(self) -> Array | None:
        size = self.layout.inputs
        need(self.layout.op.name, "its TT-matrix decomposition", *[(size, self.layout.outputs)] * 4)
        return None if self.statistics is None else input_grams(self.layout, self.statistics)[0]

    @cached_property
    def _roots(self) -> list[Array]:
        assert self._gram is not None
        return separable_roots(self._gram, self._shape[0])

    @cached_property
    def _trains(self) -> list[Unfolding]:
        """The plain train and, with statistics, the one of the whitened tensor."""
        inputs, outputs = self._shape
        count = len(inputs)
        tensor = self._target.reshape(*inputs, *outputs)
        tensors = [tensor]
        if self._gram is not None:
            for mode, root in enumerate(self._roots):
                tensor = np.moveaxis(np.tensordot(root.T, tensor, (1, mode)), 0, mode)
            tensors.append(tensor)
        order = [axis for k in range(count) for axis in (k, count + k)]
        pairs = [i * o for i, o in zip(inputs, outputs, strict=True)]
        return [Unfolding(tensor.transpose(order).reshape(1, 1, *pairs, 1)) for tensor in tensors]

    def _cores(self, ranks: Ranks) -> list[Array]:
        """The cores (r_{k-1}, i_k, o_k, r_k) with the least error."""
        trains = [self._train(0, ranks)]
        if self._gram is not None:
            white = self._train(1, ranks)
            trains.append(
                [_unwhitened(core, root) for core, root in zip(white, self._roots, strict=True)]
            )
            trains += [
                self._refitted(cores)
                for cores in trains
                if ranks[-1] * prod(self._shape[0][:-1]) <= LARGEST_REFIT
            ]
        return trains[0] if len(trains) == 1 else min(trains, key=self._error)

    def _train(self, number: int, ranks: Ranks) -> list[Array]:
        """The cores of one of ``_trains``."""
        inputs, outputs = self._shape
        cores = [core[0] for core in self._trains[number].cores(ranks)]
        return [
            core.reshape(len(core), i, o, -1)
            for core, i, o in zip(cores, inputs, outputs, strict=True)
        ]

    def _error(self, cores: Sequence[Array]) -> float:
        difference = self._target - _multiplied(cores)
        weighted = difference if self._gram is None else self._gram @ difference
        return float(np.vdot(difference, weighted))

    def _refitted(self, cores: Sequence[Array]) -> list[Array]:
        """The train with the last core that is best for the layer's inputs.

        It is a least-squares solution over all outputs that share the core.
        """
        assert self._gram is not None
        left = _multiplied_left(cores[:-1])  # (I', O', r)
        rows, rank = left.shape[0], left.shape[2]
        last, outputs = self._shape[0][-1], self._shape[1][-1]
        overlap = np.einsum("aor,bos->rsab", left, left, optimize=True).reshape(
            rank * rank, rows * rows
        )
        gram = (
            self._gram.reshape(rows, last, rows, last)
            .transpose(0, 2, 1, 3)
            .reshape(rows * rows, last * last)
        )
        normal = (
            (overlap @ gram)
            .reshape(rank, rank, last, last)
            .transpose(0, 2, 1, 3)
            .reshape(rank * last, rank * last)
        )
        cross = (self._gram @ self._target).reshape(rows, last, left.shape[1], outputs)
        right = np.tensordot(left, cross, ((0, 1), (0, 2))).reshape(rank * last, outputs)
        unit = np.sqrt(np.maximum(np.diagonal(normal), 1e-300))
        solved = (
            solve_positive(
                normal / np.outer(unit, unit) + 1e-9 * np.eye(len(unit)), right / unit[:, None]
            )
            / unit[:, None]
        )
        return [*cores[:-1], solved.reshape(rank, last, outputs, 1)]


def _unwhitened(core: Array, root: Array) -> Array:
    """A core of the layer from a core of the whitened tensor; ``root`` is the whitening factor."""
    moved = np.moveaxis(core, 1, 0)
    solved = solve_lower(root, moved.reshape(len(moved), -1), transposed=True).reshape(moved.shape)
    return np.asarray(np.moveaxis(solved, 0, 1))


def _multiplied_left(cores: Sequence[Array]) -> Array:
    """The product (Π i, Π o, r) of the first cores."""
    product: Array = cores[0][0]
    for core in cores[1:]:
        rows, columns = product.shape[:2]
        product = np.asarray(
            np.tensordot(product, core, 1)
            .transpose(0, 2, 1, 3, 4)
            .reshape(rows * core.shape[1], columns * core.shape[2], -1)
        )
    return product


def _multiplied(cores: Sequence[Array]) -> Array:
    """The matrix (I, O) of all cores."""
    return np.asarray(_multiplied_left(cores)[:, :, 0])
