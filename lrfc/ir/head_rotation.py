"""The dimensions of attention heads, turned into the order of their weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.graph import Graph
from lrfc.ir.head_pairs import Pair
from lrfc.ir.op import Array, Op, Ref

Matrix = NDArray[np.float64]
#: Eigenvalues and singular values below this share of the largest count as it: they concern
#: dimensions that hold nothing, and the inverse has to stay exact in float32.
FLOOR = 1e-6
#: The largest change of the product of both layers, relative to it, that rounding may cause.
EXACT = 1e-5


def rotated(graph: Graph, pair: Pair, moments: Mapping[Ref, Matrix]) -> Graph:
    """The graph with the dimensions between two layers turned; it computes the same.

    ``moments``: the second moments of each of the pair's tensors, see ``second_moments``. Where
    rounding to float32 would change the product of the two layers, the graph stays as it is.
    """
    groups = min(pair.heads)
    old = [by_group(m, n, groups) for m, n in zip(_sides(graph, pair), pair.heads, strict=True)]
    held = [moments[ref] for ref in pair.tensors]
    if not pair.scores:
        held.append(old[1].transpose(0, 2, 1) @ old[1])
    new = [side.copy() for side in old]
    for group in range(groups):
        first, second = (each[group] for each in held)
        if first.any() and second.any():
            for side, matrix in zip(new, rotation(first, second), strict=True):
                side[group] = side[group] @ matrix
    new = [side.astype(np.float32).astype(np.float64) for side in new]
    before, behind = (first @ second.transpose(0, 2, 1) for first, second in (old, new))
    if not np.linalg.norm(behind - before) <= EXACT * np.linalg.norm(before):
        return graph
    return graph.with_weights(_weights(graph, pair, new))


def rotation(first: Matrix, second: Matrix) -> tuple[Matrix, Matrix]:
    """The matrices A and B, with A·Bᵀ = 1, for both sides of a head.

    ``first``, ``second``: the second moments (H, H) of what the two sides hold, XᵀX and YᵀY. Those
    of X·A and of Y·B are both the diagonal matrix of the singular values of X·Yᵀ, in descending
    order. So the first r dimensions are the best approximation of that product of rank r (Eckart
    and Young 1936).
    """
    one, other = _root(first), _root(second)
    left, values, _ = np.linalg.svd(one @ other)
    a = np.linalg.solve(one, left * np.sqrt(np.maximum(values, FLOOR * values[0])))
    return a, np.linalg.inv(a).T


def second_moments(values: Array, heads: int, groups: int) -> Matrix:
    """The second moments (groups, H, H) of a tensor (..., heads·H), summed over all other axes.

    Heads that share keys and values are one group.
    """
    rows = by_group(values.reshape(-1, values.shape[-1]).astype(np.float64), heads, groups)
    return np.asarray(rows.transpose(0, 2, 1) @ rows)


def by_group(matrix: Matrix, heads: int, groups: int) -> Matrix:
    """A matrix (N, heads·H) as (groups, heads/groups·N, H): the heads of a group below another."""
    split = matrix.reshape(len(matrix), groups, heads // groups, -1)
    return np.asarray(split.transpose(1, 2, 0, 3).reshape(groups, -1, split.shape[-1]))


def _from_groups(parts: Matrix, heads: int) -> Matrix:
    """The matrix that ``by_group`` gives in parts."""
    groups, _, size = parts.shape
    split = parts.reshape(groups, heads // groups, -1, size)
    return np.asarray(split.transpose(2, 0, 1, 3).reshape(-1, heads * size))


def _root(moments: Matrix) -> Matrix:
    """The symmetric square root of second moments, with no eigenvalue near 0."""
    values, vectors = np.linalg.eigh(moments)
    return np.asarray(vectors * np.sqrt(np.maximum(values, FLOOR * values[-1])) @ vectors.T)


def _sides(graph: Graph, pair: Pair) -> Sequence[Matrix]:
    """The weights of both layers with the dimensions of heads last, biases as one more row."""
    first, second = (graph.op(name).weights for name in (pair.first, pair.second))
    return [_filters(first), _filters(second) if pair.scores else second["kernel"].T]


def _filters(weights: Mapping[str, Array]) -> Matrix:
    biases = [weights["bias"][None]] if "bias" in weights else []
    return np.concatenate([weights["kernel"], *biases]).astype(np.float64)


def _weights(graph: Graph, pair: Pair, sides: Sequence[Matrix]) -> dict[str, Mapping[str, Array]]:
    """The weights of both layers, by name, from the sides in groups."""
    first, second = (graph.op(name) for name in (pair.first, pair.second))
    one, other = (_from_groups(side, n) for side, n in zip(sides, pair.heads, strict=True))
    return {
        first.name: _with_filters(first, one),
        second.name: _with_filters(second, other)
        if pair.scores
        else {**second.weights, "kernel": other.T.astype(np.float32)},
    }


def _with_filters(op: Op, matrix: Matrix) -> Mapping[str, Array]:
    rows = len(op.weights["kernel"])
    biases = {"bias": matrix[rows]} if "bias" in op.weights else {}
    found = {"kernel": matrix[:rows], **biases}
    return {name: found[name].astype(np.float32) for name in op.weights}
