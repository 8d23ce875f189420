"""Activation memory as rows of the MILP: at no step may more bytes be alive than there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from lrfc.costs.arena import arena
from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Tensor
from lrfc.pruning.kept_fractions import Share, Shares
from lrfc.search.candidates import Candidate, LayerSpace

#: Columns and values of a row, and what its sum may be at most.
Row = tuple[list[int], list[float], float]


class Layer(Protocol):
    """A layer's variables: one for each candidate (``chosen``), and one for each candidate together with each choice of a group (``joined``)."""

    @property
    def space(self) -> LayerSpace: ...  # noqa: D102
    @property
    def candidates(self) -> Sequence[Candidate]: ...  # noqa: D102
    @property
    def chosen(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def joined(self) -> Mapping[tuple[int, str], Sequence[int]]: ...  # noqa: D102


@dataclass(frozen=True)
class PeakMemory:
    """``limit``: bytes of activations that may be alive at once, at ``itemsize`` bytes a value."""

    itemsize: int
    limit: float

    def rows(
        self,
        graph: Graph,
        shares: Shares,
        keeps: Mapping[str, Sequence[int]],
        layers: Sequence[Layer],
    ) -> Iterator[Row]:
        """The rows for the steps that may need more than there is room for; see lrfc.costs.memory for what is alive while a layer's stages run."""
        memory = arena(graph, self.itemsize)
        refs = {
            str(Ref(op.name, i)): Ref(op.name, i)
            for op in graph
            for i in range(len(graph.tensors(op.name)))
        }
        order = {op.name: number for number, op in enumerate(graph)}
        by_call = {call: layer for layer in layers for call in layer.space.calls}
        for op in graph:
            step = 2 * order[op.name]
            alive = _Sum(keeps)
            for buffer in memory.buffers:
                if buffer.first <= step + 1 and buffer.last >= step:
                    alive.add(buffer.size, shares.tensor(refs[buffer.name.split(" ")[0]]))
            layer = by_call.get(op.name)
            if layer is None:
                if memory.timeline[op.name] > self.limit:
                    yield alive.row(self.limit)
                continue
            yield from self._stages(graph, op, layer, shares, alive, order)

    def _stages(
        self,
        graph: Graph,
        op: Op,
        layer: Layer,
        shares: Shares,
        alive: _Sum,
        order: Mapping[str, int],
    ) -> Iterator[Row]:
        operand = graph.operands(op.name)[0]
        read, made = (
            graph.tensor(operand).size * self.itemsize,
            graph.tensors(op.name)[0].size * self.itemsize,
        )
        inside, outside = shares.tensor(operand), shares.tensor(Ref(op.name))
        held = operand in graph.outputs or any(
            order[reader] > order[op.name] for reader, _ in graph.consumers(operand)
        )
        first, middle, last = (
            alive.copy(),
            alive.copy(),
            alive.copy(),
        )  # of these, ``alive`` counts what is read and what is made
        first.add(-made, outside)
        middle.add(-made, outside)
        for each in (middle, last):
            if not held:
                each.add(-read, inside)
        for number, candidate in enumerate(layer.candidates):
            joined = {
                group: columns
                for (index, group), columns in layer.joined.items()
                if index == number
            }
            if candidate.method is None:
                first.join(made, outside, layer.chosen[number], joined)
                continue
            between = [size * self.itemsize for size in _between(graph, op, candidate)]
            share = inside if op.info.is_depthwise else Share(1.0, {})
            pairs = [a + b for a, b in pairwise(between)]
            for sum_, size in (
                (first, between[0]),
                (middle, max(pairs, default=0)),
                (last, between[-1]),
            ):
                sum_.join(size, share, layer.chosen[number], joined)
        for each in (first, middle, last):
            yield each.row(self.limit)


def _between(graph: Graph, op: Op, candidate: Candidate) -> list[int]:
    """Values of the tensors between a candidate's stages."""
    assert candidate.method is not None
    tensors: tuple[Tensor, ...] = (graph.input_tensors(op.name)[0],)
    sizes = []
    for stage in METHODS[candidate.method].outline(op, tensors[0], candidate.ranks)[:-1]:
        tensors = ops.infer(stage, tensors)
        sizes.append(tensors[0].size)
    return sizes or [0]


class _Sum:
    """A constant, and coefficients of columns."""

    def __init__(
        self,
        keeps: Mapping[str, Sequence[int]],
        constant: float = 0.0,
        values: Mapping[int, float] | None = None,
    ) -> None:
        self._keeps, self._constant, self._values = keeps, constant, dict(values or {})

    def copy(self) -> _Sum:
        return _Sum(self._keeps, self._constant, self._values)

    def add(self, size: float, share: Share) -> None:
        """That share of so many bytes."""
        self._constant += size * share.fixed
        for group, values in share.by.items():
            for column, value in zip(self._keeps[group], values, strict=True):
                self._values[column] = self._values.get(column, 0.0) + size * float(value)

    def join(
        self, size: float, share: Share, chosen: int, joined: Mapping[str, Sequence[int]]
    ) -> None:
        """That share of so many bytes, if a candidate is chosen."""
        self._values[chosen] = self._values.get(chosen, 0.0) + size * share.fixed
        for group, values in share.by.items():
            for column, value in zip(joined.get(group, self._keeps[group]), values, strict=True):
                self._values[column] = self._values.get(column, 0.0) + size * float(value)

    def row(self, limit: float) -> Row:
        return list(self._values), list(self._values.values()), limit - self._constant
