"""Memory of the candidates of a layer and of plans: activations, and the tail of an arena."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lrfc.config.precision import of
from lrfc.costs.arena import Arena, arena
from lrfc.costs.memory import Surroundings
from lrfc.costs.overwriting import overwriting
from lrfc.costs.tail import workload_bytes
from lrfc.costs.workload import chain
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.search.facts import DesignSpace
from lrfc.state import State


def live_need(graph: Graph, space: LayerSpace, precision: str) -> Callable[[Candidate], int]:
    """A function from a candidate of the layer to the peak activation bytes while it runs."""
    itemsize, memory = of(precision).activation, _arena(graph, precision)
    source = graph.input_tensors(space.op.name)[0]
    around = [Surroundings(graph, memory, call, itemsize) for call in space.calls]

    def need(candidate: Candidate) -> int:
        if candidate.method is None:
            return max(memory.timeline[call] for call in space.calls)
        stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
        return max(call.peak(stages) for call in around)

    return need


class PlanMemory:
    """The activation memory of plans: a candidate for each layer of a graph.

    ``least`` and ``whole``: the bytes alive at one time in the plan that needs the fewest, and in
    the unchanged graph, the peak. ``tail``: bytes that the unchanged graph takes beside, as in
    TensorFlow Lite Micro, where additions write over an input; 0 for other runtimes, whose plans
    have no tail either.
    """

    def __init__(
        self, graph: Graph, spaces: Sequence[LayerSpace], precision: str, tail: int = 0
    ) -> None:
        memory = _arena(graph, precision)
        if tail:
            memory = overwriting(graph, memory)
        self._graph, self._spaces, self._tail = graph, {s.op.name: s for s in spaces}, tail
        self._needs = {s.op.name: live_need(graph, s, precision) for s in spaces}
        self._heads: dict[Candidate, int] = {}
        self._within: dict[float, list[tuple[Candidate, ...]]] = {}
        calls = {call for space in spaces for call in space.calls}
        others = (size for name, size in memory.timeline.items() if name not in calls)
        self._of_others = max(others, default=0)
        larger = (s for s in spaces if self._head(s.whole) > self._of_others)
        self.least = max([self._of_others, *map(self._least, larger)])
        self.whole = memory.peak_bytes

    def within(self, limit: float) -> list[tuple[Candidate, ...]]:
        """The undominated of the candidates during which at most ``limit`` bytes are alive."""
        if limit not in self._within:
            layers = self._spaces.values()
            self._within[limit] = [pareto(list(self._fitting(s, limit))) for s in layers]
        return self._within[limit]

    def _head(self, candidate: Candidate) -> int:
        """The bytes alive while a candidate runs."""
        if candidate not in self._heads:
            self._heads[candidate] = self._needs[candidate.layer](candidate)
        return self._heads[candidate]

    def _fitting(self, space: LayerSpace, limit: float) -> Iterator[Candidate]:
        """The candidates of a layer during which at most ``limit`` bytes are alive."""
        for alike in _by_method(space):
            if max(map(self._head, _extreme(alike, max))) <= limit:
                yield from alike
            else:
                yield from (c for c in alike if self._head(c) <= limit)

    def _least(self, space: LayerSpace) -> int:
        """The least bytes alive while any candidate of a layer runs."""
        return min(self._head(c) for alike in _by_method(space) for c in _extreme(alike, min))

    def bytes(self, plan: Sequence[Candidate]) -> tuple[int, int]:
        """The peak of bytes alive in a plan, and its tail."""
        peak = max([self._of_others, *map(self._head, plan)])
        if not self._tail:
            return peak, 0
        added = (_added_tail(self._graph, self._spaces[c.layer], c) for c in plan)
        return peak, self._tail + sum(added)


#: Every layer needs that of its graph.
_ARENAS: GraphCache[Arena] = GraphCache()


def _arena(graph: Graph, precision: str) -> Arena:
    """The arena of a graph."""
    itemsize = of(precision).activation
    return _ARENAS.get(graph, (), itemsize, lambda: arena(graph, itemsize))


def _by_method(space: LayerSpace) -> list[list[Candidate]]:
    """The candidates of a layer by method."""
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in space.candidates:
        groups.setdefault(candidate.method, []).append(candidate)
    return list(groups.values())


def _extreme(alike: list[Candidate], pick: Callable[..., int]) -> list[Candidate]:
    """Of candidates of one method the one with the greatest or the least need; all if unknown.

    The need grows with every rank, and its computation takes time. ``pick``: ``max`` or ``min``.
    """
    ranks = tuple(map(pick, zip(*(c.ranks for c in alike), strict=True)))
    return [c for c in alike if c.ranks == ranks] or alike


def with_tails(state: State) -> State:
    """The state, each of its candidates with the bytes that it adds to the tail of the arena."""
    design, graph = state.fact(DesignSpace), state.original
    spaces = (
        replace(
            space,
            candidates=tuple(
                replace(c, tail=_added_tail(graph, space, c)) for c in space.candidates
            ),
        )
        for space in design.spaces
    )
    return state.with_fact(replace(design, spaces=tuple(spaces)))


def _added_tail(graph: Graph, space: LayerSpace, candidate: Candidate) -> int:
    """The bytes that a candidate of a layer adds to the tail of the arena."""
    if candidate.method is None:
        return 0
    source = graph.input_tensors(space.op.name)[0]
    stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
    return sum(
        sum(map(workload_bytes, chain(graph, call, stages)))
        - sum(map(workload_bytes, chain(graph, call, [space.op])))
        for call in space.calls
    )
