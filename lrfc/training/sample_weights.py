"""Weights of samples: those of the data, and by the frequency of their classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrfc.data.dataset import Split
from lrfc.errors import UsageError
from lrfc.ir.batch import Batch


def weights(split: Split, *, by_class: bool) -> NDArray[np.float32] | None:
    """The weight (N,) of each sample in the loss of the task; None where all weigh the same.

    It is that of the data times, with ``by_class``, that of its class.
    """
    if not by_class:
        return split.weights
    classes = balanced(split.targets)
    return classes if split.weights is None else classes * split.weights


def balanced(targets: Batch | None) -> NDArray[np.float32]:
    """The weight (N,) of each sample, with which all classes weigh the same together.

    It is N / (classes · samples of its class), as scikit-learn's 'balanced'; the mean is 1.
    ``targets``: class indices (N,) of the only output, otherwise UsageError.
    """
    labels = None if targets is None or len(targets) != 1 else np.asarray(targets[0])
    if labels is None or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UsageError("--class-weights balanced: the data need one class number for each sample")
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts[classes])).astype(np.float32)
