"""Kept fractions of layers and tensors, as linear functions of the choices for the groups."""

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
    """A kept fraction: ``fixed`` + Σ ``by[group][choice]`` over the groups, between 0 and 1.

    It is 1 where every group keeps all of its units.
    """

    fixed: float
    by: Mapping[str, NDArray[np.float64]]

    def at(self, chosen: Mapping[str, int]) -> float:
        """The kept fraction for these choices, an index for each group."""
        return self.fixed + sum(float(values[chosen[group]]) for group, values in self.by.items())


WHOLE = Share(1.0, {})


@dataclass(frozen=True)
class Use:
    """The kept fractions of an op's input and output channels.

    ``channelwise``: its input channels are its output channels, as those of a depthwise layer or
    an addition; then ``inputs`` is the kept fraction of both, and ``outputs`` is 1.
    """

    inputs: Share
    outputs: Share
    channelwise: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the op depends on."""
        return tuple(dict.fromkeys([*self.inputs.by, *self.outputs.by]))


class Shares:
    """The kept fractions of every layer and tensor of a graph."""

    def __init__(self, graph: Graph, space: FilterSpace) -> None:
        self._graph, self._space = graph, space
        self._masks = {
            name: np.array([_mask(space.dependencies[name].width, keep.units) for keep in keeps])
            for name, keeps in space.choices.items()
        }
        self._groups = {
            label: (name, unit)
            for name in space.choices
            for unit, label in enumerate(space.dependencies[name].classes.tolist())
        }

    def of(self, ids: Ids | None) -> Share:
        """The kept fraction of indices with these labels."""
        if ids is None or not len(ids):
            return WHOLE
        units: dict[str, list[int]] = {}
        for label in ids.tolist():
            group = self._groups.get(label)
            if group is not None:
                units.setdefault(group[0], []).append(group[1])
        by = {name: self._masks[name][:, of].sum(1) / len(ids) for name, of in units.items()}
        return Share(1 - sum(map(len, units.values())) / len(ids), by)

    def use(self, op: Op) -> Use:
        """The kept fractions of an op."""
        if "kernel" not in op.weights:
            return self._without_kernel(op)
        name, dependencies = self._graph.calls(op)[0].name, self._space.dependencies
        if name in dependencies.channelwise:
            return Use(self.of(dependencies.channelwise[name]), WHOLE, channelwise=True)
        return Use(self.of(dependencies.inputs.get(name)), self.of(dependencies.outputs.get(name)))

    def _without_kernel(self, op: Op) -> Use:
        """The kept fractions of an op without a kernel, channel-wise with few exceptions.

        One whose only operand has other channels than its output (a padding of channels) is not.
        """
        operands, labels = self._graph.operands(op.name), self._space.dependencies.labels
        if len(operands) != 1 or np.array_equal(labels[operands[0]].ids, labels[Ref(op.name)].ids):
            return Use(self.tensor(Ref(op.name)), WHOLE, channelwise=True)
        return Use(self.tensor(operands[0]), self.tensor(Ref(op.name)))

    def tensor(self, ref: Ref) -> Share:
        """The kept fraction of a tensor."""
        labels = self._space.dependencies.labels[ref]
        return WHOLE if labels.axis is None else self.of(labels.ids)


def _mask(width: int, kept: Sequence[int] | Ids) -> NDArray[np.bool_]:
    """A mask of the kept units (width,)."""
    mask = np.zeros(width, bool)
    mask[kept] = True
    return mask
