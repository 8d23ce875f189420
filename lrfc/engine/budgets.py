"""Budgets on file size and activation memory, translated into constraints of the allocation.

The constraints are corrected by the files and the planned arenas of actual plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lrfc.config.build import Budget
from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.data.counts import TIMED
from lrfc.engine.growth import CUT, small
from lrfc.engine.plans import rewritten, selected
from lrfc.errors import BudgetError, UnreachableError
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Target
from lrfc.pruning import milp
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.selection import reachable, without_filters
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State
from lrfc.system import scratch
from lrfc.text import percent

#: Most plans that are tried until the budgets are met.
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
        """The most parameters with which every file is within the budget."""
        files = zip(self.wholes, self.beside, self.targets, strict=True)
        weights = ((self.budget.limit(whole) - other, target) for whole, other, target in files)
        return min(int(size / _weight(target)) for size, target in weights)

    def met(self, sizes: Sequence[int]) -> bool:
        """Whether files of these sizes are within the budget."""
        files = zip(sizes, self.wholes, strict=True)
        return all(size <= self.budget.limit(whole) for size, whole in files)

    def corrected(self, graph: Graph, sizes: Sequence[int]) -> _Size:
        """This bound after files of the graph: the ops that factorization adds take bytes too."""
        rest = _beside(graph, sizes, self.targets)
        beside = tuple(max(pair) for pair in zip(self.beside, rest, strict=True))
        return replace(self, beside=beside)

    def refused(self, error: BudgetError) -> BudgetError:
        """The error where so few parameters break another limit."""
        left = f"--max-size {self.budget} leaves {self.params:,} parameters"
        return BudgetError(f"{left}, and with so few {error}")

    def unreachable(self, sizes: Sequence[int]) -> UnreachableError:
        """The error where the smallest plan has files of these sizes."""
        least, whole = max(zip(sizes, self.wholes, strict=True), key=lambda pair: pair[0] / pair[1])
        share = percent(least / whole)
        reason = f"the smallest plan of these methods has {share} of the original's file"
        return UnreachableError("size", self.budget, self.budget.limit(whole), least, reason)


@dataclass(frozen=True)
class _Memory:
    """A budget on the planned activation arena and, on a microcontroller, on the tail behind it.

    Both by target. ``limits``: bytes of both that the budget allows. ``live``: bytes that may be
    alive at one time; fewer than the limit by the tail, and by the gaps in a planned arena.
    """

    budget: Budget
    limits: Mapping[Target, float]
    live: Mapping[Target, float]

    def bound(self, state: State, select: SelectRanks) -> tuple[State, SelectRanks]:
        """The state and the selection, limited to the bytes that may be alive.

        BudgetError where a layer has no candidate within the limit.
        """
        if _prunes(state, select):
            rows = (PeakMemory(_itemsize(target), limit) for target, limit in self.live.items())
            return state, replace(select, peak_memory=(*select.peak_memory, *rows))
        for target, limit in self.live.items():
            _check_other_ops(state, target.precision, limit, self.budget)
            state = small(state, target.precision, limit, unchanged=False, budget=self.budget)
        return state, select

    def planned(self, graph: Graph, log: Callable[[str], None]) -> dict[Target, int]:
        """The bytes that the graph needs for each target, each with a line in the log."""
        needs = {}
        for target in self.limits:
            activations, tail = _arena_bytes(graph, target), target.tail_bytes(graph)
            needs[target] = activations + tail
            behind = f", and a tail of {tail:,} bytes" if tail else ""
            log(f"  activation arena: {activations:,} bytes{behind}")
        return needs

    def met(self, needs: Mapping[Target, int]) -> bool:
        """Whether these needs are within the budget."""
        return all(size <= self.limits[target] for target, size in needs.items())

    def corrected(self, needs: Mapping[Target, int]) -> _Memory:
        """This bound after a plan with these needs: gaps between tensors and tails take bytes."""
        beyond = {target: size - self.limits[target] for target, size in needs.items()}
        live = {target: limit - max(beyond[target], 0) for target, limit in self.live.items()}
        return replace(self, live=live)


def meet(
    state: State,
    select: SelectRanks,
    max_size: Budget | None,
    max_ram: Budget | None,
    targets: Sequence[Target],
) -> tuple[State, SelectRanks]:
    """A design space and a selection whose plan meets a size and a memory budget.

    The budgets of ``select`` hold too. A percentage is of the original's file for the target, and
    of the original's planned arena, on a microcontroller with its tail.

    Size becomes a bound on parameters, corrected by the files of the plans. The peak memory of a
    factorized layer does not depend on other layers, so candidates over the budget are removed.
    With pruning it does; it is then a constraint of the MILP. Both are corrected by the gaps in the
    planned arena. BudgetError names the budget that cannot be met and the reason.
    """
    if max_size is None and max_ram is None:
        return state, select
    original = inference_form(state.original)
    size = None if max_size is None else _size(original, state, max_size, targets)
    memory = None if max_ram is None else _memory(original, max_ram, targets)
    for _ in range(ROUNDS):
        bounded, constraints = (state, select) if memory is None else memory.bound(state, select)
        least = 0.0
        if size is not None:
            least = reachable(bounded if select.prune else without_filters(bounded), "params")
            params = _max_params(size, least, select, original.params)
            constraints = replace(constraints, max_params=params)
        try:
            graph = _planned(bounded, constraints, memory)
        except BudgetError as error:
            if size is None or isinstance(error, UnreachableError):
                raise
            raise size.refused(error) from error
        met = True
        if size is not None:
            sizes = emitted(graph, state, targets)
            state.progress.log(_sizes(targets, sizes))
            met = size.met(sizes)
            if not met and size.params <= least:
                raise size.unreachable(sizes)
            size = size.corrected(graph, sizes)
        if memory is not None:
            needs = memory.planned(graph, state.progress.log)
            met = met and memory.met(needs)
            memory = memory.corrected(needs)
        if met:
            return bounded, constraints
    raise _unmet(max_size, max_ram)


def _max_params(size: _Size, least: float, select: SelectRanks, whole: int) -> Budget:
    """The budget on parameters, between the ``least`` that is possible and the user's budget."""
    params = max(size.params, least)
    if select.max_params is not None:
        params = min(params, int(select.max_params.limit(whole)))
    return Budget(value=params, relative=False)


def _planned(bounded: State, constraints: SelectRanks, memory: _Memory | None) -> Graph:
    """The graph of the best plan. BudgetError where there is none, with the memory budget first."""
    try:
        plan = selected(bounded, constraints)
    except BudgetError:
        if memory is not None and _prunes(bounded, constraints):
            _check_memory(bounded, memory)
        raise
    return inference_form(rewritten(plan))


def _sizes(targets: Sequence[Target], sizes: Sequence[int]) -> str:
    """The size of each target's file, as a line of the log."""
    files = zip(targets, sizes, strict=True)
    return "  " + ", ".join(f"{target.name}: {size:,} bytes" for target, size in files)


def _unmet(max_size: Budget | None, max_ram: Budget | None) -> BudgetError:
    """The error after the last round."""
    options = (("size", max_size), ("ram", max_ram))
    budgets = [f"--max-{name} {budget}" for name, budget in options if budget is not None]
    reason = f"every one of {ROUNDS} plans needs more; allow more, or name more --methods"
    return BudgetError(f"{' and '.join(budgets)} cannot be reached: {reason}")


def _weight(target: Target) -> int:
    """Bytes of one weight in a file."""
    return of(target.precision).weight


def _size(original: Graph, state: State, budget: Budget, targets: Sequence[Target]) -> _Size:
    """The size budget before any plan, with the bytes besides weights of the original's files."""
    wholes = emitted(original, state, targets)
    beside = _beside(original, wholes, targets)
    return _Size(budget, tuple(targets), tuple(wholes), beside)


def _beside(graph: Graph, sizes: Sequence[int], targets: Sequence[Target]) -> tuple[float, ...]:
    """Bytes of each of the graph's files that are not weights."""
    files = zip(sizes, targets, strict=True)
    return tuple(size - _weight(target) * graph.params for size, target in files)


def _memory(original: Graph, budget: Budget, targets: Sequence[Target]) -> _Memory:
    """The memory budget before any plan."""
    tails = {target: target.tail_bytes(original) for target in targets}
    limits = {
        target: budget.limit(_arena_bytes(original, target) + tail)
        for target, tail in tails.items()
    }
    return _Memory(budget, limits, {target: limits[target] - tails[target] for target in targets})


def _arena_bytes(graph: Graph, target: Target) -> int:
    """The planned activation arena of a graph in the precision of a target."""
    return arena(graph, _itemsize(target)).planned_bytes()


def _itemsize(target: Target) -> int:
    """The bytes of an activation in a file."""
    return of(target.precision).activation


def _prunes(state: State, select: SelectRanks) -> bool:
    """Whether the selection may cut filters."""
    return select.prune and state.known(FilterSpace) is not None


def least_ram(
    state: State,
    select: SelectRanks,
    max_size: Budget | None,
    max_ram: Budget | None,
    target: Target,
) -> tuple[State, SelectRanks]:
    """The selection with the least activation memory within the constraints, by bisection.

    Among the plans with that memory it has the fewest MACs.
    """
    select = replace(select, minimise="macs")
    low, high = 0.0, 1.0
    if max_ram is not None and max_ram.relative:
        high = max_ram.value
    best = meet(state, select, max_size, max_ram, [target])
    silent = replace(state, progress=Progress())  # no line in the log for each limit
    while high - low > 0.01:
        share = (low + high) / 2
        try:
            limit = Budget(value=share, relative=True)
            bounded, constraints = meet(silent, select, max_size, limit, [target])
            selected(bounded, constraints)
        except BudgetError:
            low = share
        else:
            best, high = (replace(bounded, progress=state.progress), constraints), share
    return best


def emitted(graph: Graph, state: State, targets: Sequence[Target]) -> list[int]:
    """Emit the graph for each target; the sizes of the files, bytes."""
    calibration = state.data.train.head(TIMED).inputs
    with scratch.folder() as folder:
        return [
            target.emit(graph, folder / f"{number}.{target.name}", calibration).bytes
            for number, target in enumerate(targets)
        ]


def _check_memory(state: State, memory: _Memory) -> None:
    """Raise BudgetError where the memory budget alone cannot be met by ranks and filters."""
    for target, limit in memory.live.items():
        least = milp.least_peak_memory(
            state.graph,
            state.fact(DesignSpace).spaces,
            state.fact(FilterSpace),
            _itemsize(target),
        )
        if least > limit:
            reason = (
                f"{limit:,.0f} bytes are allowed, and the least that ranks and filters reach is"
                f" {least:,.0f}"
            )
            raise UnreachableError("ram", memory.budget, limit, least, reason)


def _check_other_ops(state: State, precision: str, limit: float, budget: Budget) -> None:
    """Raise BudgetError where an op that is never factorized keeps more than ``limit`` alive."""
    factorized = {call for space in state.fact(DesignSpace).spaces for call in space.calls}
    for name, size in arena(state.original, of(precision).activation).timeline.items():
        if size > limit and name not in factorized:
            beyond = (
                "nothing changes what the model reads"
                if name in state.original.inputs
                else f"factorization does not change that; {CUT}"
            )
            reason = f"{name} needs {size:,} bytes, and {beyond}"
            raise UnreachableError("ram", budget, limit, size, reason)
