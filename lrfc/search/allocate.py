"""The optimal candidate for each layer under budgets: a multiple-choice knapsack.

It is solved exactly, with one limit by dynamic programming, with more of them by HiGHS as a MILP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import LinearConstraint
from scipy.sparse import csr_array

from lrfc.errors import BudgetError
from lrfc.search.candidates import Candidate
from lrfc.search.knapsack import Knapsack
from lrfc.search.solver import solved

#: Quantities that are counted exactly, so that their limits hold exactly. Others are predictions.
COUNTED = frozenset({"macs", "params", "tail"})


def allocate(
    spaces: Sequence[Sequence[Candidate]], limits: Mapping[str, float], minimise: str = "divergence"
) -> tuple[Candidate, ...]:
    """Return one candidate for each layer, with the least sum of ``minimise`` within the limits.

    ``limits`` maps 'macs', 'params', 'latency', 'tail' or 'divergence' to the bound on the sum over
    these layers; ``minimise`` is any of these. Ties are broken by cost and then by order, so the
    result is deterministic. BudgetError names a budget that cannot be met, and the smallest one
    that can.
    """
    _check(spaces, limits)
    flat = [candidate for layer in spaces for candidate in layer]
    if not flat:
        return ()
    goal = np.array([getattr(c, minimise) for c in flat], float)
    cost = np.array([c.macs + c.params for c in flat], float)
    # A tiny share of the cost breaks ties, far below any difference that matters. HiGHS stops
    # within 1e-6 of the optimum, whatever gap is set: hence the objective in units of a millionth
    # of its largest value.
    objective = 1e6 * (goal / max(goal.max(), 1e-30) + 1e-9 * cost / max(cost.sum(), 1))
    if len(limits) == 1:
        (quantity, limit), *_ = limits.items()
        weights = np.array([getattr(c, quantity) for c in flat], float)
        starts = np.cumsum([0, *(len(layer) for layer in spaces[:-1])])
        slack = 1 if quantity in COUNTED else 1 + 1e-6
        items = Knapsack(objective, weights, starts, limit * slack).solve()
        if items is not None:
            return tuple(flat[i] for i in items)
    constraints = _constraints(spaces, flat, limits)
    while True:
        result = solved(objective, np.ones(len(flat)), constraints, mip_rel_gap=0.0)
        if result.x is None:
            raise BudgetError(f"the {' and '.join(limits)} budgets cannot be met together")
        chosen = tuple(flat[i] for i in np.flatnonzero(result.x > 0.5))
        if all(
            sum(getattr(c, q) for c in chosen) <= limit * (1 if q in COUNTED else 1 + 1e-6)
            for q, limit in limits.items()
        ):
            return chosen
        # HiGHS accepts sums above a limit by a relative 1e-6, a budget does not: exclude this
        # combination and solve again.
        constraints.append(LinearConstraint(np.round(result.x)[None], -np.inf, len(spaces) - 1))


def _check(spaces: Sequence[Sequence[Candidate]], limits: Mapping[str, float]) -> None:
    """BudgetError for a limit below the least sum of its quantity."""
    for quantity, limit in limits.items():
        least = sum(min(getattr(c, quantity) for c in layer) for layer in spaces)
        if least > limit:
            raise BudgetError(
                f"the {quantity} budget cannot be met: it leaves {_shown(limit)} for the layers"
                f" that can be factorized, which need at least {_shown(least)}"
            )


def _constraints(
    spaces: Sequence[Sequence[Candidate]], flat: Sequence[Candidate], limits: Mapping[str, float]
) -> list[LinearConstraint]:
    """One candidate for each layer, and each sum within its limit."""
    owner = np.repeat(np.arange(len(spaces)), [len(layer) for layer in spaces])
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for quantity, limit in limits.items():
        unit = limit if limit > 0 else 1.0
        row = np.array([[getattr(c, quantity) / unit for c in flat]])
        constraints.append(LinearConstraint(row, -np.inf, limit / unit))
    return constraints


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
