"""Attention layers that were replaced by their projections, put back where these stayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lrfc.ir.attention_call import TENSORS, AttentionCall
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Ref, Slot


@dataclass(frozen=True)
class Group:
    """The ops in the place of an attention layer, in their order, with their operands."""

    layer: Op
    parts: tuple[tuple[Op, tuple[Ref, ...]], ...]

    def projection(self, name: str) -> str:
        """The name of a projection, for the name that the layer has for it."""
        last = name == "attention_output"
        return self.layer.name if last else f"{self.layer.name}__{name}"

    @property
    def is_complete(self) -> bool:
        """Whether the parts have the weights of the layer, and no others.

        A normalisation in front that was folded in may have added a bias.
        """
        own = {op.name: set(op.weights) for op, _ in self.parts if op.weights}
        whole: dict[str, set[str]] = {}
        for name in self.layer.weights:
            part, _, weight = name.partition("/")
            whole.setdefault(self.projection(part), set()).add(weight)
        return own == whole

    @property
    def sources(self) -> Mapping[str, Ref] | None:
        """The tensors that the layer reads, by argument; None where a mask is among them."""
        values = AttentionCall.arguments(self.layer)
        read = [name for name, value in values.items() if isinstance(value, Slot)]
        if not set(read) <= set(TENSORS):
            return None
        first = {op.name: operands[0] for op, operands in self.parts}
        return {name: first[self.projection(name)] for name in read}


def groups(
    graph: Graph, layers: Mapping[str, Op], parts: Mapping[str, Sequence[str]]
) -> tuple[Group, ...]:
    """The groups of a graph, for the layers that were replaced and the names of their parts.

    Without those that have changed so much that the layer cannot be put back.
    """
    found = []
    for name, names in parts.items():
        if all(part in graph for part in names):
            ops = tuple((graph.op(part), graph.operands(part)) for part in names)
            found.append(Group(layers[name], ops))
    return tuple(group for group in found if group.is_complete)


def with_attention(graph: Graph, replaced: Sequence[Group]) -> Graph:
    """The graph with the layers whose parts it still has, with the parts' weights.

    Layers with several calls, with two outputs, and with masks that are tensors stay replaced.
    """
    graph = graph.copy()
    for group in replaced:
        sources = group.sources
        if sources is not None and group.layer.shared is None and _is_there(graph, group):
            _put_back(graph, group, sources)
    return graph


def _is_there(graph: Graph, group: Group) -> bool:
    """Whether the graph has all parts as they were, but for weights, and reads only the last."""
    names = [op.name for op, _ in group.parts]
    inner = set(names[:-1])
    if any(out.op in inner for out in graph.outputs):
        return False
    for op, operands in group.parts:
        if op.name not in graph or graph.operands(op.name) != operands:
            return False
        if not _same(graph.op(op.name), op):
            return False
        readers = {reader for reader, _ in graph.consumers(Ref(op.name))}
        if op.name in inner and not readers <= set(names):
            return False
    return True


def _same(one: Op, two: Op) -> bool:
    """Whether two ops differ at most in the values of their weights."""
    shapes = [{name: w.shape for name, w in op.weights.items()} for op in (one, two)]
    same = one.kind == two.kind and dict(one.attrs) == dict(two.attrs) and one.call is two.call
    return same and shapes[0] == shapes[1]


def _put_back(graph: Graph, group: Group, sources: Mapping[str, Ref]) -> None:
    """Put the layer in the place of its parts."""
    layer, values = group.layer, AttentionCall.arguments(group.layer)
    ports = sorted((values[name].port, name) for name in sources)
    whole = replace(layer, weights=_weights(graph, group))
    old = f"{layer.name}\0"
    graph.rename(layer.name, old)
    graph.add(whole, [sources[name] for _, name in ports], before=old)
    graph.substitute(Ref(old), Ref(layer.name))
    for op, _ in reversed(group.parts):
        graph.remove(old if op.name == layer.name else op.name)


def _weights(graph: Graph, group: Group) -> dict[str, Array]:
    """The weights of the parts, in the shapes of the layer's."""
    found = {}
    for name, array in group.layer.weights.items():
        part, _, weight = name.partition("/")
        found[name] = graph.op(group.projection(part)).weights[weight].reshape(array.shape)
    return found
