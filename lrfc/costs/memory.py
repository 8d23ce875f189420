"""The activation memory of a layer whose factors replace it."""

from __future__ import annotations

from collections.abc import Sequence

from lrfc.costs.arena import Arena
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor


def live_bytes(graph: Graph, memory: Arena, name: str, stages: Sequence[Op], itemsize: int) -> int:
    """The peak of bytes alive while the factor layers ``stages`` run in the place of a layer.

    ``memory``: the arena of the graph at ``itemsize`` bytes a value. The layer's input stays alive
    to the end of the factor layers where another op reads it later.
    """
    operand = graph.operands(name)[0]
    source, result = graph.tensor(operand), graph.tensors(name)[0]
    before, after = source.size * itemsize, result.size * itemsize
    others = memory.timeline[name] - before - after
    order = [op.name for op in graph]
    readers = [reader for reader, _ in graph.consumers(operand)]
    read_later = any(order.index(reader) > order.index(name) for reader in readers)
    lasting = before if read_later or operand in graph.outputs else 0
    peak, read = 0, before
    tensors: tuple[Tensor, ...] = (source,)
    for number, stage in enumerate(stages):
        tensors = ops.infer(stage, tensors)
        written = tensors[0].size * itemsize
        peak = max(peak, others + read + written + (lasting if number else 0))
        read = written
    return peak
