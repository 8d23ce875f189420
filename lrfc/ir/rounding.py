"""Rounding of weights to 8 bits as in TFLite and onnxruntime: symmetric, a scale per channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.op import Op

#: Steps from 0 to the largest weight of a channel: int8 without -128.
STEPS = 127


def rounds(op: Op) -> bool:
    """Whether the op is a linear layer with one kernel, at most a bias, and no other weights."""
    return op.info.is_linear and "kernel" in op.weights and not set(op.weights) - {"kernel", "bias"}


def scaled_by_channel(op: Op) -> bool:
    """Whether the kernel has a scale per output channel in quantisation-aware training too.

    tensorflow-model-optimization has scales along the last axis only, and TFLite's converter does
    not accept a matrix with several of its scales.
    """
    return op.info.family == "conv"


def grouped(op: Op) -> NDArray[np.float64]:
    """The kernel as (G, S, K, T): groups, inputs of a group, positions, and outputs of a group.

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
    """The layer with its kernel rounded as in an int8 file. ``steps``: see ``STEPS``."""
    kernel = np.asarray(op.weights["kernel"], np.float64)
    others = tuple(
        axis for axis in range(kernel.ndim) if axis - kernel.ndim not in op.info.output_axes
    )
    scale = np.abs(kernel).max(axis=others, keepdims=True) / steps
    scale = np.where(scale > 0, scale, 1.0)
    rounded_kernel = (np.rint(kernel / scale) * scale).astype(np.float32)
    return replace(op, weights={**op.weights, "kernel": rounded_kernel})
