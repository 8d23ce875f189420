"""Mixtures of two samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrfc.training.objective import Goal


def mixed(
    inputs: Sequence[Any], goal: Goal, seed: Any
) -> tuple[tuple[Any, ...], tuple[Goal, Goal]]:
    """Each sample of a batch with a share of another one, and the goals of both.

    Zhang et al. 2018, arXiv 1710.09412, with alpha = 1: the share is uniform in 0..1, one for the
    batch; the loss of the task is that of both labels, in these shares. A teacher tells more of
    mixtures than of the samples that it has learnt by heart. ``inputs``: numbers, tensors (N, ...).
    ``seed``: int32 (2,).
    """
    import tensorflow as tf

    labels, weights = goal
    count = tf.shape(inputs[0])[0]
    order = tf.argsort(tf.random.stateless_uniform((count,), seed + 1))
    share = tf.random.stateless_uniform((), seed + 2)

    def weighted(share: Any, weights: Sequence[Any]) -> tuple[Any]:
        return (share * weights[0] if weights else tf.fill((count,), share),)

    def others(arrays: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(tf.gather(array, order) for array in arrays)

    mixtures = tuple(
        share * tf.cast(x, tf.float32) + (1 - share) * tf.cast(other, tf.float32)
        for x, other in zip(inputs, others(inputs), strict=True)
    )
    return mixtures, (
        (labels, weighted(share, weights)),
        (others(labels), weighted(1 - share, others(weights))),
    )
