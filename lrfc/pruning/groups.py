"""Dependency groups: filters of several layers that can only be removed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.pruning.labels import Call, Ids, Labels, Walk
from lrfc.pruning.rules import follow


@dataclass(frozen=True, eq=False)
class Part:
    """A layer's indices in a group: ``units[i]`` is the unit of index i, −1 if it has none.

    The indices are a producer's filters, a member's channels, or a consumer's input channels (of a
    Dense behind a Flatten, the rows of its kernel).
    """

    layer: str
    units: Ids

    def where(self, chosen: Sequence[int] | Ids) -> Ids:
        """The indices that belong to the chosen units, ascending."""
        return np.flatnonzero(np.isin(self.units, chosen))


@dataclass(frozen=True, eq=False)
class Group:
    """A dependency group of ``width`` units; a unit is one or more filters of every producer.

    ``producers`` compute the channels, ``members`` have weights for them channel by channel
    (BatchNorm, depthwise and other grouped convolutions, PReLU), and ``consumers`` sum over them.
    A layer is listed once, under the name of its first call. ``classes`` are the units' labels in
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
    """The groups in execution order of their first producers, and the layers in no group.

    ``refused``: by layer, why none of its filters can be removed. ``labels``: by tensor, the axis
    that shrinks and the label of each index along it. ``outputs``, ``channelwise`` and ``inputs``:
    by layer, the labels of its filters, of its channel weights, and of its input channels.
    ``whole_heads``: see ``groups``.
    """

    groups: tuple[Group, ...]
    refused: Mapping[str, str]
    labels: Mapping[Ref, Labels]
    outputs: Mapping[str, Ids]
    channelwise: Mapping[str, Ids]
    inputs: Mapping[str, Ids]
    whole_heads: bool = False

    def __getitem__(self, name: str) -> Group:
        """The group with that name; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def removed(self, kept: Mapping[str, Ids]) -> Ids:
        """The labels that are removed when the named groups keep only these units."""
        removed = [np.delete(self[name].classes, units) for name, units in kept.items()]
        return np.concatenate(removed) if removed else np.empty(0, np.intp)

    def survivors(self, removed: Ids) -> dict[str, Ids]:
        """The channels that each layer with channel weights (BatchNorm, depthwise, ...) keeps.

        Layers that lose no channel are not listed.
        """
        masks = {layer: ~np.isin(ids, removed) for layer, ids in self.channelwise.items()}
        return {layer: np.flatnonzero(mask) for layer, mask in masks.items() if not mask.all()}

    def shape(self, graph: Graph, ref: Ref, removed: Ids) -> tuple[int | None, ...]:
        """The shape of a tensor without the removed labels."""
        labels, shape = self.labels[ref], list(graph.tensor(ref).shape)
        if labels.axis is not None:
            shape[labels.axis] = int(np.count_nonzero(~np.isin(labels.ids, removed)))
        return tuple(shape)


def groups(
    graph: Graph,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    like: Graph | None = None,
    *,
    whole_heads: bool = False,
) -> Dependencies:
    """The dependency groups of a graph.

    Every index along the channel axis of a tensor has a label. The rule of each op derives the
    labels of its outputs from those of its operands, and unifies labels that can only be removed
    together. The inputs and outputs of the model are frozen, and so are the inputs and outputs of
    ops that match a pattern of ``keep``. With ``only``, a unit is frozen unless all its producers
    match a pattern of it. ``like``: the graph before its factorization, whose grouped
    convolutions define the units. ``whole_heads``: a unit of an attention layer is a head;
    otherwise it is a dimension, of all its heads.
    """
    walk = Walk(graph, like, whole_heads=whole_heads)
    labels = _labels(walk, graph, keep)
    for ref in graph.outputs:
        walk.freeze(labels[ref].ids, f"its filters are the model's output '{ref}'", foremost=True)
    if only:
        _freeze_others(walk, graph, only)
    classes, reasons = walk.classes()
    outputs, channelwise, inputs = (
        {layer: classes[ids] for layer, ids in by_layer.items()}
        for by_layer in (walk.outputs, walk.channelwise, walk.inputs)
    )
    found = _gather(outputs, channelwise, inputs, [classes[ids] for ids in walk.slices], reasons)
    return Dependencies(
        found,
        _refused(graph, outputs, reasons, found),
        {ref: replace(old, ids=classes[old.ids]) for ref, old in labels.items()},
        outputs,
        channelwise,
        inputs,
        whole_heads,
    )


def _labels(walk: Walk, graph: Graph, keep: Sequence[str]) -> dict[Ref, Labels]:
    """The labels of every tensor; ops that match ``keep`` freeze theirs."""
    labels: dict[Ref, Labels] = {}
    for op in graph:
        operands = graph.operands(op.name)
        outputs = follow(
            Call(
                walk,
                op,
                [labels[ref] for ref in operands],
                graph.input_tensors(op.name),
                graph.tensors(op.name),
            )
        )
        labels.update({Ref(op.name, i): of_output for i, of_output in enumerate(outputs)})
        pattern = next(
            (p for p in keep if any(fnmatchcase(call.name, p) for call in graph.calls(op))), None
        )
        if pattern is not None:
            for ref in (*operands, *(Ref(op.name, i) for i in range(len(outputs)))):
                reader = "" if ref.op == op.name else f"read by '{op.name}', which is "
                walk.freeze(labels[ref].ids, f"its filters are {reader}kept by --keep {pattern}")
    return labels


def _freeze_others(walk: Walk, graph: Graph, only: Sequence[str]) -> None:
    """Freeze the filters of layers that match no pattern of ``only``."""
    for layer, ids in walk.outputs.items():
        if not any(
            fnmatchcase(call.name, p) for call in graph.calls(graph.op(layer)) for p in only
        ):
            walk.freeze(
                ids, f"its filters include those of '{layer}', which is not named by --only"
            )


def _gather(
    outputs: Mapping[str, Ids],
    channelwise: Mapping[str, Ids],
    inputs: Mapping[str, Ids],
    slices: Sequence[Ids],
    reasons: Mapping[int, str],
) -> tuple[Group, ...]:
    """The groups: classes with the same producers and in the same slices, at least two of them.

    Every group keeps a unit. Since a slice of a tensor has groups of its own, every slice keeps a
    channel, too.
    """
    named = _named(_by_origin(outputs, slices, reasons))
    parts = [
        _parts(by_layer, [classes for _, classes in named])
        for by_layer in (outputs, channelwise, inputs)
    ]
    return tuple(
        Group(
            name,
            len(classes),
            tuple(parts[0][number]),
            tuple(parts[1][number]),
            tuple(parts[2][number]),
            np.array(classes, np.intp),
        )
        for number, (name, classes) in enumerate(named)
    )


#: The producers of a class, and the numbers of the slices that it is in.
_Origin = tuple[tuple[str, ...], frozenset[int]]


def _by_origin(
    outputs: Mapping[str, Ids], slices: Sequence[Ids], reasons: Mapping[int, str]
) -> dict[_Origin, list[int]]:
    """The classes that are not frozen, by their origin."""
    producers: dict[int, tuple[str, ...]] = {}
    for layer, ids in outputs.items():
        for label in dict.fromkeys(ids.tolist()):
            if label not in reasons:
                producers[label] = (*producers.get(label, ()), layer)
    containing: dict[int, set[int]] = {}
    for number, ids in enumerate(slices):
        for label in np.unique(ids).tolist():
            containing.setdefault(label, set()).add(number)
    by_origin: dict[_Origin, list[int]] = {}
    for label, layers in producers.items():
        origin = (layers, frozenset(containing.get(label, ())))
        by_origin.setdefault(origin, []).append(label)
    return by_origin


def _named(by_origin: Mapping[_Origin, list[int]]) -> list[tuple[str, list[int]]]:
    """The groups of more than one unit, named after their first producer: "conv", "conv#2"."""
    named: list[tuple[str, list[int]]] = []
    counts: dict[str, int] = {}
    for (layers, _), classes in by_origin.items():
        first = layers[0]
        counts[first] = counts.get(first, 0) + 1
        if len(classes) > 1:
            named.append((first if counts[first] == 1 else f"{first}#{counts[first]}", classes))
    return named


def _parts(by_layer: Mapping[str, Ids], groups_of: Sequence[Sequence[int]]) -> list[list[Part]]:
    """The parts of each group among the labels of the layers."""
    count = 1 + max((int(ids.max(initial=0)) for ids in by_layer.values()), default=0)
    count = max(count, 1 + max((max(classes) for classes in groups_of), default=0))
    group, unit = np.full(count, -1), np.full(count, -1)
    for number, classes in enumerate(groups_of):
        group[classes], unit[classes] = number, np.arange(len(classes))
    parts: list[list[Part]] = [[] for _ in groups_of]
    for layer, ids in by_layer.items():
        for number in np.unique(group[ids]).tolist():
            if number >= 0:
                parts[number].append(Part(layer, np.where(group[ids] == number, unit[ids], -1)))
    return parts


def _refused(
    graph: Graph,
    outputs: Mapping[str, Ids],
    reasons: Mapping[int, str],
    found: Sequence[Group],
) -> dict[str, str]:
    """The reason of each layer that has filters and is in no group."""
    grouped = {part.layer for group in found for part in group.producers}
    refused = {}
    for op in graph.layers():
        if not op.info.has_filters or op.origin is not None or op.name in grouped:
            continue
        refused[op.name] = _reason(op, outputs.get(op.name), reasons)
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
    frozen = next((reasons[label] for label in ids.tolist() if label in reasons), None)
    return "its filters all depend on one another" if frozen is None else frozen
