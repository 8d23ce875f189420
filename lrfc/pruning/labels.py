"""Labels of channels: which channels of which tensors are one and the same unit, found by walking the graph once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor

Ids = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one tensor: ``ids[i]`` for everything at index i of ``axis``.

    Without an axis nothing of the tensor can be cut; ``source`` then says what it is, such as "the
    model's input 'image'".
    """

    axis: int | None
    ids: Ids
    source: str = ""

    @staticmethod
    def fixed(source: str) -> Labels:
        """The labels of a tensor that stays whole."""
        return Labels(None, np.empty(0, np.intp), source)


class Walk:
    """What is learned on the way through a graph: labels that are equal, labels that must stay, and what each layer makes, carries and reads.

    ``made``, ``carried`` and ``read`` map a layer's name (that of its first call) to the labels of
    its filters, of the channels whose weights it holds, and of the input channels that its kernel
    sums over. ``slices`` are the labels of tensors that are a part of another one. ``like``: the
    graph before its factorization.
    """

    def __init__(self, graph: Graph, like: Graph | None = None) -> None:
        self._like = graph if like is None else like
        self.made: dict[str, Ids] = {}
        self.carried: dict[str, Ids] = {}
        self.read: dict[str, Ids] = {}
        self.slices: list[Ids] = []
        self._names: dict[str, str] = {}
        for op in graph.layers():
            if op.shared is not None:
                self._names[op.shared] = op.name
        self._count = 0
        self._equal: list[tuple[Ids, Ids]] = []
        self._stay: list[tuple[Ids, str]] = []

    def layer(self, op: Op) -> str:
        """The name of the first call of the op's layer."""
        return op.name if op.shared is None else self._names[op.shared]

    def whole(self, op: Op) -> tuple[Op, tuple[Tensor, ...]]:
        """The layer that a stage of a factorization stands for (itself, if it is none), and what that one reads."""
        name = op.name
        while name not in self._like:
            name = name.rpartition("__")[0]
        return self._like.op(name), self._like.input_tensors(name)

    def fresh(self, count: int) -> Ids:
        """Labels that were not there before."""
        self._count += count
        return np.arange(self._count - count, self._count, dtype=np.intp)

    def unify(self, some: Ids, others: Ids) -> None:
        """Say that the labels are equal, index by index."""
        some, others = np.broadcast_arrays(some, others)
        self._equal.append((some.reshape(-1), others.reshape(-1)))

    def stay(self, ids: Ids, reason: str, *, foremost: bool = False) -> None:
        """Say that the labels cannot be cut: "its filters ..."; of several reasons the first one is told, and a ``foremost`` one before."""
        self._stay.insert(0 if foremost else len(self._stay), (np.unique(ids), reason))

    def make(self, op: Op, ids: Ids) -> Ids:
        """Labels of a layer's filters: those given, equal to those of its other calls."""
        return self._noted(self.made, op, ids)

    def carry(self, op: Op, ids: Ids) -> Ids:
        """Note the channels that a layer holds weights for, one by one."""
        return self._noted(self.carried, op, ids)

    def sum_over(self, op: Op, ids: Ids) -> Ids:
        """Note the input channels that a layer's kernel sums over."""
        return self._noted(self.read, op, ids)

    def _noted(self, notes: dict[str, Ids], op: Op, ids: Ids) -> Ids:
        layer = self.layer(op)
        if layer in notes:
            self.unify(notes[layer], ids)
        return notes.setdefault(layer, ids)

    def classes(self) -> tuple[Ids, dict[int, str]]:
        """The class of each label, and the reason of each class that must stay (the first one met)."""
        pairs = self._equal
        ones, others = (
            np.concatenate([pair[i] for pair in pairs]) if pairs else np.empty(0, np.intp)
            for i in (0, 1)
        )
        links = coo_array(
            (np.ones(len(ones), np.int8), (ones, others)), shape=(self._count, self._count)
        )
        found = (
            np.asarray(connected_components(links, directed=False)[1], np.intp)
            if self._count
            else np.empty(0, np.intp)
        )
        reasons: dict[int, str] = {}
        for ids, reason in self._stay:
            for each in np.unique(found[ids]):
                reasons.setdefault(int(each), reason)
        return found, reasons


@dataclass(frozen=True, eq=False)
class Call:
    """One op on labelled tensors, as a rule sees it."""

    walk: Walk
    op: Op
    labels: Sequence[Labels]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    @property
    def title(self) -> str:
        """The op as a message names it."""
        return f"'{self.op.name}' ({self.op.kind})"

    @property
    def source(self) -> Labels:
        """The labels of the first operand."""
        return self.labels[0]

    def fix(self, reason: str) -> list[Labels]:
        """Nothing that the op reads can be cut, and nothing that it gives."""
        for labels in self.labels:
            self.walk.stay(labels.ids, reason)
        return [Labels.fixed(f"the output of {self.title}")] * len(self.outputs)

    def along(self, axis: int) -> Ids:
        """The labels of the first operand along an axis: fresh ones that stay where it has none there."""
        source, length = self.source, self.inputs[0].shape[axis]
        if source.axis == axis:
            return source.ids
        assert length is not None
        ids = self.walk.fresh(length)
        self.walk.stay(ids, f"its filters meet {source.source or 'another axis'} in {self.title}")
        if source.axis is not None:
            self.walk.stay(
                source.ids,
                f"its filters stand on axis {source.axis} of what {self.title} reads, which works"
                f" along axis {axis}",
            )
        return ids
