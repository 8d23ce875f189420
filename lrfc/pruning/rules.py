"""Rules that derive the labels of an op's outputs from those of its operands, one per op kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lrfc.factorization.einsum import Einsum
from lrfc.ir.kinds import kind_of, names
from lrfc.ir.op import Op, Shape, Slot
from lrfc.ir.ops import ELEMENTWISE, conv_geometry
from lrfc.pruning import heads, shapes
from lrfc.pruning.labels import Call, Ids, Labels

Rule = Callable[[Call], list[Labels]]


def channel_axis(op: Op, rank: int) -> int:
    """The axis of the channels of a layer that has a data format."""
    return 1 if op.attrs.get("data_format") == "channels_first" else rank - 1


def positions(groups: int, inputs: int, outputs: int) -> bool:
    """Whether a unit of a grouped convolution is one position in every group.

    It is where groups are few and wide; otherwise a unit is a whole group.
    """
    return groups < min(inputs, outputs) // groups


# -- layers with kernels ---------------------------------------------------------------------------


def _activated(call: Call, labels: Labels) -> list[Labels]:
    """The output labels of a layer; frozen by an activation that mixes channels."""
    activation = call.op.attrs.get("activation")
    if activation is None or (isinstance(activation, str) and activation in ELEMENTWISE):
        return [labels]
    call.walk.freeze(
        labels.ids,
        f"its filters go through the activation {_title(activation)} of '{call.op.name}', which"
        " mixes them",
    )
    return [labels]


def _title(activation: Any) -> str:
    """The name of an activation, for messages."""
    if isinstance(activation, str):
        return activation
    return str(activation.get("class_name", "")) if isinstance(activation, Mapping) else "given"


def _conv(call: Call) -> list[Labels]:
    op, at = call.op, conv_geometry(call.op, call.inputs[0])
    axis = channel_axis(op, at.rank + 2)
    ids, walk = call.along(axis), call.walk
    if at.multiplier:
        walk.add_channelwise(op, ids)
        outputs = np.repeat(ids, at.multiplier)
    elif at.groups == 1:
        walk.add_inputs(op, ids)
        outputs = walk.add_outputs(op, walk.fresh(at.outputs))
    elif _positions(call):
        walk.unify(*_by_group(walk.add_inputs(op, ids), at.groups, 0))
        outputs = walk.add_outputs(op, np.tile(walk.fresh(at.outputs // at.groups), at.groups))
    else:
        walk.unify(*_by_group(ids, at.groups, 1))
        outputs = np.repeat(ids[:: at.inputs // at.groups], at.outputs // at.groups)
        walk.add_channelwise(op, outputs)
    return _activated(call, Labels(axis, outputs))


def _positions(call: Call) -> bool:
    """``positions`` of the layer before factorization, whatever the widths of its factor layers.

    Factor layers then lose the same filters as the layer would.
    """
    op, inputs = call.walk.original_layer(call.op)
    at = conv_geometry(op, inputs[0])
    return positions(at.groups, at.inputs, at.outputs)


def _by_group(ids: Ids, groups: int, axis: int) -> tuple[Ids, Ids]:
    """The labels as (groups, channels), and the labels to unify them with.

    Those are the labels of the first group (axis 0), or of the first channel of each (axis 1).
    """
    table = ids.reshape(groups, -1)
    return table, table.take([0], axis)


def _separable(call: Call) -> list[Labels]:
    rank = len(call.inputs[0].shape)
    axis = channel_axis(call.op, rank)
    call.walk.add_inputs(call.op, call.along(axis))
    return _activated(
        call, Labels(axis, call.walk.add_outputs(call.op, call.walk.fresh(int(call.op["filters"]))))
    )


def _dense(call: Call) -> list[Labels]:
    axis = len(call.inputs[0].shape) - 1
    call.walk.add_inputs(call.op, call.along(axis))
    return _activated(
        call, Labels(axis, call.walk.add_outputs(call.op, call.walk.fresh(int(call.op["units"]))))
    )


def _einsum(call: Call) -> list[Labels]:
    """The labels of a projection; one to several axes, such as heads and width, uses the first.

    Its input labels are recorded for each row of its kernel as a matrix.
    """
    op, walk = call.op, call.walk
    refusal = (
        "its kernel is not a plain weight"
        if "kernel" not in op.weights
        else Einsum.refusal(op, call.inputs[0])
    )
    if refusal is not None:
        return call.freeze(f"its filters are read by {call.title}: {refusal}")
    einsum = Einsum.of(op, call.inputs[0])
    letters = einsum.source.removeprefix("...")
    rank = len(call.inputs[0].shape)
    summed = [rank - len(letters) + letters.index(letter) for letter in einsum.summed]
    if call.source.axis not in (None, *summed):
        return call.freeze(f"its filters lie on an axis over which {call.title} does not sum")
    axis = summed[0] if call.source.axis is None else call.source.axis
    lengths = [call.inputs[0].shape[a] or 0 for a in summed]
    along = call.along(axis).reshape([-1 if a == axis else 1 for a in summed])
    walk.add_inputs(op, np.broadcast_to(along, lengths).reshape(-1))
    target = einsum.target.removeprefix("...")
    letter = next(letter for letter in target if letter in einsum.made)
    axis = len(call.outputs[0].shape) - len(target) + target.index(letter)
    return _activated(
        call, Labels(axis, walk.add_outputs(op, walk.fresh(einsum.lengths[letter] or 0)))
    )


def _embedding(call: Call) -> list[Labels]:
    return [
        Labels(
            len(call.outputs[0].shape) - 1,
            call.walk.add_outputs(call.op, call.walk.fresh(int(call.op.attrs["output_dim"]))),
        )
    ]


# -- channel-wise layers ---------------------------------------------------------------------------


def _through(call: Call) -> list[Labels]:
    return [call.source]


def _clip(call: Call) -> list[Labels]:
    if any(np.size(value) > 1 for value in call.op.attrs.values()) or _constants(call.op):
        return call.freeze(f"its filters meet a constant in {call.title}")
    return [call.source]


def _activation(call: Call) -> list[Labels]:
    return _activated(call, call.source)


def _along_channels(call: Call) -> list[Labels]:
    """The labels behind an op along the spatial axes: pooling, padding, cropping, upsampling."""
    source, axis = call.source, channel_axis(call.op, len(call.inputs[0].shape))
    if source.axis in (None, axis):
        return [source]
    return call.freeze(
        f"its filters lie on axis {source.axis} of the input of {call.title}, which works along it"
    )


def _global_pool(call: Call) -> list[Labels]:
    (labels,) = _along_channels(call)
    return [
        labels if labels.axis is None or call.op.attrs.get("keepdims") else Labels(1, labels.ids)
    ]


def _batch_norm(call: Call) -> list[Labels]:
    source, axis = call.source, int(call.op["axis"]) % len(call.inputs[0].shape)
    if source.axis is None or source.axis == axis:
        call.walk.add_channelwise(call.op, call.along(axis))
    return [source]


def _prelu(call: Call) -> list[Labels]:
    source = call.source
    if source.axis is not None and call.op.weights["alpha"].shape[source.axis - 1] > 1:
        call.walk.add_channelwise(call.op, source.ids)
    return [source]


def _rescaling(call: Call) -> list[Labels]:
    lengths = {np.size(call.op.attrs.get(name, 0)) for name in ("scale", "offset")} - {1}
    if lengths and call.source.axis not in (None, len(call.inputs[0].shape) - 1):
        return call.freeze(
            f"its filters lie on axis {call.source.axis} of the input of {call.title}, whose scale"
            " lies on the last"
        )
    if lengths and call.source.axis is not None:
        call.walk.add_channelwise(call.op, call.source.ids)
    return [call.source]


def _normalized_axes(call: Call) -> list[Labels]:
    """The labels behind an op that mixes the indices of its own axes only."""
    axis = call.op.attrs.get("axis", -1)
    rank = len(call.inputs[0].shape)
    mixed = {a % rank for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    if call.source.axis not in mixed:
        return [call.source]
    return call.freeze(f"its filters are read by {call.title}, which mixes them")


def _group_norm(call: Call) -> list[Labels]:
    """The labels behind a GroupNormalization: a unit is a whole group, which has own statistics."""
    rank, source = len(call.inputs[0].shape), call.source
    groups = int(call.op.attrs.get("groups", 32))
    if source.axis is None:
        return [source]
    if source.axis != int(call.op.attrs.get("axis", -1)) % rank or groups in (1, -1):
        return call.freeze(f"its filters are read by {call.title}, which mixes them")
    call.walk.unify(*_by_group(call.walk.add_channelwise(call.op, source.ids), groups, 1))
    return [source]


# -- several operands ------------------------------------------------------------------------------


def _merge(call: Call) -> list[Labels]:
    """The labels behind element-wise arithmetic, where labels at the same index are equal.

    Shapes are aligned from the last axis, as NumPy broadcasts them.
    """
    shape = call.outputs[0].shape
    axes = [
        labels.axis - len(t.shape) + len(shape) if labels.axis is not None else None
        for labels, t in zip(call.labels, call.inputs, strict=True)
    ]
    spanning = [
        i
        for i, axis in enumerate(axes)
        if axis is not None and len(call.labels[i].ids) == shape[axis]
    ]
    for i, axis in enumerate(axes):
        if axis is not None and i not in spanning:
            call.walk.freeze(
                call.labels[i].ids, f"its filters are repeated along a longer axis in {call.title}"
            )
    if len({axes[i] for i in spanning}) > 1:
        return call.freeze(f"its filters meet others on another axis in {call.title}")
    source = next(
        (labels.source for labels in call.labels if labels.source), f"the output of {call.title}"
    )
    if not spanning:
        return [Labels.fixed(source)]
    axis, ids = axes[spanning[0]], call.labels[spanning[0]].ids
    assert axis is not None
    for i, (labels, tensor) in enumerate(zip(call.labels, call.inputs, strict=True)):
        if i in spanning:
            call.walk.unify(ids, labels.ids)
        elif _spans(tensor.shape, axis - len(shape), shape[axis]):
            call.walk.freeze(
                ids, f"its filters meet {labels.source or 'others on another axis'} in {call.title}"
            )
    for constant in _constants(call.op):
        if _spans(np.shape(constant), axis - len(shape), shape[axis]):
            call.walk.freeze(ids, f"its filters meet a constant in {call.title}")
    return [Labels(axis, ids)]


def _spans(shape: Shape, axis: int, length: int | None) -> bool:
    """Whether an operand has a value for each index of an axis of the result, not one for all.

    ``axis`` is negative, ``length`` is that of the result.
    """
    return -axis <= len(shape) and (shape[axis] != 1 or length == 1)


def _constants(op: Op) -> list[Any]:
    """The arrays and lists of numbers among an op's arguments."""
    if op.call is None:
        return []
    args, kwargs = op.call
    return [
        value
        for value in (*args, *kwargs.values())
        if isinstance(value, np.ndarray | list | tuple) and not _holds_slot(value)
    ]


def _holds_slot(value: Any) -> bool:
    return isinstance(value, Slot) or (
        isinstance(value, list | tuple) and any(_holds_slot(item) for item in value)
    )


#: Rules of the kinds with one operand.
ONE: dict[str, Rule] = {
    **dict.fromkeys(names("conv", "transposed", "depthwise"), _conv),
    **dict.fromkeys(names("separable"), _separable),
    **dict.fromkeys(names("dense"), _dense),
    **dict.fromkeys(names("einsum"), _einsum),
    **dict.fromkeys(names("embedding"), _embedding),
    "BatchNormalization": _batch_norm,
    "PReLU": _prelu,
    "Rescaling": _rescaling,
    "Activation": _activation,
    **dict.fromkeys(("ReLU", "LeakyReLU", "ELU", *names("dropout", "identity")), _through),
    **dict.fromkeys((name for name in names("function") if kind_of(name).elementwise), _through),
    **dict.fromkeys(names("pooling", "padding", "cropping", "upsampling"), _along_channels),
    **dict.fromkeys(names("global_pooling"), _global_pool),
    **dict.fromkeys(
        ("LayerNormalization", "UnitNormalization", "Softmax", "ops.Softmax"), _normalized_axes
    ),
    "GroupNormalization": _group_norm,
    "Flatten": shapes.flatten,
    "Reshape": shapes.reshaped,
    "ops.Reshape": shapes.reshaped,
    "ops.ExpandDims": shapes.expand,
    "ops.Squeeze": shapes.squeeze,
    "ops.Pad": shapes.pad,
    "ops.Clip": _clip,
    "Permute": shapes.permute,
    "ops.Transpose": shapes.permute,
    "RepeatVector": shapes.repeat_vector,
    "ops.Repeat": heads.repeat,
    **dict.fromkeys(names("reduction"), shapes.reduce),
    "ops.GetItem": shapes.get_item,
    "ops.Split": shapes.split,
}
#: Rules of the kinds with several operands.
SEVERAL: dict[str, Rule] = {
    **dict.fromkeys((*names("arithmetic"), "ops.Where"), _merge),
    "ops.Einsum": heads.einsum,
    "Softmax": heads.masked_softmax,
    **dict.fromkeys(names("concatenation"), shapes.concatenate),
}


def follow(call: Call) -> list[Labels]:
    """The labels of an op's outputs, one entry per output; an unknown op freezes its operands."""
    op = call.op
    if op.kind == "InputLayer":
        return [Labels.fixed(f"the model's input '{op.name}'")]
    plain = op.origin is None or op.kind.startswith("ops.")
    if plain and op.kind in SEVERAL and (op.kind not in ONE or len(call.inputs) > 1):
        return SEVERAL[op.kind](call)
    if plain and op.kind in ONE and len(call.inputs) == 1 and len(call.inputs[0].shape) > 1:
        return ONE[op.kind](call)
    if op.info.family == "attention":
        return call.freeze(
            f"its filters are read by {call.title}, an attention layer that has to stay whole"
        )
    return call.freeze(f"its filters are read by {call.title}, which may mix channels")
