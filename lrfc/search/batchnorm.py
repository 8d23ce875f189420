"""How BatchNorm statistics follow a response that compression has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.op import Op

#: Per channel: mean and variance.
Moments = tuple[NDArray[Any], NDArray[Any]]


def moved(op: Op, original: Moments, compressed: Moments) -> Moments:
    """The moving statistics of a BatchNorm behind a changed layer, from what the two networks show on the same inputs.

    With the original's moving mean m and variance v, and the statistics (m_o, v_o) and (m_c, v_c)
    seen before and after the change: m' = m_c + (m − m_o)·√(v_c/v_o) and v' = v·v_c/v_o. Any shift
    and scale of a channel is undone, and where nothing changed nothing is moved, also when the
    inputs seen are not those (augmented, or of another set) that the moving statistics come from.
    """
    (old_mean, old_variance), (new_mean, new_variance) = original, compressed
    moving = op.weights["moving_variance"]
    alive = (
        old_variance > 1e-6 * moving
    )  # a channel that is constant on these inputs says nothing of the spread
    spread = np.where(alive, new_variance / np.where(alive, old_variance, 1), 1).astype(
        moving.dtype
    )
    return new_mean + (op.weights["moving_mean"] - old_mean) * np.sqrt(spread), moving * spread
