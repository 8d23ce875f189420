"""The plain ops that replace a layer: each stage from one array of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrfc.factorization import embedding, recurrent
from lrfc.factorization.layout import Layout, per_axis
from lrfc.factorization.linalg import Array
from lrfc.ir.op import Op

#: Attributes of the layer that all its stages inherit, and those that only the last one inherits.
#: Regularizers and constraints of the kernel are left out: that kernel no longer exists.
INHERITED = ("dtype", "trainable", "data_format")
INHERITED_BY_LAST = (
    "activation",
    "activity_regularizer",
    "bias_initializer",
    "bias_regularizer",
    "bias_constraint",
)


def stage(layout: Layout, role: str | None, axes: tuple[int, ...], core: Array) -> Op:
    """A linear stage ``<name>__<role>`` without bias.

    The last stage (``role`` None) has the layer's name and activation; ``finish`` adds the bias.
    ``core`` is (G, r_in, taps, r_out), the taps of ``axes`` flattened in ascending order.
    """
    groups, width, _, outputs = core.shape
    op, rank = layout.op, len(layout.kernel)
    attrs = _common(layout, role)
    if layout.family == "dense":
        return _op(layout, role, "Dense", {**attrs, "units": outputs}, core[0, :, 0])
    if layout.family == "recurrent":
        if role is not None:
            return _op(layout, role, "Dense", {**attrs, "units": outputs}, core[0, :, 0])
        return recurrent.with_matrix(op, np.asarray(core[0, :, 0], np.float32))
    if layout.family == "embedding":
        if role is None:
            return _op(layout, role, "Dense", {**attrs, "units": outputs}, core[0, :, 0])
        del attrs["use_bias"]
        inherited = {key: op.attrs[key] for key in embedding.INHERITED if key in op.attrs}
        table = embedding.table(op, core[0, :, 0])
        name, shared = _names(layout, role)
        attrs |= {**inherited, "output_dim": outputs}
        return Op(name, "Embedding", attrs, {embedding.TABLE: table}, shared)
    if layout.family == "einsum":
        del attrs["use_bias"]
        kind, extra, kernel = layout.einsum.stage(core[0, :, 0], last=role is None)
        return _op(layout, role, kind, {**attrs, **extra}, kernel)
    taps = _taps(layout, axes)
    attrs |= _window(layout, axes)
    kernel = core.swapaxes(1, 2).reshape(groups, *taps, width, outputs)
    if layout.family == "transposed" and axes:
        padding = op["output_padding"]
        if padding is not None:
            attrs["output_padding"] = tuple(
                per_axis(padding, axis) if axis in axes else 0 for axis in range(rank)
            )
        return _op(
            layout,
            role,
            f"Conv{rank}DTranspose",
            {**attrs, "filters": outputs},
            np.swapaxes(kernel[0], -1, -2),
        )
    if layout.family == "depthwise" and width == 1:
        return _op(
            layout,
            role,
            f"DepthwiseConv{rank}D",
            {**attrs, "depth_multiplier": outputs},
            np.moveaxis(kernel[..., 0, :], 0, -2),
        )
    moved = np.moveaxis(kernel, 0, -2)
    attrs |= {"filters": groups * outputs, "groups": groups}
    return _op(layout, role, f"Conv{rank}D", attrs, moved.reshape(*moved.shape[:-2], -1))


def depthwise_stages(layout: Layout, role: str, axes: tuple[int, ...], core: Array) -> list[Op]:
    """A depthwise stage over the channels of all groups; ``core`` is (G, taps, R).

    Causal padding, which Keras' depthwise layer lacks, is an op of its own before it.
    """
    groups, _, width = core.shape
    rank = len(layout.kernel)
    attrs = _common(layout, role) | _window(layout, axes) | {"depth_multiplier": 1}
    chain = []
    if attrs["padding"] == "causal":
        before = attrs["dilation_rate"][0] * (layout.kernel[0] - 1)
        name, shared = _names(layout, f"{role}_padding")
        inherited: dict[str, Any] = {
            key: attrs[key] for key in ("data_format", "dtype") if key in attrs
        }
        padding = {**inherited, "padding": (before, 0)}
        chain = [Op(name, f"ZeroPadding{rank}D", padding, shared=shared)]
        attrs["padding"] = "valid"
    kernel = np.moveaxis(core.reshape(groups, *_taps(layout, axes), width), 0, -2)
    return [
        *chain,
        _op(
            layout,
            role,
            f"DepthwiseConv{rank}D",
            attrs,
            kernel.reshape(*kernel.shape[:-2], groups * width, 1),
        ),
    ]


def finish(layout: Layout, last: Op, shift: Array | None) -> Op:
    """The last stage with the layer's bias, changed by ``shift`` (G·T,)."""
    bias = layout.op.weights.get("bias")
    if bias is None:
        return last
    if shift is not None:
        moved = layout.einsum.layer_bias(shift) if layout.family == "einsum" else shift
        bias = (bias + moved).astype(np.float32)
    return Op(last.name, last.kind, last.attrs, {**last.weights, "bias": bias}, last.shared)


def _common(layout: Layout, role: str | None) -> dict[str, Any]:
    """The attributes that a stage inherits from the layer, and whether it has a bias."""
    op = layout.op
    keys = INHERITED if role is not None else (*INHERITED, *INHERITED_BY_LAST)
    return {key: op.attrs[key] for key in keys if key in op.attrs} | {
        "use_bias": role is None and "bias" in op.weights
    }


def _taps(layout: Layout, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length if axis in axes else 1 for axis, length in enumerate(layout.kernel))


def _window(layout: Layout, axes: tuple[int, ...]) -> dict[str, Any]:
    """Kernel size, strides, dilation and padding of the stage that takes these axes.

    They are the layer's own along these axes, and none along the others.
    """
    taps = _taps(layout, axes)
    # Padding 'same' adds nothing where one tap covers each position, so that a 1×1 stage has
    # 'valid'. The output length of a transposed stage depends on it.
    pads = max(taps) > 1 or (layout.family == "transposed" and axes)
    return {
        "kernel_size": taps,
        "strides": layout.strides(axes),
        "dilation_rate": tuple(
            per_axis(layout.op["dilation_rate"], axis) if axis in axes and taps[axis] > 1 else 1
            for axis in range(len(taps))
        ),
        "padding": layout.op["padding"] if pads else "valid",
    }


def _names(layout: Layout, role: str | None) -> tuple[str, str | None]:
    name, shared = layout.op.name, layout.op.shared
    return (
        (name, shared)
        if role is None
        else (f"{name}__{role}", None if shared is None else f"{shared}__{role}")
    )


def _op(layout: Layout, role: str | None, kind: str, attrs: dict[str, Any], kernel: Array) -> Op:
    name, shared = _names(layout, role)
    return Op(name, kind, attrs, {"kernel": np.ascontiguousarray(kernel, np.float32)}, shared)
