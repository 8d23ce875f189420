"""The 8-bit weights of a linear layer, as TFLite and onnxruntime round them: symmetric, one scale for each output channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.op import Op

#: Steps from 0 to the largest weight of a channel: int8 without -128.
STEPS = 127


def rounds(op: Op) -> bool:
    """Whether the layer has one kernel, and nothing beside it but a bias."""
    return op.info.is_linear and "kernel" in op.weights and not set(op.weights) - {"kernel", "bias"}


def scaled_by_channel(op: Op) -> bool:
    """Whether the kernel also has a scale per output channel where rounding is trained.

    tensorflow-model-optimization scales by the last axis only, and TFLite's converter does not take
    a matrix with several scales from it.
    """
    return op.info.family == "conv"


def grouped(op: Op) -> NDArray[np.float64]:
    """The kernel (G, S, K, T): groups, inputs and outputs of a group, and positions.

    A depthwise convolution has a group for each channel.
    """
    kernel = np.asarray(op.weights["kernel"], np.float64)
    last, before = kernel.shape[-1], kernel.shape[-2]
    if op.info.is_depthwise:  # (*K, I, multiplier)
        return kernel.reshape(-1, before, 1, last).transpose(1, 2, 0, 3)
    if op.info.is_transposed:  # (*K, O, I)
        return kernel.reshape(1, -1, before, last).transpose(0, 3, 1, 2)
    groups = 1 if op.info.family == "dense" else int(op["groups"])
    return kernel.reshape(-1, before, groups, last // groups).transpose(2, 1, 0, 3)


def rounded(op: Op, steps: int = STEPS) -> Op:
    """The layer with the weights that an int8 file holds. ``steps``: see ``STEPS``."""
    kernel = np.asarray(op.weights["kernel"], np.float64)
    others = tuple(
        axis for axis in range(kernel.ndim) if axis - kernel.ndim not in op.info.output_axes
    )
    scale = np.abs(kernel).max(axis=others, keepdims=True) / steps
    scale = np.where(scale > 0, scale, 1.0)
    return replace(
        op, weights={**op.weights, "kernel": (np.rint(kernel / scale) * scale).astype(np.float32)}
    )
