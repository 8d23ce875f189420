"""What ops that move values about do to the labels of channels: concatenation, reshaping, slicing, reduction."""

from __future__ import annotations

import numpy as np

from lrfc.ir.op import Op
from lrfc.pruning.labels import Call, Labels


def concatenate(call: Call) -> list[Labels]:
    """Labels side by side, or equal where it is another axis that grows."""
    rank = len(call.outputs[0].shape)
    axis = int(call.op.attrs.get("axis", -1)) % rank
    axes = {labels.axis for labels in call.labels} - {None}
    if len(axes) > 1:
        return call.fix(f"its filters meet others on another axis in {call.title}")
    if not axes:
        return [Labels.fixed(f"the output of {call.title}")]
    (own,) = axes
    assert own is not None
    parts = []
    for labels, tensor in zip(call.labels, call.inputs, strict=True):
        if labels.axis is None:
            length = tensor.shape[own]
            assert length is not None
            ids = call.walk.fresh(length)
            call.walk.stay(ids, f"its filters meet {labels.source} in {call.title}")
        else:
            ids = labels.ids
        parts.append(ids)
    if own == axis:
        return [Labels(own, np.concatenate(parts))]
    for ids in parts:
        call.walk.unify(parts[0], ids)
    return [Labels(own, parts[0])]


def reshaped(call: Call, order: tuple[int, ...] | None = None) -> list[Labels]:
    """A Flatten or Reshape, of the source with its axes in ``order``.

    What then lies along several axes is cut along the last of them.
    """
    source, shape, target = call.source, call.inputs[0].shape[1:], call.outputs[0].shape[1:]
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    if (
        None in shape
        or None in target
        or (call.op.shared is not None and call.op.kind == "Reshape")
    ):
        return call.fix(
            f"its filters are reshaped by {call.title}, whose shape is not fixed"
            + (" for each call" if call.op.shared else "")
        )
    lengths, wanted = [n or 0 for n in shape], [n or 0 for n in target]
    laid = np.broadcast_to(
        source.ids.reshape([n if a == source.axis - 1 else 1 for a, n in enumerate(lengths)]),
        lengths,
    )
    table = (laid if order is None else laid.transpose(order)).reshape(wanted)
    varying = [axis for axis in range(len(wanted)) if (table != table.take([0], axis)).any()]
    if not varying:
        return call.fix(f"its filters are reshaped by {call.title}, which leaves no axis for them")
    last = np.moveaxis(table, varying[-1], 0).reshape(wanted[varying[-1]], -1)
    if len(varying) > 1:
        call.walk.unify(last, last[:, :1])
    return [Labels(varying[-1] + 1, np.array(last[:, 0]))]


def flatten(call: Call) -> list[Labels]:
    """A label for each flat position; Keras flattens channels last."""
    rank = len(call.inputs[0].shape) - 1
    first = call.op.attrs.get("data_format") == "channels_first" and rank > 1
    return reshaped(call, (*range(1, rank), 0) if first else None)


def permute(call: Call) -> list[Labels]:
    """The axis moves."""
    axes = (0, *call.op.attrs["dims"]) if call.op.kind == "Permute" else call.op.attrs.get("axes")
    if call.source.axis is None:
        return [call.source]
    axes = tuple(reversed(range(len(call.outputs[0].shape)))) if axes is None else axes
    return [Labels([axis % len(axes) for axis in axes].index(call.source.axis), call.source.ids)]


def repeat_vector(call: Call) -> list[Labels]:
    """(B, C) becomes (B, n, C)."""
    return [call.source if call.source.axis is None else Labels(2, call.source.ids)]


def reduce(call: Call) -> list[Labels]:
    """A mean, sum or extreme over other axes."""
    source, rank, axis = call.source, len(call.inputs[0].shape), call.op.attrs.get("axis")
    gone = (
        set(range(rank))
        if axis is None
        else {a % rank for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    )
    if source.axis in gone:
        return call.fix(f"its filters are read by {call.title}, which mixes them")
    if source.axis is None or call.op.attrs.get("keepdims"):
        return [source]
    return [Labels(source.axis - sum(a < source.axis for a in gone), source.ids)]


def pad(call: Call) -> list[Labels]:
    """Constant channels in front and behind, as in a parameter-free shortcut: new labels that go with what is added to them."""
    source, widths = call.source, np.asarray(call.op.attrs["pad_width"])
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    if widths.shape != (len(call.inputs[0].shape), 2) or (
        widths[source.axis].any() and call.op.attrs.get("mode", "constant") != "constant"
    ):
        return call.fix(f"its filters are padded by {call.title} with others")
    before, after = (call.walk.fresh(int(width)) for width in widths[source.axis])
    return [Labels(source.axis, np.concatenate([before, source.ids, after]))]


def slices(op: Op, rank: int) -> list[slice] | None:
    """The index of an ops.GetItem as one slice an axis; None where it is anything else."""
    args, kwargs = op.call or ((), {})
    key = args[1] if len(args) > 1 else kwargs.get("key")
    items = list(key) if isinstance(key, tuple | list) else [key]  # a list after loading
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    plain = [item for item in items if isinstance(item, slice)]
    return None if len(plain) < len(items) else [*plain, *[slice(None)] * (rank - len(plain))]


def expand(call: Call) -> list[Labels]:
    """New axes of length 1."""
    if call.source.axis is None:
        return [call.source]
    axis, rank = call.op.attrs["axis"], len(call.outputs[0].shape)
    new = {a % rank for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    old = [a for a in range(rank) if a not in new]
    return [Labels(old[call.source.axis], call.source.ids)]


def squeeze(call: Call) -> list[Labels]:
    """Axes of length 1 go."""
    shape, axis = call.inputs[0].shape, call.op.attrs.get("axis")
    if axis is None:
        gone = {a for a, length in enumerate(shape) if length == 1}
    else:
        gone = {a % len(shape) for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    if call.source.axis in gone:
        return call.fix(f"its filters are reshaped by {call.title}, which leaves no axis for them")
    return [
        (
            call.source
            if call.source.axis is None
            else Labels(call.source.axis - sum(a < call.source.axis for a in gone), call.source.ids)
        )
    ]


def get_item(call: Call) -> list[Labels]:
    """A slice of the labels."""
    source, index = call.source, slices(call.op, len(call.inputs[0].shape))
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    if index is None or index[source.axis].step not in (None, 1):
        return call.fix(f"its filters are read by {call.title}, whose index is not a plain slice")
    ids = source.ids[index[source.axis]]
    if len(ids) < len(source.ids):
        call.walk.slices.append(ids)
    return [Labels(source.axis, ids)]


def split(call: Call) -> list[Labels]:
    """The labels in parts, or the same ones for each part where another axis is split."""
    source, axis = call.source, int(call.op.attrs.get("axis", 0)) % len(call.inputs[0].shape)
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")] * len(call.outputs)
    if source.axis != axis:
        return [source] * len(call.outputs)
    ends = np.cumsum([t.shape[axis] or 0 for t in call.outputs])
    parts = np.split(source.ids, ends[:-1])
    call.walk.slices.extend(parts)
    return [Labels(axis, ids) for ids in parts]
