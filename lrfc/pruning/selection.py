"""Selection of a method, ranks and filters for all layers at once, exactly, within budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lrfc.config.build import Budget
from lrfc.costs.totals import totals, totals_of
from lrfc.errors import BudgetError
from lrfc.pruning import milp
from lrfc.pruning.facts import Selection
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.space import FilterSpace
from lrfc.search.allocate import allocate
from lrfc.search.candidates import LayerSpace, pareto
from lrfc.search.facts import DesignSpace, Price, costs
from lrfc.search.pricing import Prices
from lrfc.state import State
from lrfc.text import percent

#: What a selection can minimise: the predicted output divergence, MACs, parameters or latency.
Minimised = Literal["divergence", "macs", "params", "latency"]
#: Why a layer is not factorized that could be.
NOT_WORTH = "within the budgets, no factorization of it is worth its effect on the output"
LEFT_ASIDE = "methods were left aside: filters alone are cut, as with --prune only"
#: An error names at most this many layers whose filters stay; each has this share of the whole.
NAMED, LARGE = 3, 0.02


@dataclass(frozen=True)
class Constraints:
    """Budgets of a selection, and the quantity that it minimises.

    ``minimise``: the predicted output divergence ('divergence'), MACs, parameters or predicted latency.
    ``max_divergence`` bounds the divergence. ``max_latency`` is in milliseconds; it and 'latency' need
    a fact ``Price``. ``methods`` narrows the candidates to some methods. Where the filters were
    explored, and ``prune`` is not False, the same MILP decides which units each group keeps; then
    ``rooms`` bound the activation memory.
    """

    max_macs: Budget | None = None
    max_params: Budget | None = None
    methods: tuple[str, ...] | None = None
    max_latency: Budget | None = None
    max_divergence: float | None = None
    minimise: Minimised = "divergence"
    prune: bool = True
    rooms: tuple[PeakMemory, ...] = ()


def select(state: State, constraints: Constraints) -> Selection:
    """The best selection from the state's DesignSpace (and FilterSpace) within the constraints.

    BudgetError when a budget cannot be met.
    """
    if constraints.methods is not None:
        state = state.with_fact(state.fact(DesignSpace).narrowed(constraints.methods))
    filters = state.known(FilterSpace) if constraints.prune else None
    if filters is None:
        return _ranks(without_filters(state), constraints)
    try:
        return _ranks_and_filters(state, filters, constraints)
    except milp.UnsolvedError as error:
        return _without_filters_instead(state, constraints, error)


def _ranks(state: State, constraints: Constraints) -> Selection:
    spaces = state.fact(DesignSpace).spaces
    limits = _limits(state, constraints)
    chosen = allocate([pareto(s.candidates) for s in spaces], limits, constraints.minimise)
    found = milp.Joint(chosen, {}, {})
    return _selection(state, constraints, found)


def _ranks_and_filters(state: State, filters: FilterSpace, constraints: Constraints) -> Selection:
    limits = _limits(state, constraints)
    spaces = state.fact(DesignSpace).spaces
    found = milp.allocate(
        state.graph,
        spaces,
        filters,
        limits,
        constraints.minimise,
        constraints.rooms,
        _prices(state),
    )
    return replace(_selection(state, constraints, found), removed=filters.removed(found.keeps))


def _without_filters_instead(
    state: State, constraints: Constraints, error: milp.UnsolvedError
) -> Selection:
    """The selection that cuts no filters, where no other was found in time.

    The error where that does not keep the budgets.
    """
    if constraints.rooms:
        raise error
    try:
        ranks = _ranks(without_filters(state), replace(constraints, prune=False))
    except BudgetError:
        raise error from None
    return replace(ranks, remark=f"{error}: no filters are cut")


def _selection(state: State, constraints: Constraints, found: milp.Joint) -> Selection:
    design = state.fact(DesignSpace)
    aside = LEFT_ASIDE if constraints.methods == () else NOT_WORTH
    unfactorized = {c.layer: aside for c in found.chosen if c.method is None}
    factors = {
        space.op.name: space.factors[candidate.method]
        for space, candidate in zip(design.spaces, found.chosen, strict=True)
        if candidate.method is not None
    }
    reasons = {**design.skipped, **unfactorized}
    return Selection(found.chosen, reasons, factors, found.keeps, beside=found.beside)


# -- limits ----------------------------------------------------------------------------------------


def _limits(state: State, constraints: Constraints) -> dict[str, float]:
    """The most that the candidates together may have of each quantity; BudgetError for one out of reach."""
    whole, outside = costs(state), fixed(state)
    limits: dict[str, float] = {}
    budgets = (
        ("macs", constraints.max_macs),
        ("params", constraints.max_params),
        ("latency", constraints.max_latency),
    )
    for quantity, budget in budgets:
        if budget is None:
            continue
        # Milliseconds are what a budget is given in; a profile may count cycles.
        unit = state.fact(Price).ms_per_unit if quantity == "latency" else 1
        limit = budget.limit(whole[quantity] * unit) / unit
        least = reachable(state, quantity)
        if least > limit:
            raise BudgetError(
                f"--max-{quantity} {budget} cannot be reached: that is {_amount(limit)} of"
                f" {_amount(whole[quantity])}, and the least that {_means(state, constraints)} is"
                f" {_amount(least)}"
                f" ({percent(least / whole[quantity])}){_staying(state, quantity)}"
            )
        limits[quantity] = limit - outside[quantity]
    if constraints.max_divergence is not None:
        limits["divergence"] = constraints.max_divergence
    return limits


def reachable(state: State, quantity: str) -> float:
    """The minimum of the MACs, parameters or latency over the design space, without other budgets."""
    design, filters = state.fact(DesignSpace), state.known(FilterSpace)
    outside = fixed(state)[quantity]
    if filters is None:
        return outside + design.least(quantity)
    found = milp.allocate(state.graph, design.spaces, filters, {}, quantity, prices=_prices(state))
    return outside + found.cost(quantity)


def fixed(state: State) -> dict[str, float]:
    """Costs that no choice changes: of all but the candidates and what loses its neighbours' channels."""
    spaces: tuple[LayerSpace, ...] = state.fact(DesignSpace).spaces
    outside = state.fact(DesignSpace).outside(costs(state))
    if state.known(FilterSpace) is None:
        return outside
    beside = milp.others(state.graph, spaces, _prices(state))
    return {quantity: cost - beside.get(quantity, 0) for quantity, cost in outside.items()}


def without_filters(state: State) -> State:
    """The state as if the filters had not been explored."""
    facts = {kind: fact for kind, fact in state.facts.items() if kind is not FilterSpace}
    return replace(state, facts=facts)


def _prices(state: State) -> Prices | None:
    price = state.known(Price)
    return None if price is None else price.prices


# -- messages --------------------------------------------------------------------------------------


def _means(state: State, constraints: Constraints) -> str:
    """The means by which a budget can be reached, as the subject and verb of a sentence."""
    if state.known(FilterSpace) is None:
        return "these methods reach"
    if constraints.methods == ():
        return "cutting filters reaches"
    return "these methods and cutting filters reach"


def _staying(state: State, quantity: str) -> str:
    """The largest layers whose filters stay, with reasons, as the end of a sentence.

    Empty where no such layer has a share that counts.
    """
    filters = state.known(FilterSpace)
    if filters is None:
        return ""
    by = "params" if quantity == "params" else "macs"
    whole = totals(state.original)[by]
    sizes = {layer: totals_of(state.graph, layer)[by] for layer in filters.refused}
    large = sorted(
        (layer for layer, size in sizes.items() if size >= LARGE * whole),
        key=lambda layer: -sizes[layer],
    )
    named = "; ".join(f"{layer}: {filters.refused[layer]}" for layer in large[:NAMED])
    more = f"; and {len(large) - NAMED} more" if len(large) > NAMED else ""
    return f"; filters stay in {named}{more}" if large else ""


def _amount(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
