"""Labels of channels: two channels with the same label can only be removed together."""

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
    """The labels of one tensor: ``ids[i]`` for the values at index i of ``axis``.

    A tensor without an axis cannot be pruned; ``source`` then names it in messages, such as "the
    model's input 'image'".
    """

    axis: int | None
    ids: Ids
    source: str = ""

    @staticmethod
    def fixed(source: str) -> Labels:
        """The labels of a tensor that cannot be pruned."""
        return Labels(None, np.empty(0, np.intp), source)


class Walk:
    """State of one walk through a graph: labels that are equal, frozen labels, labels by layer.

    Three dictionaries map the name of a layer (of its first call) to labels: ``outputs`` to those
    of its filters, ``channelwise`` to those of the channels that it has weights for one by one (as
    BatchNorm does), ``inputs`` to those of the input channels that its kernel sums over.
    ``slices`` are the labels of tensors that are slices of another tensor. ``like`` is the graph
    before its factorization. ``whole_heads``: the heads of attention layers have labels, not their
    dimensions.
    """

    def __init__(
        self, graph: Graph, like: Graph | None = None, *, whole_heads: bool = False
    ) -> None:
        self.graph, self.whole_heads = graph, whole_heads
        self._like = graph if like is None else like
        self.outputs: dict[str, Ids] = {}
        self.channelwise: dict[str, Ids] = {}
        self.inputs: dict[str, Ids] = {}
        self.slices: list[Ids] = []
        self._names: dict[str, str] = {}
        for op in graph.layers():
            if op.shared is not None:
                self._names[op.shared] = op.name
        self._count = 0
        self._equal: list[tuple[Ids, Ids]] = []
        self._frozen: list[tuple[Ids, str]] = []

    def layer(self, op: Op) -> str:
        """The name of the first call of the op's layer."""
        return op.name if op.shared is None else self._names[op.shared]

    def original_layer(self, op: Op) -> tuple[Op, tuple[Tensor, ...]]:
        """The layer before factorization that the op is part of, and the tensors it reads."""
        name = op.name
        while name not in self._like:
            name = name.rpartition("__")[0]
        return self._like.op(name), self._like.input_tensors(name)

    def fresh(self, count: int) -> Ids:
        """New labels."""
        self._count += count
        return np.arange(self._count - count, self._count, dtype=np.intp)

    def unify(self, some: Ids, others: Ids) -> None:
        """Make the labels equal, index by index; shapes are broadcast."""
        some, others = np.broadcast_arrays(some, others)
        self._equal.append((some.reshape(-1), others.reshape(-1)))

    def freeze(self, ids: Ids, reason: str, *, foremost: bool = False) -> None:
        """Forbid the removal of the labels; ``reason`` is a clause: "its filters ...".

        Of several reasons the first one is reported; a ``foremost`` reason precedes all others.
        """
        self._frozen.insert(0 if foremost else len(self._frozen), (np.unique(ids), reason))

    def add_outputs(self, op: Op, ids: Ids) -> Ids:
        """Record the labels of a layer's filters; all calls of a layer have equal labels."""
        return self._record(self.outputs, op, ids)

    def add_channelwise(self, op: Op, ids: Ids) -> Ids:
        """Record the channels that a layer has weights for, one by one."""
        return self._record(self.channelwise, op, ids)

    def add_inputs(self, op: Op, ids: Ids) -> Ids:
        """Record the input channels that a layer's kernel sums over."""
        return self._record(self.inputs, op, ids)

    def _record(self, by_layer: dict[str, Ids], op: Op, ids: Ids) -> Ids:
        layer = self.layer(op)
        if layer in by_layer:
            self.unify(by_layer[layer], ids)
        return by_layer.setdefault(layer, ids)

    def classes(self) -> tuple[Ids, dict[int, str]]:
        """The equivalence class of each label, and the first reason of each frozen class."""
        pairs = self._equal
        ones, others = (
            np.concatenate([pair[i] for pair in pairs]) if pairs else np.empty(0, np.intp)
            for i in (0, 1)
        )
        links = coo_array(
            (np.ones(len(ones), np.int8), (ones, others)), shape=(self._count, self._count)
        )
        classes = (
            np.asarray(connected_components(links, directed=False)[1], np.intp)
            if self._count
            else np.empty(0, np.intp)
        )
        reasons: dict[int, str] = {}
        for ids, reason in self._frozen:
            for label_class in np.unique(classes[ids]):
                reasons.setdefault(int(label_class), reason)
        return classes, reasons


@dataclass(frozen=True, eq=False)
class Call:
    """One op on labelled tensors: the argument of a rule."""

    walk: Walk
    op: Op
    labels: Sequence[Labels]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    @property
    def title(self) -> str:
        """The op's name and kind, for messages."""
        return f"'{self.op.name}' ({self.op.kind})"

    @property
    def source(self) -> Labels:
        """The labels of the first operand."""
        return self.labels[0]

    def freeze(self, reason: str) -> list[Labels]:
        """Freeze all operands, and return the labels of outputs that cannot be pruned."""
        for labels in self.labels:
            self.walk.freeze(labels.ids, reason)
        return [Labels.fixed(f"the output of {self.title}")] * len(self.outputs)

    def along(self, axis: int) -> Ids:
        """The labels of the first operand along an axis.

        Where its labels lie on another axis, or on none, these are new and frozen.
        """
        source, length = self.source, self.inputs[0].shape[axis]
        if source.axis == axis:
            return source.ids
        assert length is not None
        ids = self.walk.fresh(length)
        self.walk.freeze(ids, f"its filters meet {source.source or 'another axis'} in {self.title}")
        if source.axis is not None:
            self.walk.freeze(
                source.ids,
                f"its filters lie on axis {source.axis} of the input of {self.title}, which works"
                f" along axis {axis}",
            )
        return ids
