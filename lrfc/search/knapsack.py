"""The multiple-choice knapsack with one limit, solved exactly by bounded dynamic programming."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Indices = NDArray[np.intp]

#: The most partial choices that one step may keep; an instance that needs more is left to a MILP
#: solver.
MOST_STATES = 1_000_000


@dataclass(frozen=True)
class Knapsack:
    """One item of each class, with the least sum of ``costs`` and ``weights`` within ``limit``.

    ``costs`` and ``weights`` are (n,), and ``starts`` has the first index of each class; the items
    of a class follow one another. Every class has an item that is part of a choice within the
    limit.

    The Lagrangian relaxation of the limit gives a lower bound and, for each item, the least that
    the bound grows by when the item is chosen; a greedy choice gives an upper bound. Items and
    partial choices beyond the gap are dropped, the others are combined class by class, without
    those that another one beats in both cost and weight (Pisinger, European J. Operational Research
    83(2), 1995; Dyer, Riha and Walker, J. Computational and Applied Mathematics 58(1), 1995).
    """

    costs: Values
    weights: Values
    starts: Indices
    limit: float

    def solve(self) -> Indices | None:
        """The index of the chosen item of each class; None where MOST_STATES were not enough."""
        greedy = self._greedy()
        # Rounding must not drop the optimum.
        gap = self.costs[greedy].sum() - self._bound
        gap += 1e-9 * np.abs(self.costs[greedy]).sum()
        inside = np.flatnonzero(self._growth <= gap)
        items = np.split(inside, np.searchsorted(inside, self.starts[1:]))
        room = self.limit - sum(self.weights[i].min() for i in items)
        cost, weight, growth = np.zeros((3, 1))  # of each partial choice
        steps = []
        # ``weight`` counts what an item weighs beyond the lightest one of its class.
        for number in sorted(range(len(items)), key=lambda k: len(items[k])):
            added = items[number]
            extra = self.weights[added] - self.weights[added].min()
            weights = np.add.outer(weight, extra).ravel()
            costs = np.add.outer(cost, self.costs[added]).ravel()
            growths = np.add.outer(growth, self._growth[added]).ravel()
            kept = np.flatnonzero((weights <= room) & (growths <= gap))
            kept = kept[np.lexsort((costs[kept], weights[kept]))]
            least = np.minimum.accumulate(costs[kept])
            kept = kept[np.concatenate([[True], least[1:] < least[:-1]])]
            if len(kept) > MOST_STATES:
                return None
            cost, weight, growth = costs[kept], weights[kept], growths[kept]
            steps.append((number, added, kept))
        chosen, state = np.empty(len(items), np.intp), len(cost) - 1
        for number, added, kept in reversed(steps):
            state, item = divmod(int(kept[state]), len(added))
            chosen[number] = added[item]
        return chosen

    @cached_property
    def _owner(self) -> Indices:
        """The class of each item."""
        return np.repeat(np.arange(len(self.starts)), np.diff([*self.starts, len(self.costs)]))

    @cached_property
    def _multiplier(self) -> float:
        """The price of a unit of weight: the smallest one at which the cheapest items fit."""
        low, high = 0.0, np.ptp(self.costs) / max(self.limit, 1e-300)
        if high == 0 or self._lightest(0.0).sum() <= self.limit:
            return 0.0
        while self._lightest(high).sum() > self.limit:
            low, high = high, 4 * high
        while (middle := (low + high) / 2) not in (low, high):
            if self._lightest(middle).sum() > self.limit:
                low = middle
            else:
                high = middle
        return high

    def _priced(self, multiplier: float) -> tuple[Values, Values]:
        """The cost of each item with its weight's price, beyond that of its class's best; those."""
        priced = self.costs + multiplier * self.weights
        best = np.minimum.reduceat(priced, self.starts)
        return priced - best[self._owner], best

    def _lightest(self, multiplier: float) -> Values:
        """The weight of the lightest among the best items of each class."""
        excess, _ = self._priced(multiplier)
        return np.minimum.reduceat(np.where(excess <= 0, self.weights, np.inf), self.starts)

    @cached_property
    def _growth(self) -> Values:
        return self._priced(self._multiplier)[0]

    @cached_property
    def _bound(self) -> float:
        best = self._priced(self._multiplier)[1]
        return float(best.sum() - self._multiplier * self.limit)

    def _greedy(self) -> Indices:
        """A good choice within the limit."""
        lightest = self._lightest(self._multiplier)
        best = np.flatnonzero((self._growth <= 0) & (self.weights == lightest[self._owner]))
        chosen = best[np.searchsorted(self._owner[best], np.arange(len(self.starts)))]
        while True:
            room = self.limit - self.weights[chosen].sum()
            gain = self.costs[chosen][self._owner] - self.costs
            gain[self.weights - self.weights[chosen][self._owner] > room] = 0
            item = int(gain.argmax())
            if gain[item] <= 0:
                return chosen
            chosen[self._owner[item]] = item
