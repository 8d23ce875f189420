"""Op kinds with a layout, and the counterparts of ops with channels last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Tensor
from lrfc.ir.ops import ELEMENTWISE

FIRST, LAST = "channels_first", "channels_last"
#: Layers that TensorFlow computes with channels first on some processors only.
WINDOWED = frozenset(
    [f"Conv{n}D{suffix}" for n in (1, 2, 3) for suffix in ("", "Transpose")]
    + [f"{kind}Conv{n}D" for n in (1, 2) for kind in ("Depthwise", "Separable")]
    + [
        f"{prefix}{function}Pooling{n}D"
        for n in (1, 2, 3)
        for function in ("Max", "Average")
        for prefix in ("", "Global", "Adaptive")
    ]
)
RECURRENT = frozenset(f"ConvLSTM{n}D" for n in (1, 2, 3))
#: Layers for which the layout is an attribute and nothing else.
_FORMATTED = WINDOWED | frozenset(
    "Flatten ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping2D Cropping3D UpSampling2D"
    " UpSampling3D SpatialDropout2D SpatialDropout3D Resizing CenterCrop".split()
)
#: Layers that compute value by value.
_VALUES = frozenset(
    "ReLU LeakyReLU ELU Identity Dropout GaussianNoise GaussianDropout AlphaDropout"
    " ActivityRegularization".split()
)
_MERGES = frozenset("Add Subtract Multiply Average Maximum Minimum Concatenate".split())
_ALONG_AXES = frozenset(
    "BatchNormalization GroupNormalization LayerNormalization RMSNormalization UnitNormalization"
    " Normalization Softmax Concatenate".split()
)
#: Those without weights, for which several axes are converted too.
_UNWEIGHTED = frozenset(("UnitNormalization", "Softmax"))
#: Functions of keras.ops that compute value by value.
_FUNCTIONS = frozenset(
    "ops." + name
    for name in (
        "Add Subtract Multiply Divide TrueDivide Maximum Minimum Power Negative Absolute Abs Square"
        " Sqrt Rsqrt Exp Log Relu Relu6 Sigmoid Silu Tanh Elu Gelu HardSigmoid HardSilu LeakyRelu"
        " Softplus Softsign Selu Celu Clip"
    ).split()
)


def is_channels_first(op: Op) -> bool:
    """Whether the op has its channels first by its configuration.

    Only for Keras' own layers: an attribute of a custom layer may have another meaning.
    """
    return (
        op.origin is None
        and op.kind in _FORMATTED | RECURRENT
        and op.attrs.get("data_format") == FIRST
    )


def by_value(activation: Any) -> bool:
    """Whether an activation computes value by value."""
    if isinstance(activation, Mapping):
        return activation.get("class_name") in ("ReLU", "LeakyReLU", "ELU")
    return activation is None or activation in ELEMENTWISE


def counterparts(graph: Graph) -> dict[str, Op]:
    """The counterpart with channels last of each op that has one, by name.

    Calls of a shared layer hold the very same weights.
    """
    converted: dict[str, Op] = {}
    weights: dict[str, Mapping[str, Array]] = {}
    for op in graph:
        counterpart = _counterpart(graph, op)
        if counterpart is not None and op.shared is not None:
            shared = weights.setdefault(op.shared, counterpart.weights)
            counterpart = replace(counterpart, weights=shared)
        if counterpart is not None:
            converted[op.name] = counterpart
    return converted


def _counterpart(graph: Graph, op: Op) -> Op | None:
    """The op that computes the same on tensors with channels last; None where there is none."""
    calls = graph.calls(op)
    tensors = [
        tensor
        for call in calls
        for tensor in (*graph.input_tensors(call.name), *graph.tensors(call.name))
    ]
    operands = len(graph.operands(op.name))
    if operands == 0 or len(graph.tensors(op.name)) != 1:
        return None
    if op.kind in _FUNCTIONS:
        return op if _ranks(tensors) == 1 and len(tensors[0].shape) > 2 and _scalars(op) else None
    if op.origin is not None or (operands > 1 and (op.kind not in _MERGES or op.call is not None)):
        return None
    if op.kind in _FORMATTED:
        # "/": weights of an activation inside the layer, one for each position
        weighted = any("/" in name for name in op.weights)
        first = op.attrs.get("data_format") == FIRST
        return op.with_attrs(data_format=LAST) if first and not weighted else None
    if _ranks(tensors) > 1 or len(tensors[0].shape) < 3:
        return None
    rank = len(tensors[0].shape)
    if op.kind == "PReLU":
        return _prelu(op, rank)
    if op.kind in _ALONG_AXES:
        return _along(op, rank)
    elementwise = op.kind in _VALUES and op.attrs.get("noise_shape") is None
    scaled = op.kind == "Rescaling" and all(
        isinstance(op.attrs.get(name, 0.0), int | float) for name in ("scale", "offset")
    )
    activated = op.kind == "Activation" and by_value(op.attrs.get("activation"))
    return op if elementwise or scaled or activated or op.kind in _MERGES else None


def _ranks(tensors: Sequence[Tensor]) -> int:
    """Number of different ranks."""
    return len({len(tensor.shape) for tensor in tensors})


def _prelu(op: Op, rank: int) -> Op:
    """A PReLU with its weights, one for each position, in the order of the new axes."""
    axes = op.attrs.get("shared_axes")
    alpha = np.ascontiguousarray(np.moveaxis(op.weights["alpha"], 0, -1))
    return replace(op, weights={"alpha": alpha}).with_attrs(
        shared_axes=axes and tuple(_axis(axis, rank) % rank for axis in axes)
    )


def _along(op: Op, rank: int) -> Op | None:
    """The op along the same axes in their new places."""
    axis = op.attrs.get("axis", -1)
    if axis is None:
        return op
    if isinstance(axis, int):
        return op.with_attrs(axis=_axis(axis, rank))
    if len(axis) > 1 and op.kind not in _UNWEIGHTED:
        return None
    return op.with_attrs(axis=tuple(_axis(number, rank) for number in axis))


def _axis(axis: int, rank: int) -> int:
    """The place of an axis once the channels are last, which is -1 for the channels."""
    axis %= rank
    return axis if axis == 0 else -1 if axis == 1 else axis - 1


def _scalars(op: Op) -> bool:
    """Whether all arguments of a function besides tensors are scalars."""
    args, kwargs = op.call or ((), {})
    arguments = [*args, *kwargs.values(), *op.attrs.values()]
    return all(np.ndim(value) == 0 for value in arguments)
