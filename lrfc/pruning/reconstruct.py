"""How well the layers that read a group could make up for each of its units: backward elimination on the covariance of what they read."""

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

#: The share of the units left that goes at once: between two updates, the units are taken for
#: independent.
STEP = 1 / 24
#: Values that a chunk of units takes while it is scored.
CHUNK = 1 << 22


@dataclass(eq=False)
class Block:
    """One group of one consumer: ``rows[u]`` are unit u's rows, ``inverse`` (D, D) of what is left of the covariance, ``matrix`` (D, T) the refitted weights."""

    rows: list[Ids]
    inverse: Array
    matrix: Array
    energy: float

    def costs(self, units: Ids) -> Array:
        """What removing each unit alone adds to the error of the refitted response: tr(W_uᵀ·(P_uu)⁻¹·W_u) with P the inverse covariance."""
        cost = np.zeros(len(units))
        sizes = np.array([len(self.rows[u]) for u in units])
        for size in np.unique(sizes[sizes > 0]):
            alike = np.flatnonzero(sizes == size)
            step = max(1, CHUNK // (int(size) * max(int(size), self.matrix.shape[1])))
            for chunk in np.split(alike, range(step, len(alike), step)):
                rows = np.stack([self.rows[u] for u in units[chunk]])
                weights = self.matrix[rows]
                inner = self.inverse[rows[:, :, None], rows[:, None, :]]
                cost[chunk] = np.sum(weights * np.linalg.solve(inner, weights), axis=(1, 2))
        return cost / self.energy

    def remove(self, units: Ids) -> float:
        """Take units out, let the rest make up for them, and give the error that this adds (optimal brain surgeon, block by block)."""
        rows = np.concatenate([self.rows[u] for u in units])
        if not len(rows):
            return 0.0
        weights, across = self.matrix[rows], self.inverse[rows]
        solved = solve_positive(across[:, rows], np.concatenate([weights, across], axis=1))
        answer = solved[:, : weights.shape[1]]
        self.matrix -= across.T @ answer
        self.inverse -= across.T @ solved[:, weights.shape[1] :]
        for unit in units:
            self.rows[unit] = self.rows[unit][:0]
        self._compact()
        return float(np.vdot(weights, answer)) / self.energy

    def _compact(self) -> None:
        """Drop the rows that are gone, once they are a quarter."""
        left = np.sort(np.concatenate(self.rows))
        if len(left) > 0.75 * len(self.matrix):
            return
        self.matrix, self.inverse = self.matrix[left], self.inverse[np.ix_(left, left)]
        self.rows = [np.searchsorted(left, rows) for rows in self.rows]


def blocks(layout: Layout, statistics: Statistics, units: Ids, width: int) -> Iterator[Block]:
    """The blocks of one consumer; ``units`` says which unit each input channel belongs to."""
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
        if (
            weights.shape[1] > weights.shape[0]
        ):  # only W·Wᵀ counts, and a square factor of it is smaller
            weights = np.asarray(np.linalg.qr(weights.T, mode="r")).T
        yield Block(
            _rows(table[group], width),
            solve_positive(gram, np.eye(len(gram))),
            np.array(weights),
            energy,
        )


def _rows(table: Ids, width: int) -> list[Ids]:
    order = np.argsort(table, kind="stable")
    ends = np.searchsorted(table[order], np.arange(width + 1))
    return [order[start:end] for start, end in pairwise(ends)]


def wide_costs(layout: Layout, statistics: Statistics, units: Ids, width: int) -> Array:
    """The costs of removing each unit alone, where the covariance is given by its rows: P_uu = (I − X_uᵀ·M·X_u)/ρ with M = (X·Xᵀ + ρI)⁻¹."""
    assert isinstance(statistics.covariance, LowRank)
    covariance, matrix = input_rows(layout, statistics), layout.matrix(layout.tensor())[0]
    outer = covariance.rows @ covariance.rows.T
    outer[np.diag_indices(len(outer))] += covariance.ridge
    seen = solve_positive(outer, covariance.rows)
    cost = np.zeros(width)
    for unit, rows in enumerate(_rows(units, width)):
        if len(rows):
            inner = (
                np.eye(len(rows)) - covariance.rows[:, rows].T @ seen[:, rows]
            ) / covariance.ridge
            cost[unit] = np.vdot(matrix[rows], solve_positive(inner, matrix[rows]))
    return cost / max(float(np.vdot(matrix, covariance @ matrix)), 1e-30)


def eliminate(found: Sequence[Block], width: int, alone: Array) -> NDArray[np.float64]:
    """The relative error of the consumers' responses, summed over them, at which each unit goes when the cheapest goes first.

    ``alone`` (width,) are further costs that do not change with what is gone.
    """
    left, reached = np.arange(width), 0.0
    score = np.zeros(width)
    while len(left):
        costs = alone[left] + sum(block.costs(left) for block in found)
        count = max(1, int(len(left) * STEP))
        order = np.argsort(costs, kind="stable")[:count]
        gone = left[order]
        added = float(alone[gone].sum()) + sum(block.remove(gone) for block in found)
        share = np.cumsum(costs[order]) / max(float(costs[order].sum()), 1e-300)
        score[gone] = reached + max(added, 0.0) * share
        reached += max(added, 0.0)
        left = np.delete(left, order)
    return score
