"""Validation scores of a network in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lrfc.data.dataset import Split
from lrfc.ir.graph import Graph
from lrfc.metrics.metric import metric
from lrfc.search.sensitivity import divergence


def scorer(
    original: Graph, teacher: Any, split: Split, name: str | None = None
) -> Callable[[Any], float]:
    """A function that scores a runner on a split; higher is better.

    The score is the metric, with its sign changed where lower is better. Without a name and labels
    it is minus the divergence from the original's outputs.
    """
    from lrfc.ir.keras import io as keras_io

    if name is None and split.targets is None:
        reference = keras_io.predict(teacher, split.inputs)
        return lambda run: -divergence(reference, keras_io.predict(run, split.inputs))
    chosen = metric(name, original, split)
    sign = 1 if chosen.higher_is_better else -1
    return lambda run: sign * chosen.score(keras_io.predict(run, split.inputs), split)


def shown(original: Graph, split: Split, name: str | None = None) -> Callable[[float], str]:
    """A function that writes such a score as text."""
    if name is None and split.targets is None:
        return lambda score: f"divergence {-score:.4g}"
    chosen = metric(name, original, split)
    sign = 1 if chosen.higher_is_better else -1
    return lambda score: f"{chosen.name} {chosen.shown(sign * score)}"
