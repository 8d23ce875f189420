"""The choices for each dependency group: the units that it keeps, and the predicted divergence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.head_pairs import pairs
from lrfc.pruning.groups import Dependencies, Group, groups
from lrfc.pruning.labels import Ids
from lrfc.state import Fact


@dataclass(frozen=True, eq=False)
class Keep:
    """One choice for a dependency group: the units that it keeps, and the predicted divergence."""

    group: Group
    units: Ids
    divergence: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether the group loses any unit."""
        return len(self.units) < self.group.width


@dataclass(frozen=True, eq=False)
class FilterSpace(Fact):
    """The choices for every group, by its name; the first one keeps all units.

    ``refused``: by layer, why its filters cannot be removed.
    """

    dependencies: Dependencies
    choices: Mapping[str, tuple[Keep, ...]]
    refused: Mapping[str, str]

    def removed(self, keeps: Mapping[str, Keep]) -> dict[str, Ids]:
        """The filters that these choices remove, by layer.

        Unlike labels, filters of a layer are the same before and after factorization.
        """
        removed: dict[str, list[Ids]] = {}
        for keep in keeps.values():
            units = np.setdiff1d(np.arange(keep.group.width), keep.units)
            for part in keep.group.producers:
                removed.setdefault(part.layer, []).append(part.where(units))
        return {
            layer: np.sort(np.concatenate(parts))
            for layer, parts in removed.items()
            if sum(map(len, parts))
        }

    def left(self, removed: Mapping[str, Ids]) -> dict[str, tuple[int, int]]:
        """The number of output channels of each op, before and after the filters are removed.

        Ops whose output has no labels are not listed.
        """
        gone = labels(self.dependencies, removed)
        return {
            ref.op: (len(of_tensor.ids), int(np.count_nonzero(~np.isin(of_tensor.ids, gone))))
            for ref, of_tensor in self.dependencies.labels.items()
            if of_tensor.axis is not None and ref.output == 0
        }


def counts(width: int, multiple: int, levels: int) -> list[int]:
    """The numbers of units that a group may keep: all, then about ``levels`` smaller ones.

    The smaller ones are multiples of ``multiple``, the vector width of the device.
    """
    step = multiple * max(1, round(width / (levels * multiple)))
    return [width, *sorted((count for count in range(step, width, step)), reverse=True)]


def labels(dependencies: Dependencies, removed: Mapping[str, Ids]) -> Ids:
    """The labels of the removed filters, which are given by layer."""
    by_layer = {**dependencies.channelwise, **dependencies.outputs}
    parts = [by_layer[layer][filters] for layer, filters in removed.items()]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.intp)


def prunable(
    graph: Graph,
    known: set[str],
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    whole_heads: bool = False,
) -> tuple[Dependencies, list[Group], dict[str, str]]:
    """The dependencies of a graph, the groups that can be pruned, and the reasons of other layers.

    A group can be pruned if the effect on the output can be measured. ``known``: the layers whose
    inputs can be sampled. ``keep``, ``only``, ``whole_heads``: see ``groups``. The reasons are by
    layer, for layers none of whose filters are in such a group.
    """
    dependencies = groups(graph, keep, only, whole_heads=whole_heads)
    multiplied = {frozenset((pair.first, pair.second)) for pair in pairs(graph) if pair.scores}
    measurable: list[Group] = []
    refused = dict(dependencies.refused)
    for group in dependencies.groups:
        reason = _unmeasurable(group, known, multiplied)
        if reason is None:
            measurable.append(group)
        else:
            refused |= {part.layer: reason for part in group.producers}
    free = {part.layer for group in measurable for part in group.producers}
    reasons = {layer: reason for layer, reason in refused.items() if layer not in free}
    return dependencies, measurable, reasons


def _unmeasurable(
    group: Group, known: set[str], multiplied: Collection[frozenset[str]]
) -> str | None:
    """The reason why the effect of pruning a group cannot be measured, or None if it can.

    The inputs of all its consumers must be known. It has none if its filters are ``multiplied``
    with each other, as queries and keys are.
    """
    unknown = [part.layer for part in group.consumers if part.layer not in known]
    if unknown:
        return f"the inputs of '{unknown[0]}' cannot be sampled"
    if group.consumers or frozenset(part.layer for part in group.producers) in multiplied:
        return None
    return "no layer with weights reads its filters"
