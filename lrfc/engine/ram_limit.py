"""The plan for a destination within a limit on RAM: by ranks, or by filters as well.

Cutting filters leaves the number of operators as it is, where each factor layer has a tail of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

from lrfc.costs.totals import totals
from lrfc.engine.patches import Limit
from lrfc.engine.plans import rewritten
from lrfc.engine.ram_search import Search, Tried
from lrfc.engine.tuning import Loop, Plan, Wish
from lrfc.errors import BudgetError, UnreachableError
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.state import State

#: Least share of the MACs that are saved without the limit: filters are tried where ranks alone
#: save less within it.
ENOUGH = 0.5
#: The end of the error of a budget that cannot be met within the memory that holds by default.
LEFT_OUT = (
    "plans that need more activation memory than the original are left out, unless --max-ram none"
    " is given"
)
#: The end of a line on what the limit costs, with --prune off.
HINT = "; with --prune auto, filters are cut as well"

#: The state of a loop with filters to cut; None where there are none.
Filters = Callable[[], State | None]


@dataclass(frozen=True)
class _Found:
    """A plan. ``within``: whether it keeps within the limit. ``lines``: of the log, on the limit.

    ``saved``: the MACs that it saves, as a share of those that are saved without the limit.
    ``cost``: the objective, by which plans are compared.
    """

    plan: Plan
    within: bool = True
    saved: float = 1.0
    cost: float = 0.0
    lines: tuple[str, ...] = ()


def planned(
    loop: Loop,
    wish: Wish,
    allowed: float | None,
    limit: Limit | None,
    filters: Filters | None,
) -> Plan:
    """The plan for a destination, whose file keeps within a limit on RAM where one is possible.

    ``allowed``: see ``Loop.settle``. ``filters``: asked where no plan by ranks keeps within the
    limit, or saves enough within it; None where filters are not to be cut. BudgetError as there.
    """
    log = loop.state.progress.log
    hint = HINT if filters is None and loop.state.known(FilterSpace) is None else ""
    try:
        found = _found(loop, wish, allowed, limit, hint)
    except UnreachableError as error:
        state = None if error.quantity != "ram" or filters is None else filters()
        if state is None:
            raise
        log(f"  {error}")
        log("  filters are cut as well")
        found = _found(replace(loop, state=state), wish, allowed, limit, hint)
    else:
        enough = found.within and found.saved >= ENOUGH
        state = None if enough or filters is None else filters()
        if state is not None:
            log("  ranks alone do not save enough within the limit on RAM: filters are cut as well")
            found = _better(found, replace(loop, state=state), wish, limit)
    for line in found.lines:
        log(f"  {line}")
    return found.plan


def _better(ranks: _Found, loop: Loop, wish: Wish, limit: Limit | None) -> _Found:
    """The better one of a plan by ranks alone and that of a loop that cuts filters, too.

    Both have the same divergence allowed: to judge plans that cut filters would take longer than
    all the rest.
    """
    with suppress(BudgetError):
        found = _found(loop, wish, ranks.plan.allowed, limit, "")
        if found.within and (not ranks.within or found.cost < ranks.cost):
            return found
    return ranks


def _found(loop: Loop, wish: Wish, allowed: float | None, limit: Limit | None, hint: str) -> _Found:
    """The plan of a loop within a limit.

    The plan without the limit is the start: it keeps within it by patches, which change nothing in
    what the network computes, or by a shorter tail. Where both together are not enough for a limit
    that was asked for, and where there are no patches, every candidate has to keep within it.
    """
    if limit is None or (wish.max_ram is not None and not limit.patches):
        return _Found(_settled(loop, wish, allowed))
    asked = wish.max_ram is not None
    # No layer exceeds the peak of the original, so that patches have little to do.
    first = loop if loop.growth is not None or not asked else replace(loop, growth=0)
    free = _settled(first, replace(wish, max_ram=None), allowed)
    whole = totals(free.state.original)["macs"]
    macs = wish.select.max_macs
    search = Search(limit, inf if macs is None else macs.limit(whole))
    kept = search.kept(free)
    within = search.within(kept)
    if not within and not limit.asked:
        raise _beyond(limit, kept, hint)
    lines = _lines(free, kept, limit, hint, within=within)
    if not within and asked:
        try:
            return _Found(loop.settle(wish, allowed))
        except BudgetError as error:
            lines = (*lines, str(error))
    saving = whole - totals(rewritten(free.state))["macs"]
    saved = (whole - kept.macs) / saving if saving > 0 else 1.0
    cost = kept.divergence if wish.objective is None else kept.macs
    return _Found(kept.plan, within, saved, cost, lines)


def _beyond(limit: Limit, least: Tried, hint: str) -> UnreachableError:
    """The error where no plan within the other budgets keeps within the default limit."""
    return UnreachableError(
        "ram",
        "100%, the default,",
        limit.bytes,
        least.need,
        f"{int(limit.bytes):,} bytes are allowed, and of the plans that were tried the best takes"
        f" {least.need:,} at {least.macs:,} MACs; --max-ram none lifts the limit{hint}",
    )


def _lines(free: Plan, kept: Tried, limit: Limit, hint: str, *, within: bool) -> tuple[str, ...]:
    """The lines of the log on the price of the limit. ``free``: the plan without the limit."""
    if kept.plan is free and within:
        return ()
    if not within:
        none = f"no plan was found within {int(limit.bytes):,} bytes of RAM"
        return (f"{none}; the least is {kept.need:,}{hint}",)
    lifted = "" if limit.asked else f"; --max-ram none lifts the limit{hint}"
    before, after = free.state.fact(Selection).divergence, kept.divergence
    price = f"predicted divergence {after:.4f}, without this limit {before:.4f}"
    return (f"to keep within {int(limit.bytes):,} bytes of RAM: {price}{lifted}",)


def _settled(loop: Loop, wish: Wish, allowed: float | None) -> Plan:
    """The plan of the loop; its BudgetError says which plans the default limit leaves out."""
    try:
        return loop.settle(wish, allowed)
    except BudgetError as error:
        if loop.growth is not None:
            error.args = (f"{error}; {LEFT_OUT}",)
        raise
