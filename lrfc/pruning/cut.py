"""The cut: a graph without some of its filters, and without everything that only they fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.factorization.einsum import Einsum
from lrfc.ir.graph import Graph
from lrfc.ir.kinds import names
from lrfc.ir.op import Array, Op, Ref
from lrfc.ir.ops import conv_geometry
from lrfc.pruning.groups import Dependencies, groups
from lrfc.pruning.labels import Ids
from lrfc.pruning.shapes import slices

Mask = NDArray[np.bool_]


def cut(graph: Graph, kept: Mapping[str, Ids], dependencies: Dependencies | None = None) -> Graph:
    """The graph with only the named groups' units at those indices; groups that are not named stay whole.

    It computes what the original computes with the removed units' inputs to their consumers set to
    zero. ``dependencies`` are the graph's own, where they are known already (group names may depend
    on the patterns given for them). UsageError when no unit is kept, or one does not exist.

    Given:
        conv = Conv2D(image) filters=8 -> (?, 8, 8, 8)
        head = Conv2D(conv) filters=5 -> (?, 8, 8, 5)
    Result of ``kept={"conv": [0, 3, 4]}``:
        conv = Conv2D(image) filters=3 -> (?, 8, 8, 3)
        head = Conv2D(conv) filters=5 -> (?, 8, 8, 5)
    """
    known = groups(graph) if dependencies is None else dependencies
    for name, units in kept.items():
        width = next((group.width for group in known.groups if group.name == name), None)
        if width is None:
            raise UsageError(f"there is no group of filters '{name}' in graph '{graph.name}'")
        if not len(units) or (np.diff(units) <= 0).any() or units[0] < 0 or units[-1] >= width:
            raise UsageError(
                f"the units to keep of '{name}' must be ascending indices below {width}, at"
                " least one"
            )
    return without(graph, known, known.removed(kept))


def without(graph: Graph, dependencies: Dependencies, removed: Ids) -> Graph:
    """The graph without the removed labels."""
    twin = Graph(graph.name)
    twin.structure, twin.compiled = graph.structure, graph.compiled
    smaller: dict[str, Mapping[str, Array]] = {}
    for op in graph:
        new = _Cut(graph, dependencies, removed, op)()
        if op.shared is not None and new is not op:  # all calls hold the very same weights
            new = replace(new, weights=smaller.setdefault(op.shared, new.weights))
        twin.add(new, graph.operands(op.name))
    twin.outputs = graph.outputs
    return twin


class _Cut:
    """One op on its way into the smaller graph."""

    def __init__(self, graph: Graph, dependencies: Dependencies, removed: Ids, op: Op) -> None:
        self.graph, self.op = graph, op
        self._dependencies, self._removed = dependencies, removed
        layer = graph.calls(op)[0].name
        self.made, self.carried, self.read = (
            self._left(notes.get(layer))
            for notes in (dependencies.made, dependencies.carried, dependencies.read)
        )

    def _left(self, ids: Ids | None) -> Mask | None:
        """Which indices stay; None where all do."""
        if ids is None:
            return None
        mask = ~np.isin(ids, self._removed)
        return None if mask.all() else mask

    def tensor(self, ref: Ref) -> tuple[int, Mask] | None:
        """The axis along which a tensor shrinks and what stays of it; None where it stays whole."""
        labels = self._dependencies.labels[ref]
        mask = self._left(labels.ids)
        return None if labels.axis is None or mask is None else (labels.axis, mask)

    @property
    def resized(self) -> bool:
        """Whether what the op reads or what it gives shrinks."""
        refs = (
            *self.graph.operands(self.op.name),
            *(Ref(self.op.name, i) for i in range(len(self.graph.tensors(self.op.name)))),
        )
        return any(self.tensor(ref) is not None for ref in refs)

    def __call__(self) -> Op:
        op = self.op
        rule = _RULES.get(op.kind)
        touched = self.made is not None or self.carried is not None or self.read is not None
        if rule is None or not (touched or (op.kind in _RESHAPERS and self.resized)):
            return op
        weights, attrs, call = dict(op.weights), dict[str, Any](), op.call
        result = rule(self, weights)
        if "call" in result:
            call = result.pop("call")
        attrs = {**op.attrs, **result}
        for array in weights.values():
            array.flags.writeable = False
        return replace(op, attrs=attrs, weights=weights, call=call)


Weights = dict[str, Array]


def _take(weights: Weights, name: str, mask: Mask | None, axis: int) -> None:
    if mask is not None and name in weights:
        weights[name] = np.ascontiguousarray(np.compress(mask, weights[name], axis=axis))


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _conv(cut: _Cut, weights: Weights) -> dict[str, Any]:
    op = cut.op
    at = conv_geometry(op, cut.graph.input_tensors(op.name)[0])
    if at.multiplier:
        _take(weights, "kernel", cut.carried, -2)
        _take(
            weights,
            "bias",
            None if cut.carried is None else np.repeat(cut.carried, at.multiplier),
            0,
        )
        return {}
    if cut.carried is None:
        made_axis, read_axis = (-2, -1) if at.transposed else (-1, -2)
        _take(weights, "kernel", cut.made, made_axis)
        _take(
            weights,
            "kernel",
            None if cut.read is None else cut.read[: at.inputs // at.groups],
            read_axis,
        )
        _take(weights, "bias", cut.made, 0)
        return {} if cut.made is None else {"filters": _count(cut.made)}
    _take(weights, "kernel", cut.carried, -1)
    _take(weights, "bias", cut.carried, 0)
    filters = _count(cut.carried)
    return {"filters": filters, "groups": filters * at.groups // at.outputs}


def _separable(cut: _Cut, weights: Weights) -> dict[str, Any]:
    _take(weights, "depthwise_kernel", cut.read, -2)
    _take(
        weights,
        "pointwise_kernel",
        None if cut.read is None else np.repeat(cut.read, int(cut.op["depth_multiplier"])),
        -2,
    )
    _take(weights, "pointwise_kernel", cut.made, -1)
    _take(weights, "bias", cut.made, 0)
    return {} if cut.made is None else {"filters": _count(cut.made)}


def _dense(cut: _Cut, weights: Weights) -> dict[str, Any]:
    _take(weights, "kernel", cut.read, 0)
    _take(weights, "kernel", cut.made, 1)
    _take(weights, "bias", cut.made, 0)
    return {} if cut.made is None else {"units": _count(cut.made)}


def _einsum(cut: _Cut, weights: Weights) -> dict[str, Any]:
    op = cut.op
    source_ref = cut.graph.operands(op.name)[0]
    source, result = cut.graph.input_tensors(op.name)[0], cut.graph.tensors(op.name)[0]
    einsum = Einsum.of(op, source)
    if cut.read is not None:
        read = cut.tensor(source_ref)
        assert read is not None
        letters = einsum.source.removeprefix("...")
        _take(
            weights,
            "kernel",
            read[1],
            einsum.weights.index(letters[read[0] - len(source.shape) + len(letters)]),
        )
    made = cut.tensor(Ref(op.name))
    if made is None:
        return {}
    axis, mask = made
    target = einsum.target.removeprefix("...")
    letter = target[axis - len(result.shape) + len(target)]
    _take(weights, "kernel", mask, einsum.weights.index(letter))
    if letter in einsum.bias_axes:
        _take(weights, "bias", mask, axis - len(result.shape) + weights["bias"].ndim)
    declared = einsum.output_shape
    if isinstance(declared, int):
        return {"output_shape": _count(mask)}
    return {
        "output_shape": tuple(
            _count(mask) if i - len(declared) == axis - len(result.shape) else n
            for i, n in enumerate(declared)
        )
    }


def _embedding(cut: _Cut, weights: Weights) -> dict[str, Any]:
    assert cut.made is not None
    _take(weights, "embeddings", cut.made, 1)
    return {"output_dim": _count(cut.made)}


def _normalization(cut: _Cut, weights: Weights) -> dict[str, Any]:
    for name in weights:
        _take(weights, name, cut.carried, 0)
    if cut.op.kind == "BatchNormalization":
        return {}
    assert cut.carried is not None
    return {"groups": int(cut.op.attrs.get("groups", 32)) * _count(cut.carried) // len(cut.carried)}


def _prelu(cut: _Cut, weights: Weights) -> dict[str, Any]:
    labels = cut.tensor(Ref(cut.op.name))
    assert labels is not None
    _take(weights, "alpha", labels[1], labels[0] - 1)
    return {}


def _rescaling(cut: _Cut, weights: Weights) -> dict[str, Any]:
    assert cut.carried is not None
    values = {
        name: cut.op.attrs[name]
        for name in ("scale", "offset")
        if np.size(cut.op.attrs.get(name, 0)) > 1
    }
    return {
        name: tuple(np.compress(cut.carried, np.reshape(value, -1)).tolist())
        for name, value in values.items()
    }


def _reshape(cut: _Cut, weights: Weights) -> dict[str, Any]:
    labels = cut.tensor(Ref(cut.op.name))
    assert labels is not None
    axis, mask = labels
    name, at = ("target_shape", axis - 1) if cut.op.kind == "Reshape" else ("newshape", axis)
    target = [int(n) for n in cut.op.attrs[name]]
    if target[at] != -1:
        target[at] = _count(mask)
    return {name: tuple(target)}


def _pad(cut: _Cut, weights: Weights) -> dict[str, Any]:
    labels = cut.tensor(Ref(cut.op.name))
    assert labels is not None
    axis, mask = labels
    widths = [[int(n) for n in pair] for pair in cut.op.attrs["pad_width"]]
    before, after = widths[axis]
    widths[axis] = [_count(mask[:before]), _count(mask[len(mask) - after :])]
    return {"pad_width": tuple(map(tuple, widths))}


def _get_item(cut: _Cut, weights: Weights) -> dict[str, Any]:
    """The slice counts in what is left."""
    source = cut.tensor(cut.graph.operands(cut.op.name)[0])
    assert source is not None
    axis, mask = source
    rank = len(cut.graph.input_tensors(cut.op.name)[0].shape)
    index = slices(cut.op, rank)
    assert index is not None
    start, stop, _ = index[axis].indices(len(mask))
    if index[axis] != slice(None):
        index[axis] = slice(_count(mask[:start]), _count(mask[:stop]), None)
    assert cut.op.call is not None
    return {
        "call": ((cut.op.call[0][0] if cut.op.call[0] else cut.op.call[1]["x"], tuple(index)), {})
    }


def _split(cut: _Cut, weights: Weights) -> dict[str, Any]:
    source = cut.tensor(cut.graph.operands(cut.op.name)[0])
    assert source is not None
    axis, mask = source
    shapes = [t.shape for t in cut.graph.tensors(cut.op.name)]
    if axis != int(cut.op.attrs.get("axis", 0)) % len(shapes[0]):
        return {}
    ends = np.cumsum([shape[axis] or 0 for shape in shapes])
    return {"indices_or_sections": tuple(_count(mask[:end]) for end in ends[:-1])}


_Rule = Callable[[_Cut, Weights], dict[str, Any]]

#: Ops without weights whose arguments name lengths.
_RESHAPERS: dict[str, _Rule] = {
    "Reshape": _reshape,
    "ops.Reshape": _reshape,
    "ops.Pad": _pad,
    "ops.GetItem": _get_item,
    "ops.Split": _split,
}

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(names("conv", "transposed", "depthwise"), _conv),
    **dict.fromkeys(names("separable"), _separable),
    **dict.fromkeys(names("dense"), _dense),
    **dict.fromkeys(names("einsum"), _einsum),
    **dict.fromkeys(names("embedding"), _embedding),
    "BatchNormalization": _normalization,
    "GroupNormalization": _normalization,
    "PReLU": _prelu,
    "Rescaling": _rescaling,
    **_RESHAPERS,
}
