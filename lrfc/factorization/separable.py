"""A separable convolution as two layers, each of which can be factorized on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lrfc.factorization.stages import INHERITED, INHERITED_BY_LAST
from lrfc.ir.op import Op

#: Attributes of the depthwise convolution.
_WINDOW = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")


def split_separable(op: Op) -> list[Op]:
    """The two layers of a SeparableConv1D or SeparableConv2D, for ``Graph.splice``.

    They are the depthwise convolution ``<name>__depthwise`` and a 1×1 convolution. Exact, with the
    same weights and MACs: TFLite and ONNX store the layer as these two anyway.
    """
    return [_depthwise(op), _pointwise(op)]


def _depthwise(op: Op) -> Op:
    return Op(
        f"{op.name}__depthwise",
        f"DepthwiseConv{op.info.spatial_axes}D",
        {**_present(op, INHERITED), **{key: op[key] for key in _WINDOW}, "use_bias": False},
        {"kernel": op.weights["depthwise_kernel"]},
        None if op.shared is None else f"{op.shared}__depthwise",
    )


def _pointwise(op: Op) -> Op:
    rank = op.info.spatial_axes
    weights = {"kernel": op.weights["pointwise_kernel"]}
    if "bias" in op.weights:
        weights["bias"] = op.weights["bias"]
    attrs = {
        **_present(op, (*INHERITED, *INHERITED_BY_LAST)),
        "filters": op["filters"],
        "kernel_size": (1,) * rank,
        "use_bias": "bias" in op.weights,
    }
    return replace(op, kind=f"Conv{rank}D", attrs=attrs, weights=weights)


def _present(op: Op, keys: tuple[str, ...]) -> dict[str, Any]:
    """The attributes of these names that the op has."""
    return {key: op.attrs[key] for key in keys if key in op.attrs}
