"""Which feature maps of two networks are compared: those at the ends of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Shape

#: Feature maps at most; of more, an even choice is taken. Each costs memory for its gradient, and
#: neighbours say much the same.
MOST = 8


def block_ends(original: Graph, graph: Graph, most: int = MOST) -> tuple[Ref, ...]:
    """The outputs at the ends of blocks that both graphs have in the same shape, in execution order.

    A block ends at a residual addition (after the activation behind it, when there is one) and
    before every change of the spatial resolution, which the flattening or pooling at the end is
    too. Only maps that depend on weights count: what stands before them is the same in both
    networks.
    """
    learnt = _behind_weights(original)
    ends: dict[Ref, None] = {}
    for op in original:
        if op.kind == "Add" and len(set(original.operands(op.name))) > 1:
            ends[_activated(original, op)] = None
        elif op.kind != "InputLayer":
            changed = {
                ref
                for ref in original.operands(op.name)
                if _resolution(original.tensor(ref).shape) not in (None, _of_output(original, op))
            }
            ends.update(dict.fromkeys(sorted(changed)))
    rank = {op.name: number for number, op in enumerate(original)}
    found = [
        ref
        for ref in sorted(ends, key=lambda ref: rank[ref.op])
        if ref.op in learnt and _comparable(original, graph, ref)
    ]
    found = [ref for ref in found if ref not in original.outputs]
    if len(found) <= most:
        return tuple(found)
    return tuple(found[round((number + 1) * len(found) / most) - 1] for number in range(most))


def tapped(graph: Graph, refs: Sequence[Ref]) -> Graph:
    """The graph with those outputs behind its own, all in one list."""
    return graph.with_outputs((*graph.outputs, *refs))


def _behind_weights(graph: Graph) -> set[str]:
    found: set[str] = set()
    for op in graph:
        if op.kind != "Normalization" and (
            op.weights or any(ref.op in found for ref in graph.operands(op.name))
        ):
            found.add(op.name)
    return found


def _activated(graph: Graph, op: Op) -> Ref:
    reader = graph.only_consumer(op.name)
    if reader is None or not (reader.info.is_activation and reader.info.elementwise):
        return Ref(op.name)
    return Ref(reader.name)


def _resolution(shape: Shape) -> Shape | None:
    """The spatial axes, with the channels last; None for a vector."""
    return shape[1:-1] if len(shape) > 2 else None


def _of_output(graph: Graph, op: Op) -> Shape | None:
    return _resolution(graph.tensors(op.name)[0].shape)


def _comparable(original: Graph, graph: Graph, ref: Ref) -> bool:
    if ref.op not in graph or ref.output >= len(graph.tensors(ref.op)):
        return False
    one, other = original.tensor(ref), graph.tensor(ref)
    return one == other and one.dtype.startswith("float")
