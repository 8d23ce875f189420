"""The plan for a destination within a limit on RAM: by ranks, or by filters as well.

Cutting filters leaves the number of operators as it is, where each factor layer has a tail of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

from lrfc.costs.totals import totals
from lrfc.engine.patches import Limit
from lrfc.engine.plans import rewritten
from lrfc.engine.ram_search import Search, Tried
from lrfc.engine.tuning import Loop, Plan, Wish
from lrfc.errors import BudgetError, UnreachableError
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace

#: Filters are tried where ranks alone save less within the limit than this share of the MACs that
#: are saved without it, or predict more than so many times the divergence.
ENOUGH, COSTLY = 0.5, 4.0
#: The end of the error of a budget that cannot be met within the memory that holds by default.
LEFT_OUT = (
    "plans that need more activation memory than the original are left out, unless --max-ram none"
    " is given"
)
#: The end of a line on what the limit costs, with --prune off.
HINT = "; with --prune auto, filters are cut as well"

#: Explores the filters that can be cut; None where there are none.
Filters = Callable[[], FilterSpace | None]


def planned(
    loop: Loop,
    wish: Wish,
    allowed: float | None,
    limit: Limit | None,
    filters: Filters | None,
) -> Plan:
    """The plan for a destination, whose file keeps within a limit on RAM where one is possible.

    ``allowed``: see ``Loop.settle``. ``filters``: called where no plan by ranks keeps within the
    limit, or saves enough within it, and where the plans cut filters already, but not those where
    the most is alive; None where filters are not to be cut. BudgetError as there, and where the
    other budgets cannot be met within the default limit.
    """
    if limit is None or (wish.max_ram is not None and not limit.patches):
        return _by_candidates(loop, wish, allowed, filters)
    return _by_files(loop, wish, allowed, limit, filters)


def _by_candidates(loop: Loop, wish: Wish, allowed: float | None, filters: Filters | None) -> Plan:
    """The plan, of which every candidate keeps within the limit."""
    try:
        return _settled(loop, wish, allowed)
    except UnreachableError as error:
        known = loop.state.known(FilterSpace) is not None
        found = None if error.quantity != "ram" or filters is None or known else filters()
        if found is None:
            raise
        log = loop.state.progress.log
        log(f"  {error}")
        log("  filters are cut as well")
        return _settled(replace(loop, state=loop.state.with_fact(found)), wish, allowed)


def _by_files(
    loop: Loop, wish: Wish, allowed: float | None, limit: Limit, filters: Filters | None
) -> Plan:
    """The plan whose file keeps within the limit.

    The plan without the limit is the start: it keeps within it by patches, which change nothing in
    what the network computes, or by a shorter tail. Where both together are not enough, filters are
    cut as well; and for a limit that was asked for, every candidate has to keep within it.
    """
    log, asked = loop.state.progress.log, wish.max_ram is not None
    # No layer exceeds the peak of the original, so that patches have little to do.
    first = loop if loop.growth is not None or not asked else replace(loop, growth=0)
    free = _settled(first, replace(wish, max_ram=None), allowed)
    macs, whole = wish.select.max_macs, totals(free.state.original)["macs"]
    most = inf if macs is None else macs.limit(whole)
    search = Search(limit, most, lambda: loop.judge)
    kept = search.kept(free)
    saving, saved = whole - totals(rewritten(free.state))["macs"], whole - kept.macs
    enough = search.within(kept) and saved >= ENOUGH * saving
    costly = kept.divergence > COSTLY * free.state.fact(Selection).divergence
    known = free.state.known(FilterSpace) is not None
    if filters is not None and (costly or not enough):
        found = filters()
        if found is not None:
            much = "lose too much" if enough else "do not save enough"
            plans = "these plans" if known else "ranks alone"
            log(f"  {plans} {much} within the limit on RAM: plans that cut filters are tried")
            kept, known = search.with_filters(kept, free, found), True
    hint = "" if known or filters is not None else HINT
    if search.within(kept):
        _log_price(free, kept, limit, hint)
        return kept.plan
    if not limit.asked:
        raise _beyond(limit, kept, hint)
    log(f"  no plan was found within {_bytes(limit)} of RAM; the least is {kept.need:,}{hint}")
    if asked:
        try:
            return _by_candidates(loop, wish, allowed, filters)
        except BudgetError as error:
            log(f"  {error}")
    return kept.plan


def _beyond(limit: Limit, least: Tried, hint: str) -> UnreachableError:
    """The error where no plan within the other budgets keeps within the default limit."""
    return UnreachableError(
        "ram",
        "100%, the default,",
        limit.bytes,
        least.need,
        f"{_bytes(limit)} are allowed, and of the plans that were tried the best takes"
        f" {least.need:,} at {least.macs:,} MACs; --max-ram none lifts the limit{hint}",
    )


def _log_price(free: Plan, kept: Tried, limit: Limit, hint: str) -> None:
    """Say what the limit costs. ``free``: the plan without it."""
    if kept.plan is free:
        return
    lifted = "" if limit.asked else f"; --max-ram none lifts the limit{hint}"
    before, after = free.state.fact(Selection).divergence, kept.divergence
    price = f"predicted divergence {after:.4f}, without this limit {before:.4f}"
    free.state.progress.log(f"  to keep within {_bytes(limit)} of RAM: {price}{lifted}")


def _bytes(limit: Limit) -> str:
    return f"{int(limit.bytes):,} bytes"


def _settled(loop: Loop, wish: Wish, allowed: float | None) -> Plan:
    """The plan of the loop; its BudgetError says which plans the default limit leaves out."""
    try:
        return loop.settle(wish, allowed)
    except BudgetError as error:
        if loop.growth is not None:
            error.args = (f"{error}; {LEFT_OUT}",)
        raise
