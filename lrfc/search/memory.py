"""Memory of the candidates of a layer: activations, and the tail of a microcontroller's arena."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.costs.memory import live_bytes
from lrfc.costs.tail import workload_bytes
from lrfc.costs.workload import chain
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.facts import DesignSpace
from lrfc.state import State


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


def with_tails(state: State) -> State:
    """The state, each of its candidates with the bytes that it adds to the tail of the arena."""
    design = state.fact(DesignSpace)
    spaces = tuple(_with_tails(state.original, space) for space in design.spaces)
    return state.with_fact(replace(design, spaces=spaces))


def _with_tails(graph: Graph, space: LayerSpace) -> LayerSpace:
    whole = sum(workload_bytes(op) for call in space.calls for op in chain(graph, call, [space.op]))

    def added(candidate: Candidate) -> int:
        if candidate.method is None:
            return 0
        stages = METHODS[candidate.method].outline(
            space.op, graph.input_tensors(space.op.name)[0], candidate.ranks
        )
        ops = (op for call in space.calls for op in chain(graph, call, stages))
        return sum(map(workload_bytes, ops)) - whole

    return replace(space, candidates=tuple(replace(c, tail=added(c)) for c in space.candidates))
