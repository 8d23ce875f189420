"""A separable convolution as two layers, each of which can be factorized on its own."""

from __future__ import annotations

from dataclasses import replace

from lrfc.ir.op import Op


def split_separable(op: Op) -> list[Op]:
    """The two layers of a SeparableConv1D or SeparableConv2D, for ``Graph.splice``.

    They are the depthwise convolution ``<name>__depthwise`` and a 1×1 convolution. Exact, with the
    same weights and MACs: TFLite and ONNX store the layer as these two anyway.
    """
    rank = op.info.spatial_axes
    carried = {
        key: op.attrs[key] for key in ("dtype", "trainable", "data_format") if key in op.attrs
    }
    window = {
        key: op[key]
        for key in ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
    }
    shared = None if op.shared is None else f"{op.shared}__depthwise"
    depthwise = Op(
        f"{op.name}__depthwise",
        f"DepthwiseConv{rank}D",
        {**carried, **window, "use_bias": False},
        {"kernel": op.weights["depthwise_kernel"]},
        shared,
    )
    last = {
        key: op.attrs[key]
        for key in (
            "activation",
            "activity_regularizer",
            "bias_initializer",
            "bias_regularizer",
            "bias_constraint",
        )
        if key in op.attrs
    }
    weights = {"kernel": op.weights["pointwise_kernel"]} | (
        {"bias": op.weights["bias"]} if "bias" in op.weights else {}
    )
    pointwise = replace(
        op,
        kind=f"Conv{rank}D",
        attrs={
            **carried,
            **last,
            "filters": op["filters"],
            "kernel_size": (1,) * rank,
            "use_bias": "bias" in op.weights,
        },
        weights=weights,
    )
    return [depthwise, pointwise]
