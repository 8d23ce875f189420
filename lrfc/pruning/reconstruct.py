"""Greedy elimination of a group's units by the reconstruction error of its consumers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization.base import Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import Array, LowRank, solve_positive
from lrfc.factorization.norms import input_grams, input_rows
from lrfc.pruning.compensate import patch_rows
from lrfc.pruning.labels import Ids

#: The fraction of the remaining units that is removed at once: between two updates, the costs of
#: the units are treated as independent.
STEP = 1 / 24
#: Most values in memory while a chunk of units is scored.
CHUNK = 1 << 22


@dataclass(eq=False)
class Block:
    """The remaining inputs of one convolution group of one consumer.

    ``rows[u]`` are the rows of unit u, ``inverse`` (D, D) is the inverse of their covariance,
    ``matrix`` (D, T) has the refitted weights, and ``energy`` is that of the consumer's output.
    """

    rows: list[Ids]
    inverse: Array
    matrix: Array
    energy: float

    def costs(self, units: Ids) -> Array:
        """The error of the refitted output that the removal of each unit alone adds.

        tr(W_uᵀ·(P_uu)⁻¹·W_u), with P the inverse covariance, relative to ``energy``.
        """
        cost = np.zeros(len(units))
        sizes = np.array([len(self.rows[u]) for u in units])
        for size in np.unique(sizes[sizes > 0]):
            same_size = np.flatnonzero(sizes == size)
            step = max(1, CHUNK // (int(size) * max(int(size), self.matrix.shape[1])))
            for chunk in np.split(same_size, range(step, len(same_size), step)):
                rows = np.stack([self.rows[u] for u in units[chunk]])
                weights = self.matrix[rows]
                inner = self.inverse[rows[:, :, None], rows[:, None, :]]
                cost[chunk] = np.sum(weights * np.linalg.solve(inner, weights), axis=(1, 2))
        return cost / self.energy

    def remove(self, units: Ids) -> float:
        """Remove units, refit the others, and return the error that this adds.

        This is optimal brain surgeon by blocks.
        """
        rows = np.concatenate([self.rows[u] for u in units])
        if not len(rows):
            return 0.0
        weights, across = self.matrix[rows], self.inverse[rows]
        solved = solve_positive(across[:, rows], np.concatenate([weights, across], axis=1))
        solution = solved[:, : weights.shape[1]]
        self.matrix -= across.T @ solution
        self.inverse -= across.T @ solved[:, weights.shape[1] :]
        for unit in units:
            self.rows[unit] = self.rows[unit][:0]
        self._compact()
        return float(np.vdot(weights, solution)) / self.energy

    def _compact(self) -> None:
        """Drop the removed rows once they are a quarter of all."""
        remaining = np.sort(np.concatenate(self.rows))
        if len(remaining) > 0.75 * len(self.matrix):
            return
        self.matrix = self.matrix[remaining]
        self.inverse = self.inverse[np.ix_(remaining, remaining)]
        self.rows = [np.searchsorted(remaining, rows) for rows in self.rows]


def blocks(layout: Layout, statistics: Statistics, units: Ids, width: int) -> Iterator[Block]:
    """The blocks of one consumer; ``units`` is the unit of each input channel (``Part.units``)."""
    table, matrix = patch_rows(layout, units), layout.matrix(layout.tensor())
    grams = input_grams(layout, statistics)
    energy = max(
        sum(
            float(np.vdot(weights, gram @ weights))
            for gram, weights in zip(grams, matrix, strict=True)
        ),
        1e-30,
    )
    for group, gram in enumerate(grams):
        weights = matrix[group]
        if weights.shape[1] > weights.shape[0]:
            # Costs depend on W·Wᵀ alone, and its square factor is smaller than W.
            weights = np.asarray(np.linalg.qr(weights.T, mode="r")).T
        yield Block(
            _rows(table[group], width),
            solve_positive(gram, np.eye(len(gram))),
            np.array(weights),
            energy,
        )


def _rows(table: Ids, width: int) -> list[Ids]:
    """The rows of each unit, where ``table`` has the unit of each row."""
    order = np.argsort(table, kind="stable")
    ends = np.searchsorted(table[order], np.arange(width + 1))
    return [order[start:end] for start, end in pairwise(ends)]


def wide_costs(layout: Layout, statistics: Statistics, units: Ids, width: int) -> Array:
    """The costs of removing each unit alone, for a covariance that is given by its samples X.

    P_uu = (I − X_uᵀ·M·X_u)/ρ with M = (X·Xᵀ + ρI)⁻¹.
    """
    assert isinstance(statistics.covariance, LowRank)
    covariance, matrix = input_rows(layout, statistics), layout.matrix(layout.tensor())[0]
    outer = covariance.rows @ covariance.rows.T
    outer[np.diag_indices(len(outer))] += covariance.ridge
    solved = solve_positive(outer, covariance.rows)
    cost = np.zeros(width)
    for unit, rows in enumerate(_rows(units, width)):
        if len(rows):
            inner = (
                np.eye(len(rows)) - covariance.rows[:, rows].T @ solved[:, rows]
            ) / covariance.ridge
            cost[unit] = np.vdot(matrix[rows], solve_positive(inner, matrix[rows]))
    return cost / max(float(np.vdot(matrix, covariance @ matrix)), 1e-30)


def eliminate(consumers: Sequence[Block], width: int, independent: Array) -> NDArray[np.float64]:
    """The error at which each unit is removed, when the cheapest units are removed first.

    It is the relative error of the outputs, summed over the consumers. ``independent`` (width,)
    are further costs, which do not depend on the units that are removed.
    """
    remaining, error = np.arange(width), 0.0
    scores = np.zeros(width)
    while len(remaining):
        costs = independent[remaining] + sum(block.costs(remaining) for block in consumers)
        count = max(1, int(len(remaining) * STEP))
        order = np.argsort(costs, kind="stable")[:count]
        removed = remaining[order]
        added = float(independent[removed].sum()) + sum(
            block.remove(removed) for block in consumers
        )
        fraction = np.cumsum(costs[order]) / max(float(costs[order].sum()), 1e-300)
        scores[removed] = error + max(added, 0.0) * fraction
        error += max(added, 0.0)
        remaining = np.delete(remaining, order)
    return scores
