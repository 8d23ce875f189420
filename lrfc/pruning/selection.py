"""Exact selection of methods, ranks and filters for all layers at once, within budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lrfc.config.build import Budget
from lrfc.costs.totals import totals, totals_of
from lrfc.errors import BudgetError, UnreachableError
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

#: The quantities that a selection can minimise.
Minimised = Literal["divergence", "macs", "params", "latency"]
#: Reasons why a factorizable layer is not factorized.
NOT_WORTH = "within the budgets, no factorization of it is worth its effect on the output"
LEFT_ASIDE = "methods were left aside: filters alone are cut, as with --prune only"
#: Most layers that an error lists because their filters stay, and the least fraction of the whole
#: that such a layer has.
NAMED, LARGE = 3, 0.02


@dataclass(frozen=True)
class Constraints:
    """Budgets of a selection, and the quantity that it minimises.

    ``minimise``: the predicted divergence, MACs, parameters or predicted latency.
    ``max_divergence``: the highest predicted divergence. ``max_latency`` is in milliseconds; it
    and 'latency' need the fact ``Price``. ``methods``: the methods to choose from, None for all.
    With a ``FilterSpace``, and unless ``prune`` is False, the same MILP selects the units that
    each group keeps; then ``peak_memory`` bounds the activations alive at once. ``max_tail``: bytes
    that the candidates may add to the tail of a microcontroller's arena. Without filters it is
    shared out to the layers by the best selection.
    """

    max_macs: Budget | None = None
    max_params: Budget | None = None
    methods: tuple[str, ...] | None = None
    max_latency: Budget | None = None
    max_divergence: float | None = None
    minimise: Minimised = "divergence"
    prune: bool = True
    peak_memory: tuple[PeakMemory, ...] = ()
    max_tail: int | None = None


def select(state: State, constraints: Constraints) -> Selection:
    """The best selection from the state's DesignSpace (and FilterSpace) within the constraints.

    BudgetError if a budget cannot be met.
    """
    if constraints.methods is not None:
        state = state.with_fact(state.fact(DesignSpace).narrowed(constraints.methods))
    filters = state.known(FilterSpace) if constraints.prune else None
    if filters is None:
        return _ranks(state, constraints)
    try:
        return _ranks_and_filters(state, filters, constraints)
    except milp.UnsolvedError as error:
        return _without_filters_instead(state, constraints, error)


def _with_short_tails(state: State, constraints: Constraints, limit: int) -> State:
    """The state with the candidates of which no selection has a longer tail than the limit."""
    limits = {**_limits(state, constraints), "tail": limit}
    design = state.fact(DesignSpace)
    chosen = allocate([pareto(s.candidates) for s in design.spaces], limits, constraints.minimise)
    spaces = (
        replace(space, candidates=tuple(c for c in space.candidates if c.tail <= most.tail))
        for space, most in zip(design.spaces, chosen, strict=True)
    )
    return state.with_fact(replace(design, spaces=tuple(spaces)))


def _ranks(state: State, constraints: Constraints) -> Selection:
    state = without_filters(state)
    if constraints.max_tail is not None:
        state = _with_short_tails(state, constraints, constraints.max_tail)
    spaces = state.fact(DesignSpace).spaces
    limits = _limits(state, constraints)
    chosen = allocate([pareto(s.candidates) for s in spaces], limits, constraints.minimise)
    return _selection(state, constraints, milp.Joint(chosen, {}, {}))


def _ranks_and_filters(state: State, filters: FilterSpace, constraints: Constraints) -> Selection:
    limits = _limits(state, constraints)
    if constraints.max_tail is not None:
        limits["tail"] = constraints.max_tail
    spaces = state.fact(DesignSpace).spaces
    joint = milp.allocate(
        state.graph,
        spaces,
        filters,
        limits,
        constraints.minimise,
        constraints.peak_memory,
        _prices(state),
    )
    return replace(
        _selection(state, constraints, joint),
        removed=filters.removed(joint.keeps),
        whole_heads=filters.dependencies.whole_heads,
    )


def _without_filters_instead(
    state: State, constraints: Constraints, error: milp.UnsolvedError
) -> Selection:
    """The selection without pruning, if the MILP with filters was not solved in time.

    The same error if that selection does not meet the budgets. It cannot take the peak memory into
    account.
    """
    if constraints.peak_memory:
        raise error
    try:
        ranks = _ranks(state, replace(constraints, prune=False))
    except BudgetError:
        raise error from None
    return replace(ranks, remark=f"{error}: no filters are cut")


def _selection(state: State, constraints: Constraints, joint: milp.Joint) -> Selection:
    design = state.fact(DesignSpace)
    reason = LEFT_ASIDE if constraints.methods == () else NOT_WORTH
    unfactorized = {c.layer: reason for c in joint.chosen if c.method is None}
    factors = {
        space.op.name: space.factors[candidate.method]
        for space, candidate in zip(design.spaces, joint.chosen, strict=True)
        if candidate.method is not None
    }
    reasons = {**design.skipped, **unfactorized}
    return Selection(joint.chosen, reasons, factors, joint.keeps, pruned_cost=joint.pruned_cost)


# -- limits ----------------------------------------------------------------------------------------


def _limits(state: State, constraints: Constraints) -> dict[str, float]:
    """The upper bound of each quantity, summed over the candidates and the ops pruned with them.

    BudgetError for a budget below the minimum of the design space.
    """
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
        # A latency budget is in milliseconds, a cost profile may be in cycles.
        unit = state.fact(Price).ms_per_unit if quantity == "latency" else 1
        limit = budget.limit(whole[quantity] * unit) / unit
        least = reachable(state, quantity)
        if least > limit:
            reason = (
                f"that is {_amount(limit)} of {_amount(whole[quantity])}, and the least that"
                f" {_means(state, constraints)} is {_amount(least)}"
                f" ({percent(least / whole[quantity])}){_staying(state, quantity)}"
            )
            raise UnreachableError(quantity, budget, limit, least, reason)
        limits[quantity] = limit - outside[quantity]
    if constraints.max_divergence is not None:
        limits["divergence"] = constraints.max_divergence
    return limits


def reachable(state: State, quantity: str) -> float:
    """The minimum of the MACs, parameters or latency over the design space, without budgets."""
    design, filters = state.fact(DesignSpace), state.known(FilterSpace)
    outside = fixed(state)[quantity]
    if filters is None:
        return outside + design.least(quantity)
    joint = milp.allocate(state.graph, design.spaces, filters, {}, quantity, prices=_prices(state))
    return outside + joint.cost(quantity)


def fixed(state: State) -> dict[str, float]:
    """The costs that no choice changes, by quantity.

    They exclude the layers with candidates and, with a FilterSpace, the ops pruned with them.
    """
    spaces: tuple[LayerSpace, ...] = state.fact(DesignSpace).spaces
    outside = state.fact(DesignSpace).outside(costs(state))
    if state.known(FilterSpace) is None:
        return outside
    prunable = milp.others(state.graph, spaces, _prices(state))
    return {quantity: cost - prunable.get(quantity, 0) for quantity, cost in outside.items()}


def without_filters(state: State) -> State:
    """The state without its FilterSpace."""
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

    Empty if all of them are small.
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
