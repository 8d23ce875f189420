"""The activation memory that a layer needs when its factors take its place."""

from __future__ import annotations

from collections.abc import Sequence

from lrfc.costs.arena import Arena
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor


def live_bytes(graph: Graph, memory: Arena, name: str, stages: Sequence[Op], itemsize: int) -> int:
    """The most bytes alive while the chain ``stages`` runs in the place of a layer, everything else in the graph being as it is.

    ``memory`` is the arena of the graph at ``itemsize`` bytes a value. What the layer reads stays
    alive to the chain's end when another op reads it later.
    """
    operand = graph.operands(name)[0]
    given = graph.tensor(operand)
    made = graph.tensors(name)[0]
    before, after = given.size * itemsize, made.size * itemsize
    others = memory.timeline[name] - before - after
    order = [op.name for op in graph]
    readers = [reader for reader, _ in graph.consumers(operand)]
    held = (
        any(order.index(reader) > order.index(name) for reader in readers)
        or operand in graph.outputs
    )
    most, read = 0, before
    tensors: tuple[Tensor, ...] = (given,)
    for number, stage in enumerate(stages):
        tensors = ops.infer(stage, tensors)
        written = tensors[0].size * itemsize
        most = max(most, others + read + written + (before if held and number else 0))
        read = written
    return most
