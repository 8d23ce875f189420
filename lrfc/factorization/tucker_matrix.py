"""Tucker of the tensorised matrix: a Dense layer through a small core between reduced factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import tensorized
from lrfc.factorization.base import Cost, Factors, Ranks, Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import Array, eigh, need, solve_lower, solve_positive
from lrfc.factorization.norms import input_grams, separable_roots
from lrfc.factorization.tensorized import Step, TensorizedFactors, factorizations
from lrfc.ir.op import Op, Tensor

_SIZES = "abxy"  # input factors, output factors
_REDUCED = "pquv"
#: Sweeps of the orthogonal iteration at each pair of ranks.
SWEEPS = 3


@lru_cache(maxsize=1024)
def shape(inputs: int, outputs: int) -> tuple[int, int, int, int]:
    """The two input factors and the two output factors, each pair as even as possible."""
    (a, b), (x, y) = (
        min(factorizations(number, 2), key=lambda pair: (max(pair), pair))
        for number in (inputs, outputs)
    )
    return a, b, x, y


@dataclass(frozen=True)
class TuckerMatrix:
    """Input factors a→p and b→q, a core (p·q, u·v), output factors u→x and v→y.

    Tucker 1966; reference sheet §4.2. a·p + b·q + p·q·u·v + u·x + v·y weights. The first
    rank bounds p and q, the second u and v. The factors are contracted in the order with the fewest
    MACs.
    """

    name: str = "tucker_matrix"

    def refuses(self, op: Op, source: Tensor) -> str | None:
        """The reason why the method cannot factorize the op, as one clause; None when it can."""
        return tensorized.refusal(op, source)

    def full(self, op: Op, source: Tensor) -> Ranks:
        """The larger factor of the inputs and of the outputs."""
        a, b, x, y = _shape_of(op)
        return (max(a, b), max(x, y))

    def cost(self, op: Op, source: Tensor, ranks: Ranks) -> Cost:
        """Parameters and MACs of the stages at those ranks, bias included."""
        return min(
            (tensorized.cost(op, source, steps, "ab", _lengths(op, ranks)) for steps in _orders()),
            key=lambda cost: cost.macs,
        )

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
        return TuckerMatrixFactors(Layout.of(op, source), statistics)

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The factor layers, decomposed without statistics; see ``Method``."""
        return self.decompose(op, source).stages(ranks)


def _shape_of(op: Op) -> tuple[int, int, int, int]:
    inputs, outputs = op.weights["kernel"].shape
    return shape(int(inputs), int(outputs))


def _lengths(op: Op, ranks: Ranks) -> dict[str, int]:
    sizes = _shape_of(op)
    reduced = [min(ranks[mode // 2], size) for mode, size in enumerate(sizes)]
    return dict(zip(_SIZES, sizes, strict=True)) | dict(zip(_REDUCED, reduced, strict=True))


def _orders() -> list[list[Step]]:
    """The four orders of contraction: either input factor first, and either output factor first."""
    orders = []
    for first, last in product(
        (("a", "p", "b", "q"), ("b", "q", "a", "p")), (("u", "x", "v", "y"), ("v", "y", "u", "x"))
    ):
        pairs = [first[:2], first[2:], ("pq", "uv"), last[:2], last[2:]]
        orders.append([Step(summed, made) for summed, made in pairs])
    return orders


@dataclass(frozen=True, eq=False)
class TuckerMatrixFactors(TensorizedFactors):
    """Orthogonal iteration from the truncated HOSVD, at every rank.

    De Lathauwer et al., SIAM J. Matrix Anal. 21(4), 2000. tensorly's ``tucker`` does the same by an
    SVD of every wide unfolding: for 4096 inputs that takes 25 s a rank, with Gram matrices one.
    With statistics the input factors come from the nearest separable norm, and the core is the
    optimum for them under the whole covariance. The plain factors with such a core are used where
    their error is lower.
    """

    layout: Layout
    statistics: Statistics | None
    inputs: str = "ab"
    outputs: str = "xy"

    def steps(self, ranks: Ranks) -> tuple[list[Step], dict[str, int]]:
        """Five contractions."""
        op = self.layout.op
        lengths = _lengths(op, ranks)
        factors, core = self._best(ranks)
        matrices = {
            "a": factors[0],
            "b": factors[1],
            "pq": core,
            "u": factors[2].T,
            "v": factors[3].T,
        }
        order = min(
            _orders(),
            key=lambda steps: tensorized.cost(op, self.layout.source, steps, "ab", lengths).macs,
        )
        return [Step(step.summed, step.made, matrices[step.summed]) for step in order], lengths

    def matrix(self, ranks: Ranks) -> Array:
        """The matrix (I, O)."""
        factors, core = self._best(ranks)
        return np.kron(factors[0], factors[1]) @ core @ np.kron(factors[2], factors[3]).T

    @cached_property
    def _target(self) -> Array:
        return np.asarray(self.layout.tensor()[0])

    @cached_property
    def _gram(self) -> Array | None:
        size = self.layout.inputs
        need(self.layout.op.name, "its Tucker decomposition", *[(size, self.layout.outputs)] * 4)
        return None if self.statistics is None else input_grams(self.layout, self.statistics)[0]

    @cached_property
    def _roots(self) -> list[Array]:
        """Cholesky factors of the nearest separable norm, one per input factor."""
        return (
            [] if self._gram is None else separable_roots(self._gram, _shape_of(self.layout.op)[:2])
        )

    @cached_property
    def _tensors(self) -> list[tuple[Array, list[Array]]]:
        """The plain tensor and, with statistics, the whitened one.

        Each comes with the bases (n, n) of its HOSVD.
        """
        tensor = self._target.reshape(_shape_of(self.layout.op))
        tensors = [(tensor, _hosvd(tensor))]
        if self._gram is not None:
            for mode, root in enumerate(self._roots):
                tensor = np.moveaxis(np.tensordot(root.T, tensor, (1, mode)), 0, mode)
            tensors.append((tensor, _hosvd(tensor)))
        return tensors

    def _best(self, ranks: Ranks) -> tuple[list[Array], Array]:
        """The factors (n, rank) and the core (p·q, u·v) with the least error."""
        fits = [
            _iterated(tensor, [basis[:, : ranks[mode // 2]] for mode, basis in enumerate(bases)])
            for tensor, bases in self._tensors
        ]
        if self._gram is not None:
            fits[1] = [
                *(
                    solve_lower(root, factor, transposed=True)
                    for root, factor in zip(self._roots, fits[1], strict=False)
                ),
                *fits[1][2:],
            ]
        return max((self._with_core(factors) for factors in fits), key=lambda fit: fit[2])[:2]

    def _with_core(self, factors: Sequence[Array]) -> tuple[list[Array], Array, float]:
        """The factors, their best core, and the squared norm that it captures."""
        reduced = np.kron(factors[0], factors[1])
        output = np.kron(factors[2], factors[3])
        moment = reduced if self._gram is None else self._gram @ reduced
        right = moment.T @ self._target @ output
        # Without statistics the factors are orthonormal.
        core = right if self._gram is None else solve_positive(reduced.T @ moment, right)
        return list(factors), core, float(np.vdot(core, right))


def _hosvd(tensor: Array) -> list[Array]:
    """The eigenvectors of every unfolding's Gram matrix."""
    unfoldings = (
        np.moveaxis(tensor, mode, 0).reshape(size, -1) for mode, size in enumerate(tensor.shape)
    )
    return [eigh(unfolding @ unfolding.T)[1] for unfolding in unfoldings]


def _iterated(tensor: Array, factors: Sequence[Array]) -> list[Array]:
    """Orthogonal factors (n, rank) after some sweeps of the orthogonal iteration.

    They are unchanged where no mode is reduced.
    """
    result = list(factors)
    if all(len(factor) == factor.shape[1] for factor in result):
        return result
    # The factor that reduces the tensor most is contracted first.
    order = sorted(range(tensor.ndim), key=lambda n: result[n].shape[1] / len(result[n]))
    for _ in range(SWEEPS):
        for mode, factor in enumerate(result):
            reduced = tensor
            for other in order:
                if other != mode:
                    contracted = np.tensordot(result[other], reduced, (0, other))
                    reduced = np.moveaxis(contracted, 0, other)
            unfolding = np.moveaxis(reduced, mode, 0).reshape(len(factor), -1)
            result[mode] = eigh(unfolding @ unfolding.T)[1][:, : factor.shape[1]]
    return result
