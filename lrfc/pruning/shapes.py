"""Rules for ops that move values: concatenation, reshaping, slicing, splitting, reduction."""

from __future__ import annotations

import numpy as np

from lrfc.ir.op import Op, Ref
from lrfc.pruning.heads import head_axes
from lrfc.pruning.labels import Call, Labels


def concatenate(call: Call) -> list[Labels]:
    """The labels side by side; unified where the tensors are joined along another axis."""
    rank = len(call.outputs[0].shape)
    axis = int(call.op.attrs.get("axis", -1)) % rank
    axes = {labels.axis for labels in call.labels} - {None}
    if len(axes) > 1:
        return call.freeze(f"its filters meet others on another axis in {call.title}")
    if not axes:
        return [Labels.fixed(f"the output of {call.title}")]
    (label_axis,) = axes
    assert label_axis is not None
    parts = []
    for labels, tensor in zip(call.labels, call.inputs, strict=True):
        if labels.axis is None:
            length = tensor.shape[label_axis]
            assert length is not None
            ids = call.walk.fresh(length)
            call.walk.freeze(ids, f"its filters meet {labels.source} in {call.title}")
        else:
            ids = labels.ids
        parts.append(ids)
    if label_axis == axis:
        return [Labels(label_axis, np.concatenate(parts))]
    for ids in parts:
        call.walk.unify(parts[0], ids)
    return [Labels(label_axis, parts[0])]


def reshaped(call: Call, order: tuple[int, ...] | None = None) -> list[Labels]:
    """The labels behind a Flatten or Reshape, after its operand's axes are put in ``order``.

    Channels that then lie along several axes keep labels along one of them only: the last axis,
    or that of the heads of an attention layer where whole heads are units.
    """
    source, shape, target = call.source, call.inputs[0].shape[1:], call.outputs[0].shape[1:]
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    if (
        None in shape
        or None in target
        or (call.op.shared is not None and call.op.kind == "Reshape")
    ):
        return call.freeze(
            f"its filters are reshaped by {call.title}, whose shape is not fixed"
            + (" for each call" if call.op.shared else "")
        )
    old_shape, new_shape = [n or 0 for n in shape], [n or 0 for n in target]
    ids = np.broadcast_to(
        source.ids.reshape([n if a == source.axis - 1 else 1 for a, n in enumerate(old_shape)]),
        old_shape,
    )
    ids = (ids if order is None else ids.transpose(order)).reshape(new_shape)
    varying = [axis for axis in range(len(new_shape)) if (ids != ids.take([0], axis)).any()]
    if not varying:
        return call.freeze(
            f"its filters are reshaped by {call.title}, which leaves no axis for them"
        )
    whole = len(varying) > 1 and call.walk.whole_heads
    heads = head_axes(call.walk.graph, Ref(call.op.name)) if whole else frozenset()
    axis = next((axis for axis in varying if axis + 1 in heads), varying[-1])
    table = np.moveaxis(ids, axis, 0).reshape(new_shape[axis], -1)
    if len(varying) > 1:
        call.walk.unify(table, table[:, :1])
    return [Labels(axis + 1, np.array(table[:, 0]))]


def flatten(call: Call) -> list[Labels]:
    """The labels of each flat position; Keras flattens with channels last."""
    rank = len(call.inputs[0].shape) - 1
    first = call.op.attrs.get("data_format") == "channels_first" and rank > 1
    return reshaped(call, (*range(1, rank), 0) if first else None)


def permute(call: Call) -> list[Labels]:
    """The labels on the axis that theirs is moved to."""
    axes = (0, *call.op.attrs["dims"]) if call.op.kind == "Permute" else call.op.attrs.get("axes")
    if call.source.axis is None:
        return [call.source]
    axes = tuple(reversed(range(len(call.outputs[0].shape)))) if axes is None else axes
    return [Labels([axis % len(axes) for axis in axes].index(call.source.axis), call.source.ids)]


def repeat_vector(call: Call) -> list[Labels]:
    """The labels on axis 2: (B, C) becomes (B, n, C)."""
    return [call.source if call.source.axis is None else Labels(2, call.source.ids)]


def reduce(call: Call) -> list[Labels]:
    """The labels behind a mean, sum or extreme over other axes."""
    source, rank, axis = call.source, len(call.inputs[0].shape), call.op.attrs.get("axis")
    reduced = (
        set(range(rank))
        if axis is None
        else {a % rank for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    )
    if source.axis in reduced:
        return call.freeze(f"its filters are read by {call.title}, which mixes them")
    if source.axis is None or call.op.attrs.get("keepdims"):
        return [source]
    return [Labels(source.axis - sum(a < source.axis for a in reduced), source.ids)]


def pad(call: Call) -> list[Labels]:
    """The labels with new ones in front and behind, for constant channels.

    The parameter-free shortcuts of the CIFAR ResNets pad channels with zeros. Their labels become
    those of the filters that are added to them.
    """
    source, widths = call.source, np.asarray(call.op.attrs["pad_width"])
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    if widths.shape != (len(call.inputs[0].shape), 2) or (
        widths[source.axis].any() and call.op.attrs.get("mode", "constant") != "constant"
    ):
        return call.freeze(f"its filters are padded by {call.title} with other values")
    before, after = (call.walk.fresh(int(width)) for width in widths[source.axis])
    return [Labels(source.axis, np.concatenate([before, source.ids, after]))]


def slices(op: Op, rank: int) -> list[slice] | None:
    """The index of an ops.GetItem as one slice for each axis; None if it is not made of slices."""
    args, kwargs = op.call or ((), {})
    key = args[1] if len(args) > 1 else kwargs.get("key")
    items = list(key) if isinstance(key, tuple | list) else [key]  # a list after loading
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    plain = [item for item in items if isinstance(item, slice)]
    return None if len(plain) < len(items) else [*plain, *[slice(None)] * (rank - len(plain))]


def expand(call: Call) -> list[Labels]:
    """The labels behind an op that inserts axes of length 1."""
    if call.source.axis is None:
        return [call.source]
    axis, rank = call.op.attrs["axis"], len(call.outputs[0].shape)
    inserted = {a % rank for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    remaining = [a for a in range(rank) if a not in inserted]
    return [Labels(remaining[call.source.axis], call.source.ids)]


def squeeze(call: Call) -> list[Labels]:
    """The labels behind an op that removes axes of length 1."""
    source, shape, axis = call.source, call.inputs[0].shape, call.op.attrs.get("axis")
    if axis is None:
        squeezed = {a for a, length in enumerate(shape) if length == 1}
    else:
        squeezed = {a % len(shape) for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    if source.axis in squeezed:
        return call.freeze(
            f"its filters are reshaped by {call.title}, which leaves no axis for them"
        )
    if source.axis is None:
        return [source]
    return [Labels(source.axis - sum(a < source.axis for a in squeezed), source.ids)]


def get_item(call: Call) -> list[Labels]:
    """The labels of a slice."""
    source, index = call.source, slices(call.op, len(call.inputs[0].shape))
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    if index is None or index[source.axis].step not in (None, 1):
        return call.freeze(
            f"its filters are read by {call.title}, whose index is not a plain slice"
        )
    ids = source.ids[index[source.axis]]
    if len(ids) < len(source.ids):
        call.walk.slices.append(ids)
    return [Labels(source.axis, ids)]


def split(call: Call) -> list[Labels]:
    """The labels of the parts; all labels for each part where another axis is split."""
    source, axis = call.source, int(call.op.attrs.get("axis", 0)) % len(call.inputs[0].shape)
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")] * len(call.outputs)
    if source.axis != axis:
        return [source] * len(call.outputs)
    ends = np.cumsum([t.shape[axis] or 0 for t in call.outputs])
    parts = np.split(source.ids, ends[:-1])
    call.walk.slices.extend(parts)
    return [Labels(axis, ids) for ids in parts]
