"""Dependency groups: the filters that can only be cut together, and what has to be cut with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.pruning.labels import Call, Ids, Labels, Walk
from lrfc.pruning.rules import follow


@dataclass(frozen=True, eq=False)
class Part:
    """A layer's share in a group: ``units[i]`` is the unit that index i belongs to, −1 where it belongs to no unit of the group.

    Indices are a producer's filters, a member's channels, a consumer's input channels (for a Dense
    behind a Flatten, each of its rows).
    """

    layer: str
    units: Ids

    def where(self, chosen: Sequence[int] | Ids) -> Ids:
        """The indices that belong to the chosen units, ascending."""
        return np.flatnonzero(np.isin(self.units, chosen))


@dataclass(frozen=True, eq=False)
class Group:
    """Filters that are cut together, in ``width`` units: for each unit, some filters of every producer.

    ``producers`` make the units, ``members`` hold weights for them channel by channel (BatchNorm,
    depthwise and other grouped convolutions, PReLU) and ``consumers`` sum over them. A layer stands
    there once, under the name of its first call. ``classes`` are the units' labels in
    ``Dependencies.labels``.
    """

    name: str
    width: int
    producers: tuple[Part, ...]
    members: tuple[Part, ...]
    consumers: tuple[Part, ...]
    classes: Ids


@dataclass(frozen=True, eq=False)
class Dependencies:
    """The groups in execution order of their first producers, and why each other layer's filters stay.

    ``labels`` says for each tensor along which axis it shrinks, and which unit each index carries;
    ``made``, ``carried`` and ``read`` say the same of each layer's filters, channel weights and
    input channels.
    """

    groups: tuple[Group, ...]
    refused: Mapping[str, str]
    labels: Mapping[Ref, Labels]
    made: Mapping[str, Ids]
    carried: Mapping[str, Ids]
    read: Mapping[str, Ids]

    def __getitem__(self, name: str) -> Group:
        """The group of that name; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def removed(self, kept: Mapping[str, Ids]) -> Ids:
        """The labels that go when these units of the named groups are kept."""
        gone = [np.delete(self[name].classes, units) for name, units in kept.items()]
        return np.concatenate(gone) if gone else np.empty(0, np.intp)

    def survivors(self, removed: Ids) -> dict[str, Ids]:
        """The channels that each layer with channel weights (BatchNorm, depthwise, ...) keeps; those that lose none are not named."""
        masks = {layer: ~np.isin(ids, removed) for layer, ids in self.carried.items()}
        return {layer: np.flatnonzero(mask) for layer, mask in masks.items() if not mask.all()}

    def shape(self, graph: Graph, ref: Ref, removed: Ids) -> tuple[int | None, ...]:
        """The shape of a tensor without the removed labels."""
        labels, shape = self.labels[ref], list(graph.tensor(ref).shape)
        if labels.axis is not None:
            shape[labels.axis] = int(np.count_nonzero(~np.isin(labels.ids, removed)))
        return tuple(shape)


def groups(
    graph: Graph, keep: Sequence[str] = (), only: Sequence[str] = (), like: Graph | None = None
) -> Dependencies:
    """The dependency groups of a graph.

    Every channel of every tensor carries a label; each op says which labels its outputs carry and
    which of those that it reads must be the same one. ``keep`` are patterns of ops whose inputs and
    outputs stay whole; with ``only``, units stay unless all their producers match. The model's
    inputs and outputs stay. ``like``: the graph before its factorization; its filters go together
    as they did.
    """
    walk = Walk(graph, like)
    labels: dict[Ref, Labels] = {}
    for op in graph:
        operands = graph.operands(op.name)
        found = follow(
            Call(
                walk,
                op,
                [labels[ref] for ref in operands],
                graph.input_tensors(op.name),
                graph.tensors(op.name),
            )
        )
        labels.update({Ref(op.name, i): each for i, each in enumerate(found)})
        pattern = next(
            (p for p in keep if any(fnmatchcase(call.name, p) for call in graph.calls(op))), None
        )
        if pattern is not None:
            for ref in (*operands, *(Ref(op.name, i) for i in range(len(found)))):
                reader = "" if ref.op == op.name else f"read by '{op.name}', which is "
                walk.stay(labels[ref].ids, f"its filters are {reader}kept by --keep {pattern}")
    for ref in graph.outputs:
        walk.stay(labels[ref].ids, f"its filters are the model's output '{ref}'", foremost=True)
    if only:
        for layer, ids in walk.made.items():
            if not any(
                fnmatchcase(call.name, p) for call in graph.calls(graph.op(layer)) for p in only
            ):
                walk.stay(
                    ids, f"its filters include those of '{layer}', which is not named by --only"
                )
    classes, reasons = walk.classes()
    made, carried, read = (
        {layer: classes[ids] for layer, ids in notes.items()}
        for notes in (walk.made, walk.carried, walk.read)
    )
    resolved = {
        ref: Labels(each.axis, classes[each.ids], each.source) for ref, each in labels.items()
    }
    found_groups = _gather(made, carried, read, [classes[ids] for ids in walk.slices], reasons)
    return Dependencies(
        found_groups,
        _refused(graph, walk, made, reasons, found_groups),
        resolved,
        made,
        carried,
        read,
    )


def _gather(
    made: Mapping[str, Ids],
    carried: Mapping[str, Ids],
    read: Mapping[str, Ids],
    slices: Sequence[Ids],
    reasons: Mapping[int, str],
) -> tuple[Group, ...]:
    """Classes that come from the same layers, and pass through the same slices, make a group; a group of one unit is none.

    As each group keeps a unit, so does each tensor, also one that is a slice of what a layer makes.
    """
    producers: dict[int, tuple[str, ...]] = {}
    for layer, ids in made.items():
        for each in dict.fromkeys(ids.tolist()):
            if each not in reasons:
                producers[each] = (*producers.get(each, ()), layer)
    inside: dict[int, set[int]] = {}
    for number, ids in enumerate(slices):
        for each in np.unique(ids).tolist():
            inside.setdefault(each, set()).add(number)
    members: dict[tuple[tuple[str, ...], frozenset[int]], list[int]] = {}
    for each, layers in producers.items():
        members.setdefault((layers, frozenset(inside.get(each, ()))), []).append(each)
    kept: list[tuple[str, list[int]]] = []
    names: dict[str, int] = {}
    for (layers, _), classes in members.items():
        names[layers[0]] = names.get(layers[0], 0) + 1
        if len(classes) > 1:
            kept.append(
                (layers[0] if names[layers[0]] == 1 else f"{layers[0]}#{names[layers[0]]}", classes)
            )
    parts = [_parts(notes, [classes for _, classes in kept]) for notes in (made, carried, read)]
    return tuple(
        Group(
            name,
            len(classes),
            tuple(parts[0][number]),
            tuple(parts[1][number]),
            tuple(parts[2][number]),
            np.array(classes, np.intp),
        )
        for number, (name, classes) in enumerate(kept)
    )


def _parts(notes: Mapping[str, Ids], groups_of: Sequence[Sequence[int]]) -> list[list[Part]]:
    """Each group's parts among the layers' labels."""
    count = 1 + max((int(ids.max(initial=0)) for ids in notes.values()), default=0)
    count = max(count, 1 + max((max(classes) for classes in groups_of), default=0))
    group, unit = np.full(count, -1), np.full(count, -1)
    for number, classes in enumerate(groups_of):
        group[classes], unit[classes] = number, np.arange(len(classes))
    found: list[list[Part]] = [[] for _ in groups_of]
    for layer, ids in notes.items():
        for number in np.unique(group[ids]).tolist():
            if number >= 0:
                found[number].append(Part(layer, np.where(group[ids] == number, unit[ids], -1)))
    return found


def _refused(
    graph: Graph,
    walk: Walk,
    made: Mapping[str, Ids],
    reasons: Mapping[int, str],
    found: Sequence[Group],
) -> dict[str, str]:
    """Why the filters of each layer that is in no group stay."""
    grouped = {part.layer for group in found for part in group.producers}
    refused = {}
    for op in graph.layers():
        if not op.info.has_filters or op.origin is not None or op.name in grouped:
            continue
        refused[op.name] = _reason(op, made.get(op.name), reasons)
    return refused


def _reason(op: Op, ids: Ids | None, reasons: Mapping[int, str]) -> str:
    if ids is None:
        return (
            "its filters go with the channels that it reads"
            if op.info.family in ("conv", "transposed")
            else "it is not a plain projection"
        )
    if len(ids) == 1:
        return "it has one filter"
    known = next((reasons[each] for each in ids.tolist() if each in reasons), None)
    return "its filters all depend on one another" if known is None else known
