"""The allocation: it equals brute force, stays within budgets, and names those that fail."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.errors import BudgetError
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate

IMPACTS = st.one_of(st.just(0.0), st.floats(1e-6, 10))
CANDIDATES = st.builds(
    lambda macs, params, impact: Candidate("", "svd", (1,), params, macs, impact, impact),
    st.integers(1, 40),
    st.integers(1, 40),
    IMPACTS,
)
SPACES = st.lists(st.lists(CANDIDATES, min_size=1, max_size=5), min_size=1, max_size=4)


def total(chosen, quantity: str) -> float:
    return sum(getattr(candidate, quantity) for candidate in chosen)


@given(SPACES, st.integers(1, 160), st.one_of(st.none(), st.integers(1, 160)))
def test_equals_brute_force(spaces, macs, params) -> None:
    limits = {"macs": macs} | ({} if params is None else {"params": params})
    feasible = [
        c
        for c in product(*spaces)
        if all(total(c, quantity) <= limit for quantity, limit in limits.items())
    ]
    if not feasible:
        with pytest.raises(BudgetError):
            allocate(spaces, limits)
        return
    chosen = allocate(spaces, limits)
    assert all(candidate in layer for candidate, layer in zip(chosen, spaces, strict=True))
    assert all(total(chosen, quantity) <= limit for quantity, limit in limits.items())
    largest = max(candidate.divergence for layer in spaces for candidate in layer)
    assert (
        total(chosen, "divergence")
        <= min(total(c, "divergence") for c in feasible) + 1e-8 * largest
    )
    assert chosen == allocate(spaces, limits)


def candidate(macs: int, params: int, impact: float) -> Candidate:
    return Candidate("layer", "svd", (1,), params, macs, impact, impact)


def test_a_budget_of_macs_holds_exactly() -> None:
    # One MAC in a hundred million is far within the solver's tolerance.
    spaces = [
        [candidate(50_000_001, 1, 0.0), candidate(50_000_000, 1, 1.0), candidate(1, 1, 5.0)]
    ] * 2
    assert total(allocate(spaces, {"macs": 100_000_000}), "macs") == 100_000_000
    assert total(allocate(spaces, {"macs": 100_000_001}), "divergence") == 1.0


def test_without_limits_each_layer_has_the_least_divergence_then_the_least_cost() -> None:
    spaces = [
        [candidate(9, 9, 0.0), candidate(5, 5, 0.0), candidate(1, 1, 1.0)],
        [candidate(3, 3, 0.5)],
    ]
    assert [c.macs for c in allocate(spaces, {})] == [5, 3]
    assert allocate([], {"macs": 5}) == ()


def test_a_budget_that_cannot_be_met_is_named_with_the_smallest_that_can() -> None:
    spaces = [[candidate(1_000, 10, 1.0), candidate(3_000, 5, 0.0)], [candidate(500, 7, 0.0)]]
    with pytest.raises(
        BudgetError,
        match=re.escape(
            "macs budget cannot be met: it leaves 1,400 for the layers that can be factorized,"
            " which need at least 1,500"
        ),
    ):
        allocate(spaces, {"macs": 1_400})
    with pytest.raises(BudgetError, match=r"params budget .* need at least 12$"):
        allocate(spaces, {"macs": 9_999, "params": 11})
    with pytest.raises(BudgetError, match="macs and params budgets cannot be met together"):
        allocate(spaces, {"macs": 1_500, "params": 12})
