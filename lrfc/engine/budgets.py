"""Budgets on file size and activation memory, as bounds that the allocation knows.

They are corrected by what plans turn out to need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lrfc.config.build import Budget
from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.data.counts import TIMED
from lrfc.engine.plans import rewritten, selected
from lrfc.errors import BudgetError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Target
from lrfc.pruning import milp as joint
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.selection import reachable, without_filters
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import live_need
from lrfc.state import Progress, State
from lrfc.system import scratch
from lrfc.text import percent

#: What may reach a memory budget that factorization cannot.
CUT = "cutting filters may (--prune on)"
#: Plans that are made at most until the budgets are met.
ROUNDS = 6


@dataclass(frozen=True)
class _Size:
    """A budget on the files of the targets, as a bound on parameters.

    ``wholes``: bytes of the original's files. ``beside``: bytes of each file that are not weights.
    """

    budget: Budget
    targets: tuple[Target, ...]
    wholes: tuple[int, ...]
    beside: tuple[float, ...]

    @property
    def params(self) -> int:
        """The parameters that every file has room for."""
        files = zip(self.wholes, self.beside, self.targets, strict=True)
        rooms = ((self.budget.limit(whole) - other, target) for whole, other, target in files)
        return min(int(room / _weight(target)) for room, target in rooms)

    def kept(self, sizes: Sequence[int]) -> bool:
        """Whether files of these sizes are within the budget."""
        files = zip(sizes, self.wholes, strict=True)
        return all(size <= self.budget.limit(whole) for size, whole in files)

    def corrected(self, graph: Graph, sizes: Sequence[int]) -> _Size:
        """This, after files of the graph: factorization adds operations, which take bytes too."""
        rest = _beside(graph, sizes, self.targets)
        beside = tuple(max(pair) for pair in zip(self.beside, rest, strict=True))
        return replace(self, beside=beside)

    def unreachable(self, sizes: Sequence[int]) -> BudgetError:
        """The error where the smallest plan has files of these sizes."""
        share = max(size / whole for size, whole in zip(sizes, self.wholes, strict=True))
        least = f"the smallest plan of these methods has {percent(share)} of the original's file"
        return BudgetError(f"--max-size {self.budget} cannot be reached: {least}")


def meet(
    state: State,
    select: SelectRanks,
    max_size: Budget | None,
    max_ram: Budget | None,
    targets: Sequence[Target],
) -> tuple[State, SelectRanks]:
    """A design space and a selection whose plan keeps a size and a memory budget.

    The budgets of ``select`` are kept besides. Size: the parameters that the file allows, corrected
    by the files of the plans themselves. Memory: while the ops of a layer run nothing else changes,
    so each candidate fits or does not, whatever the others are; where filters may go, what is alive
    depends on all choices, and it is a constraint of the allocation. Both are corrected by the gaps
    in the planned arena. A percentage is of the original's file for the target, and of the
    original's planned arena. BudgetError names the budget that cannot be met and what stands in its
    way.
    """
    if max_size is None and max_ram is None:
        return state, select
    original = fold_batchnorm(state.original)
    size = None if max_size is None else _size(original, state, max_size, targets)
    room = {} if max_ram is None else _room(original, max_ram, targets)
    live = dict(room)
    for _ in range(ROUNDS):
        found, wanted = state, select
        if max_ram is not None:
            found, wanted = _in_room(state, select, live, max_ram)
        least = 0.0
        if size is not None:
            least = reachable(found if select.prune else without_filters(found), "params")
            params = max(size.params, least)
            if select.max_params is not None:
                params = min(params, int(select.max_params.limit(original.params)))
            wanted = replace(wanted, max_params=Budget(value=params, relative=False))
        try:
            chosen = selected(found, wanted)
        except BudgetError:
            if max_ram is not None and _prunes(state, select):
                _check_room(state, room, max_ram)
            raise
        graph = fold_batchnorm(rewritten(chosen))
        good = True
        if size is not None:
            sizes = emitted(graph, state, targets)
            files = zip(targets, sizes, strict=True)
            line = ", ".join(f"{target.name}: {count:,} bytes" for target, count in files)
            state.progress.log(f"  {line}")
            good = size.kept(sizes)
            if not good and size.params <= least:
                raise size.unreachable(sizes)
            size = size.corrected(graph, sizes)
        for precision, limit in room.items():
            planned = arena(graph, of(precision).activation).planned_bytes()
            state.progress.log(f"  activation arena: {planned:,} bytes")
            if planned > limit:
                good, live[precision] = False, live[precision] * limit / planned
        if good:
            return found, wanted
    options = (("size", max_size), ("ram", max_ram))
    budgets = [f"--max-{name} {budget}" for name, budget in options if budget is not None]
    why = f"every one of {ROUNDS} plans needs more; allow more, or name more --methods"
    raise BudgetError(f"{' and '.join(budgets)} cannot be reached: {why}")


def _weight(target: Target) -> int:
    """Bytes of one weight in a file."""
    return of(target.precision).weight


def _size(original: Graph, state: State, budget: Budget, targets: Sequence[Target]) -> _Size:
    """The budget before any plan: beside its weights a file has what the original's has."""
    wholes = emitted(original, state, targets)
    beside = _beside(original, wholes, targets)
    return _Size(budget, tuple(targets), tuple(wholes), beside)


def _beside(graph: Graph, sizes: Sequence[int], targets: Sequence[Target]) -> tuple[float, ...]:
    """Bytes of each of the graph's files that are not weights."""
    files = zip(sizes, targets, strict=True)
    return tuple(size - _weight(target) * graph.params for size, target in files)


def _room(original: Graph, budget: Budget, targets: Sequence[Target]) -> dict[str, float]:
    """Bytes of the arena that the budget allows in each precision."""
    precisions = sorted({target.precision for target in targets})
    arenas = {name: arena(original, of(name).activation).planned_bytes() for name in precisions}
    return {name: budget.limit(planned) for name, planned in arenas.items()}


def _prunes(state: State, select: SelectRanks) -> bool:
    return select.prune and state.known(FilterSpace) is not None


def _in_room(
    state: State,
    select: SelectRanks,
    live: Mapping[str, float],
    budget: Budget,
) -> tuple[State, SelectRanks]:
    """The state and the selection with so many bytes alive at most, in each precision."""
    if _prunes(state, select):
        rooms = (PeakMemory(of(precision).activation, limit) for precision, limit in live.items())
        return state, replace(select, rooms=(*select.rooms, *rooms))
    for precision, limit in live.items():
        state = _fitting(state, precision, limit, budget)
    return state, select


def least_ram(
    state: State,
    select: SelectRanks,
    max_size: Budget | None,
    max_ram: Budget | None,
    target: Target,
) -> tuple[State, SelectRanks]:
    """The least activation memory within the constraints, found by bisection.

    Of the plans with it the one with the fewest MACs.
    """
    select = replace(select, minimise="macs")
    low, high = 0.0, 1.0
    if max_ram is not None and max_ram.relative:
        high = max_ram.value
    best = meet(state, select, max_size, max_ram, [target])
    silent = replace(state, progress=Progress())  # no line in the log for each of the limits
    while high - low > 0.01:
        share = (low + high) / 2
        try:
            limit = Budget(value=share, relative=True)
            found, tight = meet(silent, select, max_size, limit, [target])
            selected(found, tight)
        except BudgetError:
            low = share
        else:
            best, high = (replace(found, progress=state.progress), tight), share
    return best


def emitted(graph: Graph, state: State, targets: Sequence[Target]) -> list[int]:
    """Bytes of the file that each target makes of the graph."""
    calibration = state.data.train.head(TIMED).inputs
    with scratch.folder() as folder:
        return [
            target.emit(graph, folder / f"{number}.{target.name}", calibration).bytes
            for number, target in enumerate(targets)
        ]


def _check_room(state: State, room: Mapping[str, float], budget: Budget) -> None:
    """BudgetError where the memory budget alone is beyond what ranks and filters reach."""
    for precision, limit in room.items():
        least = joint.least_room(
            state.graph,
            state.fact(DesignSpace).spaces,
            state.fact(FilterSpace),
            of(precision).activation,
        )
        if least > limit:
            raise BudgetError(
                f"--max-ram {budget} cannot be reached: {limit:,.0f} bytes are allowed, and the"
                f" least that ranks and filters reach is {least:,.0f}"
            )


def _fitting(state: State, precision: str, limit: float, budget: Budget) -> State:
    """The state with those candidates only at which no more than ``limit`` bytes are alive."""
    design, memory = state.fact(DesignSpace), arena(state.original, of(precision).activation)
    changed = {call for space in design.spaces for call in space.calls}
    for name, size in memory.timeline.items():
        if size > limit and name not in changed:
            beyond = (
                "nothing changes what the model reads"
                if name in state.original.inputs
                else f"factorization does not change that; {CUT}"
            )
            raise BudgetError(
                f"--max-ram {budget} cannot be reached: {name} needs {size:,} bytes, and {beyond}"
            )
    spaces = []
    for space in design.spaces:
        need = live_need(state.original, space, precision)
        kept = tuple(candidate for candidate in space.candidates if need(candidate) <= limit)
        if not kept:
            least = min(need(candidate) for candidate in space.candidates)
            raise BudgetError(
                f"--max-ram {budget} cannot be reached: {space.op.name} needs at least {least:,}"
                f" bytes, {limit:,.0f} are allowed; {CUT}"
            )
        excluded = None if kept[0].method is None else space.whole
        spaces.append(replace(space, candidates=kept, excluded=excluded))
    return state.with_fact(replace(design, spaces=tuple(spaces)))
