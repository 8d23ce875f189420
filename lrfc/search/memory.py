"""Activation memory of the candidates of a layer."""

from __future__ import annotations

from collections.abc import Callable

from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.costs.memory import live_bytes
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.search.candidates import Candidate, LayerSpace


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
