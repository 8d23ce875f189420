"""Budgets on file size and activation memory: turned into bounds that the allocation knows, and corrected by what plans turn out to need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from lrfc.pruning.memory import Room
from lrfc.pruning.selection import reachable, without_filters
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import live_need
from lrfc.state import Progress, State
from lrfc.system import scratch

#: What may reach a memory budget that factorization cannot.
CUT = "cutting filters may (--prune on)"
#: Plans that are made at most until the budgets are met.
ROUNDS = 6


def meet(state: State, select: SelectRanks, max_size: Budget | None, max_ram: Budget | None, targets: Sequence[Target]) -> tuple[State, SelectRanks]:
    """A design space and a selection whose plan keeps a size and a memory budget, besides those that ``select`` has.

    Size: the parameters that the file allows, corrected by the files of the plans themselves. Memory: while the ops of a layer run nothing else
    changes, so each candidate fits or does not, whatever the others are; where filters may go, what is alive depends on all choices, and the
    allocation minds it. Both are corrected by the gaps in the planned arena. A percentage is of the original's
    file for the target, and of the original's planned arena. BudgetError names the budget that cannot be met and what stands in its way.
    """
    if max_size is None and max_ram is None:
        return state, select
    pruning = select.prune and state.known(FilterSpace) is not None
    itemsizes = [of(target.precision).weight for target in targets]
    precisions = sorted({target.precision for target in targets})
    original = fold_batchnorm(state.original)
    files = emitted(original, state, targets) if max_size is not None else []
    # What a file holds beside the weights; corrected below, because factorization adds operations.
    beside = [size - itemsize * original.params for size, itemsize in zip(files, itemsizes, strict=False)]
    room = {p: max_ram.limit(arena(original, of(p).activation).planned_bytes()) for p in precisions} if max_ram is not None else {}
    live = dict(room)
    for _ in range(ROUNDS):
        found, rooms = state, select.rooms
        for precision, limit in live.items():
            assert max_ram is not None
            if pruning:
                rooms = (*rooms, Room(of(precision).activation, limit))
            else:
                found = _fitting(found, precision, limit, max_ram)
        params = select.max_params
        if max_size is not None:
            allowed = min(int((max_size.limit(size) - other) / itemsize) for size, other, itemsize in zip(files, beside, itemsizes, strict=True))
            least = reachable(found if select.prune else without_filters(found), "params")
            given = max(allowed, least) if params is None else min(max(allowed, least), int(params.limit(original.params)))
            params = Budget(value=given, relative=False)
        wanted = replace(select, max_params=params, rooms=rooms)
        try:
            chosen = selected(found, wanted)
        except BudgetError:
            if pruning and max_ram is not None:
                _check_room(state, room, max_ram)
            raise
        graph = fold_batchnorm(rewritten(chosen))
        good = True
        if max_size is not None:
            sizes = emitted(graph, state, targets)
            state.progress.log("  " + ", ".join(f"{target.name}: {size:,} bytes" for target, size in zip(targets, sizes, strict=True)))
            good = all(size <= max_size.limit(whole) for size, whole in zip(sizes, files, strict=True))
            if not good and allowed <= least:
                share = max(size / whole for size, whole in zip(sizes, files, strict=True))
                raise BudgetError(
                    f"--max-size {max_size} cannot be reached: the smallest plan of these methods has {100 * share:.1f}% of the original's file"
                )
            beside = [max(other, size - itemsize * graph.params) for other, size, itemsize in zip(beside, sizes, itemsizes, strict=True)]
        for precision, limit in room.items():
            planned = arena(graph, of(precision).activation).planned_bytes()
            state.progress.log(f"  activation arena: {planned:,} bytes")
            if planned > limit:
                good, live[precision] = False, live[precision] * limit / planned
        if good:
            return found, wanted
    budgets = [f"--max-{name} {budget}" for name, budget in (("size", max_size), ("ram", max_ram)) if budget is not None]
    raise BudgetError(f"{' and '.join(budgets)} cannot be reached: every one of {ROUNDS} plans needs more; allow more, or name more --methods")


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
    silent = replace(state, progress=Progress())  # a line for each limit tells nobody anything
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
        return [target.emit(graph, folder / f"{number}.{target.name}", calibration).bytes for number, target in enumerate(targets)]


def _check_room(state: State, room: Mapping[str, float], budget: Budget) -> None:
    """BudgetError where the memory budget alone is beyond what ranks and filters reach."""
    for precision, limit in room.items():
        least = joint.least_room(state.graph, state.fact(DesignSpace).spaces, state.fact(FilterSpace), of(precision).activation)
        if least > limit:
            raise BudgetError(
                f"--max-ram {budget} cannot be reached: {limit:,.0f} bytes are allowed, and the least that ranks and filters reach is {least:,.0f}"
            )


def _fitting(state: State, precision: str, limit: float, budget: Budget) -> State:
    """The state with those candidates only at which no more than ``limit`` bytes are alive."""
    design, memory = state.fact(DesignSpace), arena(state.original, of(precision).activation)
    changed = {call for space in design.spaces for call in space.calls}
    for name, size in memory.timeline.items():
        if size > limit and name not in changed:
            beyond = "nothing changes what the model reads" if name in state.original.inputs else f"factorization does not change that; {CUT}"
            raise BudgetError(f"--max-ram {budget} cannot be reached: {name} needs {size:,} bytes, and {beyond}")
    spaces = []
    for space in design.spaces:
        need = live_need(state.original, space, precision)
        kept = tuple(candidate for candidate in space.candidates if need(candidate) <= limit)
        if not kept:
            least = min(need(candidate) for candidate in space.candidates)
            raise BudgetError(
                f"--max-ram {budget} cannot be reached: {space.op.name} needs at least {least:,} bytes, {limit:,.0f} are allowed; {CUT}"
            )
        excluded = None if kept[0].method is None else space.whole
        spaces.append(replace(space, candidates=kept, excluded=excluded))
    return state.with_fact(replace(design, spaces=tuple(spaces)))
