"""Re-estimation of BatchNorm statistics after compression changed the layer in front."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.op import Op

#: Per channel: mean and variance.
Moments = tuple[NDArray[Any], NDArray[Any]]


def moved(op: Op, original: Moments, compressed: Moments) -> Moments:
    """The moving mean and variance of a BatchNorm behind a changed layer.

    ``original`` (m_o, v_o) and ``compressed`` (m_c, v_c) are the statistics of its input in both
    networks on the same samples. With the moving mean m and variance v of the original:
    m' = m_c + (m − m_o)·√(v_c/v_o) and v' = v·v_c/v_o. Any shift and scale of a channel is
    undone, and an unchanged layer keeps its statistics, even when the samples have another
    distribution than the training data (no augmentation, another set).
    """
    (old_mean, old_variance), (new_mean, new_variance) = original, compressed
    moving = op.weights["moving_variance"]
    # The scale of a channel that is constant on these samples cannot be estimated.
    alive = old_variance > 1e-6 * moving
    spread = np.where(alive, new_variance / np.where(alive, old_variance, 1), 1).astype(
        moving.dtype
    )
    return new_mean + (op.weights["moving_mean"] - old_mean) * np.sqrt(spread), moving * spread
