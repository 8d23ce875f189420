"""Activation memory of the candidates of a layer, and of plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.costs.memory import live_bytes
from lrfc.costs.tail import workload_bytes
from lrfc.costs.workload import chain
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.search.candidates import Candidate, LayerSpace, pareto


def live_need(graph: Graph, space: LayerSpace, precision: str) -> Callable[[Candidate], int]:
    """A function from a candidate of the layer to the peak activation bytes while it runs."""
    itemsize = of(precision).activation
    memory = arena(graph, itemsize)

    def need(candidate: Candidate) -> int:
        if candidate.method is None:
            return max(memory.timeline[call] for call in space.calls)
        stages = METHODS[candidate.method].outline(
            space.op, graph.input_tensors(space.op.name)[0], candidate.ranks
        )
        return max(live_bytes(graph, memory, call, stages, itemsize) for call in space.calls)

    return need


class PlanMemory:
    """The activation memory of plans: a candidate for each layer of a graph.

    ``least`` and ``whole``: the bytes alive at one time in the plan that needs the fewest, and in
    the unchanged graph, the peak. ``tail``: bytes that the unchanged graph takes beside, as in
    TensorFlow Lite Micro; 0 for other runtimes, whose plans have no tail either.
    """

    def __init__(
        self, graph: Graph, spaces: Sequence[LayerSpace], precision: str, tail: int = 0
    ) -> None:
        memory = arena(graph, of(precision).activation)
        self._graph, self._spaces, self._tail = graph, {s.op.name: s for s in spaces}, tail
        needs = {s.op.name: live_need(graph, s, precision) for s in spaces}
        self._heads = {c: needs[s.op.name](c) for s in spaces for c in s.candidates}
        calls = {call for space in spaces for call in space.calls}
        others = (size for name, size in memory.timeline.items() if name not in calls)
        self._of_others = max(others, default=0)
        layers = (min(map(self._heads.__getitem__, s.candidates)) for s in spaces)
        self._within: dict[float, list[tuple[Candidate, ...]]] = {}
        self.least, self.whole = max(self._of_others, *layers, 0), memory.peak_bytes

    def within(self, limit: float) -> list[tuple[Candidate, ...]]:
        """The undominated of the candidates during which at most ``limit`` bytes are alive."""
        if limit not in self._within:
            layers = (space.candidates for space in self._spaces.values())
            fitting = ([c for c in layer if self._heads[c] <= limit] for layer in layers)
            self._within[limit] = [pareto(layer) for layer in fitting]
        return self._within[limit]

    def bytes(self, plan: Sequence[Candidate]) -> tuple[int, int]:
        """The peak of bytes alive in a plan, and its tail."""
        peak = max([self._of_others, *map(self._heads.__getitem__, plan)])
        return peak, self._tail + sum(map(self._added, plan)) if self._tail else 0

    def _added(self, candidate: Candidate) -> int:
        """The bytes that a candidate adds to the tail."""
        if candidate.method is None:
            return 0
        space, graph = self._spaces[candidate.layer], self._graph
        source = graph.input_tensors(space.op.name)[0]
        stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
        return sum(
            sum(map(workload_bytes, chain(graph, call, stages)))
            - sum(map(workload_bytes, chain(graph, call, [space.op])))
            for call in space.calls
        )
