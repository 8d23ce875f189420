"""What may be chosen for each group of filters: which units stay, and what that does to the network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.pruning.groups import Dependencies, Group, groups
from lrfc.pruning.labels import Ids
from lrfc.state import Fact


@dataclass(frozen=True, eq=False)
class Keep:
    """One choice for a group of filters: the indices of the units that stay, and the divergence of the network's output that it predicts."""

    group: Group
    units: Ids
    divergence: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether any unit goes."""
        return len(self.units) < self.group.width


@dataclass(frozen=True, eq=False)
class FilterSpace(Fact):
    """The choices of every group; the first keeps all units.

    ``refused`` says why the filters of the other layers stay.
    """

    dependencies: Dependencies
    choices: Mapping[str, tuple[Keep, ...]]
    refused: Mapping[str, str]

    def removed(self, keeps: Mapping[str, Keep]) -> dict[str, Ids]:
        """The filters that go, by the layer that makes them: the form in which they are known after factorization, too."""
        gone: dict[str, list[Ids]] = {}
        for keep in keeps.values():
            left = np.setdiff1d(np.arange(keep.group.width), keep.units)
            for part in keep.group.producers:
                gone.setdefault(part.layer, []).append(part.where(left))
        return {
            layer: np.sort(np.concatenate(parts))
            for layer, parts in gone.items()
            if sum(map(len, parts))
        }

    def left(self, removed: Mapping[str, Ids]) -> dict[str, tuple[int, int]]:
        """How many channels each op gives, and how many without the filters that go; what cannot be cut along any axis is not named."""
        gone = labels(self.dependencies, removed)
        return {
            ref.op: (len(each.ids), int(np.count_nonzero(~np.isin(each.ids, gone))))
            for ref, each in self.dependencies.labels.items()
            if each.axis is not None and ref.output == 0
        }


def counts(width: int, multiple: int, levels: int) -> list[int]:
    """How many units may stay: about ``levels`` multiples of what the device computes at once, and all of them first."""
    step = multiple * max(1, round(width / (levels * multiple)))
    return [width, *sorted((count for count in range(step, width, step)), reverse=True)]


def labels(dependencies: Dependencies, removed: Mapping[str, Ids]) -> Ids:
    """The labels of the filters that go, given by the layer that makes them."""
    notes = {**dependencies.carried, **dependencies.made}
    found = [notes[layer][filters] for layer, filters in removed.items()]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.intp)


def prunable(
    graph: Graph, known: set[str], keep: Sequence[str] = (), only: Sequence[str] = ()
) -> tuple[Dependencies, list[Group], dict[str, str]]:
    """The groups of a graph, those of them whose effect can be measured, and why the filters of each layer in none of these stay.

    ``known``: the layers whose inputs can be sampled. ``keep``, ``only``: see ``groups``.
    """
    found = groups(graph, keep, only)
    wanted: list[Group] = []
    refused = dict(found.refused)
    for group in found.groups:
        reason = _unmeasured(group, known)
        if reason is None:
            wanted.append(group)
        else:
            refused |= {part.layer: reason for part in group.producers}
    free = {part.layer for group in wanted for part in group.producers}
    return found, wanted, {layer: reason for layer, reason in refused.items() if layer not in free}


def _unmeasured(group: Group, known: set[str]) -> str | None:
    """Why a group's effect cannot be measured, None where it can: every layer that reads it must be one whose inputs are sampled."""
    unknown = [part.layer for part in group.consumers if part.layer not in known]
    if unknown:
        return f"what '{unknown[0]}' reads cannot be sampled"
    return None if group.consumers else "no layer with weights reads its filters"
