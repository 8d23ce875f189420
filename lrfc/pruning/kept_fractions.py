"""How much of each layer and tensor is left, as linear functions of the choices made for the groups of filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.pruning.labels import Ids
from lrfc.pruning.space import FilterSpace


@dataclass(frozen=True)
class Share:
    """``fixed`` + Σ ``by[group][choice]``: between 0 and 1, and 1 where every group keeps all units."""

    fixed: float
    by: Mapping[str, NDArray[np.float64]]

    def at(self, chosen: Mapping[str, int]) -> float:
        """The share when these choices are made."""
        return self.fixed + sum(float(values[chosen[group]]) for group, values in self.by.items())


WHOLE = Share(1.0, {})


@dataclass(frozen=True)
class Use:
    """What is left of an op: of what it reads and of what it makes.

    ``carried``: its channels are both at once, as those of a depthwise layer or an addition; then
    ``made`` is whole.
    """

    read: Share
    made: Share
    carried: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the op depends on."""
        return tuple(dict.fromkeys([*self.read.by, *self.made.by]))


class Shares:
    """The shares of every layer and tensor of a graph."""

    def __init__(self, graph: Graph, space: FilterSpace) -> None:
        self._graph, self._space = graph, space
        self._masks = {
            name: np.array([_units(space.dependencies[name].width, keep.units) for keep in keeps])
            for name, keeps in space.choices.items()
        }
        self._groups = {
            label: (name, unit)
            for name in space.choices
            for unit, label in enumerate(space.dependencies[name].classes.tolist())
        }

    def of(self, ids: Ids | None) -> Share:
        """The share of indices with these labels that is left."""
        if ids is None or not len(ids):
            return WHOLE
        found: dict[str, list[int]] = {}
        for label in ids.tolist():
            group = self._groups.get(label)
            if group is not None:
                found.setdefault(group[0], []).append(group[1])
        by = {name: self._masks[name][:, units].sum(1) / len(ids) for name, units in found.items()}
        return Share(1 - sum(map(len, found.values())) / len(ids), by)

    def use(self, op: Op) -> Use:
        """What is left of an op."""
        if "kernel" not in op.weights:
            return self._kept(op)
        name, known = self._graph.calls(op)[0].name, self._space.dependencies
        if name in known.carried:
            return Use(self.of(known.carried[name]), WHOLE, carried=True)
        return Use(self.of(known.read.get(name)), self.of(known.made.get(name)))

    def _kept(self, op: Op) -> Use:
        """What is left of an op without a kernel: of its output, and where that has other channels than its only operand (a padding of channels), of both."""
        operands, labels = self._graph.operands(op.name), self._space.dependencies.labels
        if len(operands) != 1 or np.array_equal(labels[operands[0]].ids, labels[Ref(op.name)].ids):
            return Use(self.tensor(Ref(op.name)), WHOLE, carried=True)
        return Use(self.tensor(operands[0]), self.tensor(Ref(op.name)))

    def tensor(self, ref: Ref) -> Share:
        """What is left of a tensor."""
        labels = self._space.dependencies.labels[ref]
        return WHOLE if labels.axis is None else self.of(labels.ids)


def _units(width: int, kept: Sequence[int] | Ids) -> NDArray[np.bool_]:
    mask = np.zeros(width, bool)
    mask[kept] = True
    return mask
