"""One choice per layer: the exact optimum under the budgets, as a multiple-choice knapsack solved by HiGHS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lrfc.errors import BudgetError
from lrfc.search.candidates import Candidate


def allocate(spaces: Sequence[Sequence[Candidate]], limits: Mapping[str, float]) -> tuple[Candidate, ...]:
    """The candidate of each layer that together have the least impact, with the sum of each limited quantity within its limit.

    ``limits`` maps 'macs' or 'params' to the bound on the sum over these layers. Ties are broken by cost and then by order, so the result is
    deterministic. BudgetError names the budget that cannot be met and the least value that can.
    """
    for quantity, limit in limits.items():
        least = sum(min(getattr(c, quantity) for c in layer) for layer in spaces)
        if least > limit:
            raise BudgetError(
                f"the {quantity} budget cannot be met: {limit:,.0f} wanted of the layers that can be factorized, at least {least:,.0f} needed"
            )
    flat = [candidate for layer in spaces for candidate in layer]
    if not flat:
        return ()
    owner = np.repeat(np.arange(len(spaces)), [len(layer) for layer in spaces])
    impact = np.array([c.impact for c in flat])
    cost = np.array([c.macs + c.params for c in flat], float)
    # A hair of cost decides between choices of equal impact; far below any impact that matters.
    # HiGHS stops within 1e-6 of the optimum, whatever the gap asked for: in units of a millionth of the largest impact that is nothing.
    objective = 1e6 * (impact / max(impact.max(), 1e-30) + 1e-9 * cost / max(cost.sum(), 1))
    one_each = LinearConstraint(csr_array((np.ones(len(flat)), (owner, np.arange(len(flat))))), 1, 1)
    constraints = [one_each]
    constraints += [LinearConstraint(np.array([[getattr(c, q) / limit for c in flat]]), -np.inf, 1) for q, limit in limits.items() if limit > 0]
    while True:
        result = milp(objective, integrality=np.ones(len(flat)), bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0.0})
        if result.x is None:
            raise BudgetError(f"the {' and '.join(limits)} budgets cannot be met together: {result.message}")
        chosen = tuple(flat[i] for i in np.flatnonzero(result.x > 0.5))
        if all(sum(getattr(c, q) for c in chosen) <= limit for q, limit in limits.items()):
            return chosen
        # HiGHS takes a sum for equal to its limit within a relative 1e-6. A budget is a promise: rule this combination out and solve again.
        constraints.append(LinearConstraint(np.round(result.x)[None], -np.inf, len(spaces) - 1))
