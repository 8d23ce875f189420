"""The knapsack: optimal within its limit, also where rounding and ties make that hard."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrfc.search import knapsack
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate
from lrfc.search.knapsack import Knapsack

NUMBERS = st.one_of(st.integers(0, 9).map(float), st.floats(1e-9, 1e9))
CLASSES = st.lists(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5), min_size=1, max_size=4
)


@given(CLASSES, st.floats(0, 1))
def test_optimal_choice_within_the_limit(classes, share) -> None:
    lightest, heaviest = (sum(f(w for _, w in c) for c in classes) for f in (min, max))
    limit = (1 + 1e-6) * (lightest + share * (heaviest - lightest))
    costs, weights = (np.array([item[i] for c in classes for item in c]) for i in range(2))
    starts = np.cumsum([0, *(len(c) for c in classes[:-1])])
    chosen = Knapsack(costs, weights, starts, limit).solve()
    assert chosen is not None
    assert list(np.searchsorted(starts, chosen, side="right")) == list(range(1, len(classes) + 1))
    assert weights[chosen].sum() <= limit * (1 + 1e-12)
    least = min(
        sum(cost for cost, _ in choice)
        for choice in product(*classes)
        if sum(weight for _, weight in choice) <= limit
    )
    assert costs[chosen].sum() <= least + 1e-9 * max(sum(costs), 1e-30)


def test_the_milp_solver_takes_over_where_the_states_are_too_many(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    spaces = [
        [
            Candidate(str(layer), "svd", (rank,), 1, int(rng.integers(1, 999)), 0.1, rng.random())
            for rank in range(7)
        ]
        for layer in range(9)
    ]
    exact = allocate(spaces, {"macs": 3_000})
    monkeypatch.setattr(knapsack, "MOST_STATES", 0)
    assert Knapsack(np.ones(2), np.ones(2), np.arange(1), 1.0).solve() is None
    assert allocate(spaces, {"macs": 3_000}) == exact
