"""The peak-memory constraint: rows of the MILP that bound the activations alive at each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from lrfc.costs.arena import arena
from lrfc.costs.overwriting import overwriting
from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Tensor
from lrfc.pruning.kept_fractions import WHOLE, Share, Shares
from lrfc.search.candidates import Candidate, LayerSpace

#: Columns and coefficients of a row, and the upper bound of its sum.
Row = tuple[list[int], list[float], float]


class Layer(Protocol):
    """The variables of a layer, as columns of the MILP.

    ``chosen``: one for each candidate. ``joined``: by candidate and group, one for each choice of
    that group, which is 1 where both are chosen.
    """

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
    """A bound of ``limit`` bytes on the activations alive at once, with ``itemsize`` per value.

    ``tail``: whether it holds for an arena of TensorFlow Lite Micro: additions write over an input,
    and the bytes that candidates add to the tail count, too.
    """

    itemsize: int
    limit: float
    tail: bool = False

    def rows(
        self,
        graph: Graph,
        shares: Shares,
        keeps: Mapping[str, Sequence[int]],
        layers: Sequence[Layer],
    ) -> Iterator[Row]:
        """The rows of all steps that may exceed the limit.

        ``keeps``: by group, the columns of its choices. lrfc.costs.memory describes which tensors
        are alive while the factor layers of a layer run.
        """
        memory = arena(graph, self.itemsize)
        if self.tail:
            memory = overwriting(graph, memory)
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
            yield from self._factor_layers(graph, op, layer, shares, alive, order)

    def _factor_layers(
        self,
        graph: Graph,
        op: Op,
        layer: Layer,
        shares: Shares,
        alive: _Sum,
        order: Mapping[str, int],
    ) -> Iterator[Row]:
        """Three rows for a layer: its first factor layer, those in the middle, and its last.

        ``alive`` counts the input and the output of the layer. The first factor layer does not
        have the output yet; after it, the input is freed unless another op reads it later.
        """
        operand = graph.operands(op.name)[0]
        input_size, output_size = (
            graph.tensor(operand).size * self.itemsize,
            graph.tensors(op.name)[0].size * self.itemsize,
        )
        input_share, output_share = shares.tensor(operand), shares.tensor(Ref(op.name))
        read_later = operand in graph.outputs or any(
            order[reader] > order[op.name] for reader, _ in graph.consumers(operand)
        )
        first, middle, last = alive.copy(), alive.copy(), alive.copy()
        first.add(-output_size, output_share)
        middle.add(-output_size, output_share)
        if not read_later:
            middle.add(-input_size, input_share)
            last.add(-input_size, input_share)
        for number, candidate in enumerate(layer.candidates):
            joined = {
                group: columns
                for (index, group), columns in layer.joined.items()
                if index == number
            }
            if candidate.method is None:
                first.join(output_size, output_share, layer.chosen[number], joined)
                continue
            between = [size * self.itemsize for size in _between(graph, op, candidate)]
            share = input_share if op.info.is_depthwise else WHOLE
            pairs = [a + b for a, b in pairwise(between)]
            for step, size in (
                (first, between[0]),
                (middle, max(pairs, default=0)),
                (last, between[-1]),
            ):
                step.join(size, share, layer.chosen[number], joined)
        for step in (first, middle, last):
            yield step.row(self.limit)


def _between(graph: Graph, op: Op, candidate: Candidate) -> list[int]:
    """The numbers of values of the tensors between a candidate's factor layers."""
    assert candidate.method is not None
    tensors: tuple[Tensor, ...] = (graph.input_tensors(op.name)[0],)
    sizes = []
    for stage in METHODS[candidate.method].outline(op, tensors[0], candidate.ranks)[:-1]:
        tensors = ops.infer(stage, tensors)
        sizes.append(tensors[0].size)
    return sizes or [0]


class _Sum:
    """A linear expression in bytes: a constant and the coefficients of columns."""

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
        """Add ``size`` bytes, of which a tensor keeps ``share``."""
        self._constant += size * share.fixed
        for group, values in share.by.items():
            for column, value in zip(self._keeps[group], values, strict=True):
                self._values[column] = self._values.get(column, 0.0) + size * float(value)

    def join(
        self, size: float, share: Share, chosen: int, joined: Mapping[str, Sequence[int]]
    ) -> None:
        """Add ``size`` bytes, of which a tensor keeps ``share``, if a candidate is chosen."""
        self._values[chosen] = self._values.get(chosen, 0.0) + size * share.fixed
        for group, values in share.by.items():
            for column, value in zip(joined.get(group, self._keeps[group]), values, strict=True):
                self._values[column] = self._values.get(column, 0.0) + size * float(value)

    def row(self, limit: float) -> Row:
        """The row that bounds the expression by ``limit``."""
        return list(self._values), list(self._values.values()), limit - self._constant
