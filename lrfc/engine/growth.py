"""The limit on activation memory, which by default is that of the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from lrfc.config.build import Budget
from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.errors import UnreachableError
from lrfc.search.candidates import Candidate
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import live_need
from lrfc.state import State

#: Hint for a limit on memory that factorization alone cannot meet.
CUT = "cutting filters may (--prune on)"


@dataclass(frozen=True)
class Ram:
    """The limit on the memory of a plan.

    ``budget``: the user's. ``growth``: without one, the bytes by which a plan may exceed the
    original; None for no limit.
    """

    budget: Budget | None = None
    growth: int | None = None

    def limit(self, original: int) -> int | None:
        """The bytes that are allowed, for the bytes of the original; None for no limit."""
        if self.budget is not None:
            return int(self.budget.limit(original))
        return None if self.growth is None else original + self.growth


def limited(state: State, precision: str, growth: int | None) -> State:
    """The state without the candidates that need more memory than the original.

    ``growth``: bytes by which a candidate may exceed the peak of bytes alive in the original; None
    for no limit. Every layer unchanged is within it, so it can always be met.
    """
    if growth is None:
        return state
    peak = arena(state.original, of(precision).activation).peak_bytes
    return small(state, precision, peak + growth)


def small(
    state: State, precision: str, limit: float, *, unchanged: bool = True, budget: object = None
) -> State:
    """The state without the candidates that keep more than ``limit`` bytes alive.

    ``unchanged``: whether a layer unchanged stays, however many it keeps. UnreachableError, which
    names the ``budget`` (None: the limit), where a layer has no candidate left.
    """
    design = state.fact(DesignSpace)
    spaces = []
    for space in design.spaces:
        need = live_need(state.original, space, precision)
        left = tuple(_fitting(space.candidates, need, limit))
        if not unchanged and need(space.whole) > limit:
            left = tuple(candidate for candidate in left if candidate.method is not None)
            space = replace(space, excluded=space.whole)
        if not left:
            least = min(map(need, space.candidates))
            reason = (
                f"{space.op.name} needs at least {least:,} bytes, {limit:,.0f} are allowed; {CUT}"
            )
            named = f"{limit:,.0f} bytes" if budget is None else budget
            raise UnreachableError("ram", named, limit, least, reason)
        spaces.append(replace(space, candidates=left))
    return state.with_fact(replace(design, spaces=tuple(spaces)))


def _fitting(
    candidates: Sequence[Candidate], need: Callable[[Candidate], int], limit: float
) -> Iterator[Candidate]:
    """The layer unchanged, and the candidates that need at most ``limit`` bytes, in their order."""
    for method, group in groupby(candidates, key=lambda c: c.method):
        alike = list(group)
        if method is None:
            yield from alike
            continue
        # The need grows with every rank.
        largest = tuple(map(max, zip(*(c.ranks for c in alike), strict=True)))
        if need(replace(alike[0], ranks=largest)) <= limit:
            yield from alike
        else:
            yield from (c for c in alike if need(c) <= limit)
