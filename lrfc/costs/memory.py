"""The activation memory of a layer whose factors replace it."""

from __future__ import annotations

from collections.abc import Sequence

from lrfc.costs.arena import Arena
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor


class Surroundings:
    """The tensors that are alive while a layer runs, or while its factors run in its place.

    ``memory``: the arena of the graph at ``itemsize`` bytes a value. The layer's input stays alive
    to the end of the factors where another op reads it later.
    """

    def __init__(self, graph: Graph, memory: Arena, name: str, itemsize: int) -> None:
        operand = graph.operands(name)[0]
        self._itemsize, self._source = itemsize, graph.tensor(operand)
        self._read, written = self._source.size * itemsize, graph.tensors(name)[0].size * itemsize
        self._others = memory.timeline[name] - self._read - written
        order = [op.name for op in graph]
        later = set(order[order.index(name) + 1 :])
        lasts = operand in graph.outputs or any(r in later for r, _ in graph.consumers(operand))
        self._lasting = self._read if lasts else 0

    def peak(self, stages: Sequence[Op]) -> int:
        """The peak of bytes alive while the factor layers ``stages`` run."""
        peak, read = 0, self._read
        tensors: tuple[Tensor, ...] = (self._source,)
        for number, stage in enumerate(stages):
            tensors = ops.infer(stage, tensors)
            written = tensors[0].size * self._itemsize
            peak = max(peak, self._others + read + written + (self._lasting if number else 0))
            read = written
        return peak
