"""Arenas of runtimes that write the output of an addition over an input which ends with it.

Additions, subtractions and multiplications of tensors of one shape read every value before they
write it. In residual networks the addition is often where the most bytes are alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lrfc.costs.arena import Arena, in_place
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref

#: The kinds of layers that compute each value from the values at its place alone.
KINDS = frozenset({"Add", "Multiply", "Subtract"})


def overwriting(graph: Graph, memory: Arena) -> Arena:
    """The arena of a graph, where every output that can be has the place of an input.

    ``memory``: its arena without. Inputs and outputs of the graph keep places of their own.
    """
    buffers = {buffer.name for buffer in memory.buffers}
    lasts = {buffer.name: buffer.last for buffer in memory.buffers}
    firsts = {buffer.name: buffer.first for buffer in memory.buffers}
    apart = {_buffer(graph, ref) for ref in (*map(Ref, graph.inputs), *graph.outputs)}
    pairs: dict[str, tuple[str, str]] = {}
    for number, op in enumerate(graph):
        result = str(Ref(op.name))
        if not _elementwise(graph, op) or result not in buffers - apart:
            continue
        sources = {_buffer(graph, ref) for ref in graph.operands(op.name)} - apart
        ending = [name for name in sources if lasts[name] == 2 * number]
        if ending:
            pairs[op.name] = max(ending, key=lambda name: (firsts[name], name)), result
    return merged(memory, pairs)[0]


def merged(memory: Arena, pairs: Mapping[str, tuple[str, str]]) -> tuple[Arena, dict[str, str]]:
    """The arena with one buffer for both of each pair, and by buffer the one that it is in.

    ``pairs``: by op, in the order of execution, the buffers of the input that it writes over and of
    its output.
    """
    places = {buffer.name: buffer.name for buffer in memory.buffers}
    left = {buffer.name: buffer for buffer in memory.buffers}
    timeline = dict(memory.timeline)
    for op, (source, result) in pairs.items():
        longer = left[places[source]]
        left[longer.name] = replace(longer, last=left.pop(result).last)
        places[result] = longer.name
        timeline[op] -= longer.size
    at_op = max(timeline, key=timeline.__getitem__)
    return Arena(timeline[at_op], at_op, timeline, tuple(left.values())), places


def _elementwise(graph: Graph, op: Op) -> bool:
    """Whether each value of the output is computed from the values at its place alone."""
    tensors = (*graph.input_tensors(op.name), *graph.tensors(op.name))
    alike = len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1
    return op.kind in KINDS and len(graph.operands(op.name)) == 2 and alike


def _buffer(graph: Graph, ref: Ref) -> str:
    """The name of the buffer that a tensor is in."""
    while in_place(graph, graph.op(ref.op)):
        ref = graph.operands(ref.op)[0]
    return str(ref)
