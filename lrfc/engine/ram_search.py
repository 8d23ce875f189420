"""The search for a plan whose file keeps within a limit on RAM, by short tails and by patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

from lrfc.config.build import Budget
from lrfc.config.precision import of
from lrfc.costs.totals import totals
from lrfc.data.counts import TIMED
from lrfc.engine.growth import small
from lrfc.engine.patches import Limit
from lrfc.engine.plans import rewritten, selected
from lrfc.engine.tuning import Plan
from lrfc.errors import BudgetError
from lrfc.ir.fold import fold_batchnorm
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import with_tails
from lrfc.state import State
from lrfc.system import scratch
from lrfc.system.spans import span

#: Shares of the bytes that a plan adds to the tail; other plans may add so much, in turn.
SHARES = (0.8, 0.6, 0.4, 0.25)
#: MACs of patches, as a share of all, that are not worth another plan.
CHEAP = 0.02
#: Most plans that are tried until the budget on MACs holds with those that patches add, and is used
#: to this share. Each leaves room for the patches of the last one, and this multiple of them.
TURNS, USED, ROOM = 4, 0.99, 1.02
#: Most predicted divergence, relative to that without the limit, of a plan that exceeds the default
#: limit all the same. (ResNet-56 at half of the MACs: the least RAM costs 3 points.)
WORTH = 1.5


@dataclass(frozen=True)
class Tried:
    """A plan with the figures of its file.

    ``need``: bytes of RAM, head and tail. ``macs``: with ``added``, those that patches add.
    """

    plan: Plan
    need: int
    macs: int
    added: int

    @property
    def divergence(self) -> float:
        """The predicted divergence of the plan."""
        return self.plan.state.fact(Selection).divergence


@dataclass(frozen=True)
class Search:
    """The search for a plan whose file keeps within a limit on RAM.

    ``macs``: most MACs of the file, with those that patches add.
    """

    limit: Limit
    macs: float = inf

    def within(self, tried: Tried) -> bool:
        """Whether a file keeps within the limits."""
        return tried.need <= self.limit.bytes and tried.macs <= self.macs

    @span("limit on RAM")
    def kept(self, plan: Plan) -> Tried:
        """The plan, or another by the same candidates, whose file keeps within the limit.

        Factor layers have a longer tail than the layer that they replace. Where a plan needs too
        much RAM, others follow that add less to the tail, by SHARES, each the best within the other
        budgets. First those that leave room for the tail by themselves, by their candidates or,
        where filters are known, by cutting these, too; then, by ranks alone, those that leave it
        to patches: the MACs of patches are missing elsewhere (ResNet-8 at half of the
        MACs: 82.0 % against 76.9 %). The first one within the limit is taken. Where none is, it is
        the one that needs the least, for the default limit of those whose divergence is not WORTH
        times as large.
        """
        tried = [self._tried(plan)]
        if self.within(tried[0]):
            return tried[0]
        for state, select in self._others(plan, tried[0]):
            # The other budgets may need more factor layers, or others.
            with suppress(BudgetError):
                tried.append(self._with_room(plan, state, select))
            if self.within(tried[-1]):
                return tried[-1]
        most = inf if self.limit.asked else WORTH * tried[0].divergence
        worth = [one for one in tried if one.divergence <= most]
        return min(worth, key=lambda one: (one.macs > self.macs, one.need))

    def _others(self, plan: Plan, first: Tried) -> Iterator[tuple[State, SelectRanks]]:
        """The design spaces and selections of other plans, in the order in which they are tried."""
        state = with_tails(plan.state)
        reached, cheap = first.need <= self.limit.bytes, first.added <= CHEAP * first.macs
        if reached and cheap:
            yield state, self._with_fewer(plan.select, first.added)
        target, added = self.limit.target, _tail(state)
        filters = plan.select.prune and state.known(FilterSpace) is not None
        by_patches = []
        for share in SHARES:
            tail = int(share * added)
            select = replace(plan.select, max_tail=tail)
            room = self.limit.bytes - target.tail_bytes(state.original) - tail
            if filters:  # they may be cut where the most is alive
                peak = PeakMemory(of(target.precision).activation, room)
                yield state, replace(select, peak_memory=(peak,))
            else:
                yield small(state, target.precision, room), select
                by_patches.append((state, select))
        if reached and not cheap:
            yield state, self._with_fewer(plan.select, first.added)
        if self.limit.patches:
            yield from by_patches

    def _with_room(self, plan: Plan, state: State, select: SelectRanks) -> Tried:
        """The plan of a selection; where patches add too many MACs, the next one has fewer.

        And the one behind it as many as its patches leave. BudgetError where there is none.
        """
        best: Tried | None = None
        for turn in range(TURNS):
            tried = self._tried(replace(plan, state=selected(state, select), select=select))
            if tried.need > self.limit.bytes:
                break
            if self.within(tried) and (best is None or tried.macs > best.macs):
                best = tried
            if best is not None and (turn == 0 or best.macs >= USED * self.macs):
                break
            select = self._with_fewer(select, tried.added)
        return best or tried

    def _with_fewer(self, select: SelectRanks, added: int) -> SelectRanks:
        """The selection with room in the budget on MACs for those that patches add."""
        rest = max(self.macs - ROOM * added, 1)
        return replace(select, max_macs=Budget(value=rest, relative=False))

    def _tried(self, plan: Plan) -> Tried:
        graph = fold_batchnorm(rewritten(plan.state))
        with scratch.folder() as folder:
            target = self.limit.target
            path = folder / f"plan{target.suffix}"
            file = target.emit(graph, path, plan.state.data.train.head(TIMED).inputs)
            need = target.need_bytes(path)
        assert need is not None  # the activations of a plan have fixed shapes
        return Tried(plan, need, totals(graph)["macs"] + file.added_macs, file.added_macs)


def _tail(state: State) -> int:
    """The bytes that the selection adds to the tail."""
    spaces, chosen = state.fact(DesignSpace).spaces, state.fact(Selection).chosen
    return sum(
        next(c.tail for c in space.candidates if (c.method, c.ranks) == (one.method, one.ranks))
        for space, one in zip(spaces, chosen, strict=True)
    )
