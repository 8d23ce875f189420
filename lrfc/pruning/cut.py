"""Removal of units: a smaller graph without the filters, and the weights that depend on them."""

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
    """The graph in which each named group keeps only the units at these indices.

    It computes what the original computes when the consumers read zeros in the place of the
    removed channels. Groups that are not named keep all units. ``dependencies`` are those of the
    graph, if already computed (the names of groups may depend on the patterns they were computed
    with). UsageError if a group would keep no unit, or a unit that does not exist.

    Given:
        conv = Conv2D(image) filters=8 -> (?, 8, 8, 8)
        head = Conv2D(conv) filters=5 -> (?, 8, 8, 5)
    Result of ``kept={"conv": [0, 3, 4]}``:
        conv = Conv2D(image) filters=3 -> (?, 8, 8, 3)
        head = Conv2D(conv) filters=5 -> (?, 8, 8, 5)
    """
    if dependencies is None:
        dependencies = groups(graph)
    for name, units in kept.items():
        width = next((group.width for group in dependencies.groups if group.name == name), None)
        if width is None:
            raise UsageError(f"there is no group of filters '{name}' in graph '{graph.name}'")
        if not len(units) or (np.diff(units) <= 0).any() or units[0] < 0 or units[-1] >= width:
            raise UsageError(
                f"the units to keep of '{name}' must be ascending indices below {width}, at"
                " least one"
            )
    return without(graph, dependencies, dependencies.removed(kept))


def without(graph: Graph, dependencies: Dependencies, removed: Ids) -> Graph:
    """The graph without the removed labels."""
    smaller = Graph(graph.name)
    smaller.structure, smaller.compiled = graph.structure, graph.compiled
    shared: dict[str, Mapping[str, Array]] = {}
    for op in graph:
        new = _Cut(graph, dependencies, removed, op)()
        if op.shared is not None and new is not op:  # all calls have the same arrays as weights
            new = replace(new, weights=shared.setdefault(op.shared, new.weights))
        smaller.add(new, graph.operands(op.name))
    smaller.outputs = graph.outputs
    return smaller


class _Cut:
    """One op and the masks of its remaining outputs, channels and inputs, None for "all"."""

    def __init__(self, graph: Graph, dependencies: Dependencies, removed: Ids, op: Op) -> None:
        self.graph, self.op = graph, op
        self._dependencies, self._removed = dependencies, removed
        layer = graph.calls(op)[0].name
        self.outputs, self.channelwise, self.inputs = (
            self._mask(by_layer.get(layer))
            for by_layer in (dependencies.outputs, dependencies.channelwise, dependencies.inputs)
        )

    def _mask(self, ids: Ids | None) -> Mask | None:
        """The mask of the indices that remain; None if all do."""
        if ids is None:
            return None
        mask = ~np.isin(ids, self._removed)
        return None if mask.all() else mask

    def tensor(self, ref: Ref) -> tuple[int, Mask] | None:
        """The axis along which a tensor shrinks, and its mask; None if it does not shrink."""
        labels = self._dependencies.labels[ref]
        mask = self._mask(labels.ids)
        return None if labels.axis is None or mask is None else (labels.axis, mask)

    @property
    def resized(self) -> bool:
        """Whether an operand or an output of the op shrinks."""
        refs = (
            *self.graph.operands(self.op.name),
            *(Ref(self.op.name, i) for i in range(len(self.graph.tensors(self.op.name)))),
        )
        return any(self.tensor(ref) is not None for ref in refs)

    def __call__(self) -> Op:
        """The smaller op; the same object if nothing of it changes."""
        op = self.op
        rule = _RULES.get(op.kind)
        masked = any(mask is not None for mask in (self.outputs, self.channelwise, self.inputs))
        if rule is None or not (masked or (op.kind in _RESHAPERS and self.resized)):
            return op
        weights, attrs, call = dict(op.weights), dict[str, Any](), op.call
        result = rule(self, weights)
        if "call" in result:
            call = result.pop("call")
        attrs = {**op.attrs, **result}
        for array in weights.values():
            array.flags.writeable = False
        return replace(op, attrs=attrs, weights=weights, call=call)


#: Weights of an op by name, which a rule shrinks in place. It returns the attributes that change.
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
        _take(weights, "kernel", cut.channelwise, -2)
        _take(
            weights,
            "bias",
            None if cut.channelwise is None else np.repeat(cut.channelwise, at.multiplier),
            0,
        )
        return {}
    if cut.channelwise is None:
        output_axis, input_axis = (-2, -1) if at.transposed else (-1, -2)
        _take(weights, "kernel", cut.outputs, output_axis)
        _take(
            weights,
            "kernel",
            None if cut.inputs is None else cut.inputs[: at.inputs // at.groups],
            input_axis,
        )
        _take(weights, "bias", cut.outputs, 0)
        return {} if cut.outputs is None else {"filters": _count(cut.outputs)}
    _take(weights, "kernel", cut.channelwise, -1)
    _take(weights, "bias", cut.channelwise, 0)
    filters = _count(cut.channelwise)
    return {"filters": filters, "groups": filters * at.groups // at.outputs}


def _separable(cut: _Cut, weights: Weights) -> dict[str, Any]:
    _take(weights, "depthwise_kernel", cut.inputs, -2)
    _take(
        weights,
        "pointwise_kernel",
        None if cut.inputs is None else np.repeat(cut.inputs, int(cut.op["depth_multiplier"])),
        -2,
    )
    _take(weights, "pointwise_kernel", cut.outputs, -1)
    _take(weights, "bias", cut.outputs, 0)
    return {} if cut.outputs is None else {"filters": _count(cut.outputs)}


def _dense(cut: _Cut, weights: Weights) -> dict[str, Any]:
    _take(weights, "kernel", cut.inputs, 0)
    _take(weights, "kernel", cut.outputs, 1)
    _take(weights, "bias", cut.outputs, 0)
    return {} if cut.outputs is None else {"units": _count(cut.outputs)}


def _einsum(cut: _Cut, weights: Weights) -> dict[str, Any]:
    op = cut.op
    source_ref = cut.graph.operands(op.name)[0]
    source, result = cut.graph.input_tensors(op.name)[0], cut.graph.tensors(op.name)[0]
    einsum = Einsum.of(op, source)
    if cut.inputs is not None:
        shrunk = cut.tensor(source_ref)
        assert shrunk is not None
        axis, mask = shrunk
        letters = einsum.source.removeprefix("...")
        letter = letters[axis - len(source.shape) + len(letters)]
        _take(weights, "kernel", mask, einsum.weights.index(letter))
    shrunk = cut.tensor(Ref(op.name))
    if shrunk is None:
        return {}
    axis, mask = shrunk
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
    assert cut.outputs is not None
    _take(weights, "embeddings", cut.outputs, 1)
    return {"output_dim": _count(cut.outputs)}


def _normalization(cut: _Cut, weights: Weights) -> dict[str, Any]:
    for name in weights:
        _take(weights, name, cut.channelwise, 0)
    if cut.op.kind == "BatchNormalization":
        return {}
    assert cut.channelwise is not None
    return {
        "groups": int(cut.op.attrs.get("groups", 32))
        * _count(cut.channelwise)
        // len(cut.channelwise)
    }


def _prelu(cut: _Cut, weights: Weights) -> dict[str, Any]:
    labels = cut.tensor(Ref(cut.op.name))
    assert labels is not None
    _take(weights, "alpha", labels[1], labels[0] - 1)
    return {}


def _rescaling(cut: _Cut, weights: Weights) -> dict[str, Any]:
    assert cut.channelwise is not None
    values = {
        name: cut.op.attrs[name]
        for name in ("scale", "offset")
        if np.size(cut.op.attrs.get(name, 0)) > 1
    }
    return {
        name: tuple(np.compress(cut.channelwise, np.reshape(value, -1)).tolist())
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
    """The same slice, in indices of the remaining channels."""
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

#: Ops without weights whose arguments contain the length of an axis.
_RESHAPERS: dict[str, _Rule] = {
    "Reshape": _reshape,
    "ops.Reshape": _reshape,
    "ops.Pad": _pad,
    "ops.GetItem": _get_item,
    "ops.Split": _split,
}

#: All ops whose weights or arguments depend on the number of channels.
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
