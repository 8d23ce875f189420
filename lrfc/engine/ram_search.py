"""The search for a plan whose file keeps within a limit on RAM, by short tails and by patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from operator import itemgetter

from lrfc.config.build import Budget
from lrfc.config.precision import of
from lrfc.costs.totals import totals
from lrfc.data.counts import TIMED
from lrfc.engine.closest import least_divergent
from lrfc.engine.growth import small
from lrfc.engine.judge import Judge
from lrfc.engine.patches import Limit
from lrfc.engine.plans import rewritten, selected
from lrfc.engine.tuning import Plan
from lrfc.errors import BudgetError
from lrfc.ir.fold import inference_form
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.milp import UnsolvedError
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import PlanMemory, with_tails
from lrfc.state import State
from lrfc.system import scratch
from lrfc.system.spans import span

#: Into how many steps the room for tails is divided, and most of the plans by them that are tried.
STEPS, BEST = 12, 4
#: MACs of patches, as a share of all, that are not worth another plan.
CHEAP = 0.02
#: Most plans whose tail is shorter by what the last one exceeds the limit by, and the least share
#: of the last one's tail that the next may have.
TURNS, FALL = 4, 0.25
#: Most plans that are tried until the budget on MACs holds with those that patches add, and is used
#: to this share. Each leaves room for the patches of the last one, and this multiple of them.
FEWER, USED, ROOM = 4, 0.99, 1.02


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

    @property
    def cost(self) -> float:
        """What plans within the limits are compared by."""
        return self.divergence if self.plan.objective is None else self.macs


@dataclass(frozen=True)
class Search:
    """The search for a plan whose file keeps within a limit on RAM.

    ``macs``: most MACs of the file, with those that patches add. ``judge``: returns the judge that
    runs plans on data; without one, plans are compared by their predicted divergence.
    """

    limit: Limit
    macs: float = inf
    judge: Callable[[], Judge] | None = None

    def within(self, tried: Tried) -> bool:
        """Whether a file keeps within the limits."""
        return tried.need <= self.limit.bytes and tried.macs <= self.macs

    @span("limit on RAM")
    def kept(self, plan: Plan) -> Tried:
        """The plan, or another by the same candidates, whose file keeps within the limit.

        Factor layers have a longer tail than the layer that they replace. Where a plan needs too
        much RAM, others follow that add less to the tail, each the best within the other budgets.
        First those that leave room for the tail by themselves, of which the closest to the original
        is taken (ResNet-8 at half of the MACs: 81.4 % where the predictions alone lead to 77.9 %).
        Then those that leave it to patches, whose MACs are missing elsewhere; the last one adds
        nothing to the tail. Of these, it is the first one within the limit; where none is, the one
        that needs the least.
        """
        first = self._tried(plan)
        return first if self.within(first) else self._best(first, self._others(plan, first))

    @span("limit on RAM, with filters")
    def with_filters(self, kept: Tried, plan: Plan, filters: FilterSpace) -> Tried:
        """A better plan within the limit, which cuts filters where the most is alive.

        ``kept``: the best plan by ranks alone, for where there is none. ``plan``: that without the
        limit, whose methods are taken.
        """
        state = with_tails(plan.state.with_fact(filters))
        select = replace(plan.select, prune=True)
        best = self._best(kept, self._by_filters(replace(plan, select=select), state))
        if best is kept:
            plan.state.progress.log("  no such plan within the limit was found")
            return kept
        if self.within(best) and self.limit.patches:
            best = self._loosened(best, state)
        both = [one for one in (kept, best) if self.within(one)]
        return self._best_within(both) if both else best

    def _best(self, first: Tried, others: Iterator[Tried]) -> Tried:
        """The first one of the others within the limit; of all the one that needs the least."""
        tried = [first]
        for other in others:
            if self.within(other):
                return other
            tried.append(other)
        return min(tried, key=lambda one: (one.macs > self.macs, one.need))

    def _others(self, plan: Plan, first: Tried) -> Iterator[Tried]:
        """Other plans by ranks alone, in the order in which they are tried."""
        state = with_tails(plan.state)
        reached, cheap = first.need <= self.limit.bytes, first.added <= CHEAP * first.macs
        if reached and cheap:
            yield from self._made(plan, state, self._with_fewer(plan.select, first.added))
        yield from self._by_themselves(plan, state)
        if reached and not cheap:
            yield from self._made(plan, state, self._with_fewer(plan.select, first.added))
        if self.limit.patches:
            yield from self._by_patches(plan, state, first)
        yield from self._made(plan, state, replace(plan.select, max_tail=0))

    def _by_themselves(self, plan: Plan, state: State) -> Iterator[Tried]:
        """Plans whose activations leave the tail its room by themselves; the best one within.

        What a plan adds to the tail is missing for its activations, and the other way round.
        """
        precision, beside = self.limit.target.precision, self._beside(state)
        rest, spaces = self.limit.bytes - beside, state.fact(DesignSpace).spaces
        least = PlanMemory(state.original, spaces, precision, beside).least
        room = min(_tail(state), int(rest - least))
        steps = range(1, STEPS + 1) if room > 0 else ()
        found: dict[object, tuple[float, State, SelectRanks]] = {}
        for tail in (room * step // STEPS for step in steps):
            select = replace(plan.select, max_tail=tail)
            with suppress(BudgetError):
                narrow = small(state, precision, rest - tail, unchanged=False)
                selection = selected(narrow, select).fact(Selection)
                found.setdefault(
                    selection.network, (selection.cost(select.minimise), narrow, select)
                )
        best = sorted(found.values(), key=itemgetter(0))[:BEST]
        tried = [one for _, narrow, select in best for one in self._made(plan, narrow, select)]
        within = [one for one in tried if self.within(one)]
        yield from [self._best_within(within)] if within else tried

    def _best_within(self, tried: Sequence[Tried]) -> Tried:
        """The closest to the original, or where another quantity is minimised the least of it.

        By their predictions alone without a judge, and on synthetic data.
        """
        first = min(tried, key=lambda one: one.cost)
        state = first.plan.state
        if self.judge is None or first.plan.objective is not None or state.data.synthetic:
            return first
        plans = {f"plan {n}, {one.need:,} bytes of RAM": one for n, one in enumerate(tried, 1)}
        if len(plans) == 1:
            return first
        judged = {name: (one.plan.state, one.plan.select) for name, one in plans.items()}
        return plans[least_divergent(judged, self.judge(), state.progress)]

    def _by_filters(self, plan: Plan, state: State) -> Iterator[Tried]:
        """Plans with less activations and tail by what the last one exceeds the limit by."""
        itemsize = of(self.limit.target.precision).activation
        rest = self.limit.bytes - self._beside(state)
        for _ in range(TURNS):
            memory = PeakMemory(itemsize, rest, tail=True)
            found = self._made(plan, state, replace(plan.select, peak_memory=(memory,)))
            if not found:
                return
            yield from found
            rest -= max(found[0].need - self.limit.bytes, 1)

    def _loosened(self, best: Tried, state: State) -> Tried:
        """The plan that cuts the fewest filters of those that patches bring within the limit.

        ``best``: one within the limit, whose filters were cut as if there were no patches.
        """
        plan, spaces = best.plan, state.fact(DesignSpace).spaces
        (memory,) = plan.select.peak_memory
        low: float = memory.limit
        high: float = PlanMemory(state.original, spaces, self.limit.target.precision).whole
        for _ in range(TURNS):
            middle = (low + high) / 2
            looser = replace(plan.select, peak_memory=(replace(memory, limit=middle),))
            within = [one for one in self._made(plan, state, looser) if self.within(one)]
            if within:
                (best,), low = within, middle
            else:
                high = middle
        return best

    def _beside(self, state: State) -> int:
        """The bytes of the original's tail."""
        return self.limit.target.tail_bytes(state.original)

    def _by_patches(self, plan: Plan, state: State, first: Tried) -> Iterator[Tried]:
        """Plans whose tail is shorter by what the last one exceeds the limit by.

        Where the other budgets need a longer one, the next lies half-way.
        """
        tail, need, low = _tail(state), first.need, 0
        for _ in range(TURNS):
            beyond = max(need - self.limit.bytes, 1)
            most = int(max(tail - beyond, (low + tail) / 2 if low else FALL * tail))
            found = self._made(plan, state, replace(plan.select, max_tail=most))
            yield from found
            if found:
                tail, need = _tail(found[0].plan.state), found[0].need
            else:
                low = most

    def _made(self, plan: Plan, state: State, select: SelectRanks) -> tuple[Tried, ...]:
        """The plan of a selection; where patches add too many MACs, the next one has fewer.

        And the one behind it as many as its patches leave. Empty where the other budgets need more
        factor layers than the selection leaves.
        """
        best: Tried | None = None
        last: Tried | None = None
        for turn in range(FEWER):
            try:
                last = self._tried(replace(plan, state=selected(state, select), select=select))
            except UnsolvedError as error:
                state.progress.log(f"  {error}")
                break
            except BudgetError:
                break
            if last.need > self.limit.bytes:
                break
            if self.within(last) and (best is None or last.macs > best.macs):
                best = last
            if best is not None and (turn == 0 or best.macs >= USED * self.macs):
                break
            select = self._with_fewer(select, last.added)
        found = best or last
        return () if found is None else (found,)

    def _with_fewer(self, select: SelectRanks, added: int) -> SelectRanks:
        """The selection with room in the budget on MACs for those that patches add."""
        rest = max(self.macs - ROOM * added, 1)
        return replace(select, max_macs=Budget(value=rest, relative=False))

    def _tried(self, plan: Plan) -> Tried:
        graph = inference_form(rewritten(plan.state))
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
