"""The feature maps that distillation compares: those at the ends of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Shape

#: The most feature maps; of more, an even choice is taken. Each costs memory for its gradient, and
#: neighbours are much alike.
MOST = 8


def block_ends(original: Graph, graph: Graph, most: int = MOST) -> tuple[Ref, ...]:
    """The block ends that both graphs have in the same shape, in execution order.

    A block ends at a residual addition (after the activation behind it, when there is one) and
    before every change of the spatial resolution, the final flattening or pooling included. Only
    maps that depend on weights count: those before the first weights are the same in both networks.
    """
    weighted = _behind_weights(original)
    ends: dict[Ref, None] = {}
    for op in original:
        if op.kind == "Add" and len(set(original.operands(op.name))) > 1:
            ends[_activated(original, op)] = None
        elif op.kind != "InputLayer":
            changed = {
                ref
                for ref in original.operands(op.name)
                if _resolution(original.tensor(ref).shape)
                not in (None, _output_resolution(original, op))
            }
            ends.update(dict.fromkeys(sorted(changed)))
    rank = {op.name: number for number, op in enumerate(original)}
    refs = [
        ref
        for ref in sorted(ends, key=lambda ref: rank[ref.op])
        if ref.op in weighted and _comparable(original, graph, ref)
    ]
    refs = [ref for ref in refs if ref not in original.outputs]
    if len(refs) <= most:
        return tuple(refs)
    return tuple(refs[round((number + 1) * len(refs) / most) - 1] for number in range(most))


def tapped(graph: Graph, refs: Sequence[Ref]) -> Graph:
    """The graph with those outputs after its own, all in one list."""
    return graph.with_outputs((*graph.outputs, *refs))


def _behind_weights(graph: Graph) -> set[str]:
    """The names of the ops that depend on weights."""
    names: set[str] = set()
    for op in graph:
        if op.kind != "Normalization" and (
            op.weights or any(ref.op in names for ref in graph.operands(op.name))
        ):
            names.add(op.name)
    return names


def _activated(graph: Graph, op: Op) -> Ref:
    """The output of the activation behind an op, or of the op itself."""
    reader = graph.only_consumer(op.name)
    if reader is None or not (reader.info.is_activation and reader.info.elementwise):
        return Ref(op.name)
    return Ref(reader.name)


def _resolution(shape: Shape) -> Shape | None:
    """The spatial axes, with the channels last; None for a vector."""
    return shape[1:-1] if len(shape) > 2 else None


def _output_resolution(graph: Graph, op: Op) -> Shape | None:
    return _resolution(graph.tensors(op.name)[0].shape)


def _comparable(original: Graph, graph: Graph, ref: Ref) -> bool:
    if ref.op not in graph or ref.output >= len(graph.tensors(ref.op)):
        return False
    one, other = original.tensor(ref), graph.tensor(ref)
    return one == other and one.dtype.startswith("float")
