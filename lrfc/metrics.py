"""What a model's outputs are worth, given the labels."""

from __future__ import annotations

import numpy as np

from lrfc.data import Split
from lrfc.ir.graph import Graph
from lrfc.state import Batch


def is_classification(split: Split, outputs: int, classes: int | None) -> bool:
    """Whether the split's targets are class labels (indices, or one-hot rows) for a single output with that many classes."""
    if split.targets is None or outputs != 1 or len(split.targets) != 1 or classes is None:
        return False
    target = split.targets[0]
    if np.issubdtype(target.dtype, np.integer) and (target.ndim == 1 or target.shape[1:] == (1,)):
        return True
    return target.ndim == 2 and target.shape[1] == classes > 1 and bool(np.all((target == 0) | (target == 1)) and np.all(target.sum(1) == 1))


def labels(split: Split) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Class indices (N,) of a classification split."""
    assert split.targets is not None
    target = split.targets[0]
    flat = target.argmax(1) if target.ndim == 2 and target.shape[1] > 1 else target.reshape(len(target))
    return flat.astype(np.int64)


def classifies(graph: Graph, split: Split) -> bool:
    """Whether the graph is a classifier and the split holds its labels."""
    shape = graph.tensor(graph.outputs[0]).shape
    return is_classification(split, len(graph.outputs), shape[-1] if len(shape) == 2 else None)


def right(outputs: Batch, split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which samples' classes are right, (N,). A single output value is read as the probability of class 1."""
    scores = outputs[0]
    guess = scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0.5).astype(np.int64)
    return np.asarray(guess.reshape(len(guess)) == labels(split))


def accuracy(outputs: Batch, split: Split) -> float:
    """The share of samples whose class is right."""
    return float(np.mean(right(outputs, split)))
