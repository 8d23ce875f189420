"""Validation scores of a network in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrfc.data.dataset import Data
from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.metrics.metric import metric
from lrfc.search.sensitivity import divergence
from lrfc.training.augment import Augmentation, applied
from lrfc.training.seen import seen

#: What scores measure without labels, and where the original was trained on the samples.
DIVERGENCE = "divergence from the original"
UNSEEN = "divergence from the original on changed samples"
#: Samples of one batch that is changed, and the share of the second sample in a mixture of two.
_BATCH, _MIXED = 250, 0.4


@dataclass(frozen=True)
class Scorer:
    """A function from a runner to its score on validation samples; higher is better.

    ``measure``: what the score is, times ``sign``: -1 where less of it is better. ``text`` writes a
    score. ``seen``: the evidence that the original was trained on the samples, where there is any.
    """

    measure: str
    score: Callable[[Callable[[Batch], Batch]], float]
    text: Callable[[float], str]
    sign: int = 1
    seen: str | None = None

    def __call__(self, run: Callable[[Batch], Batch]) -> float:
        """The score of a runner."""
        return self.score(run)


def scorer(
    original: Graph,
    teacher: Callable[[Batch], Batch],
    data: Data,
    name: str | None = None,
    augmentation: Augmentation | None = None,
) -> Scorer:
    """The scorer of a training; ``teacher`` runs the original.

    A score is the metric (``name``: see ``lrfc.metrics.metric.metric``), with its sign changed
    where lower is better. Without a name and labels it is minus the divergence of the outputs from
    the original's. So it is where the original was trained on the validation samples, on which it
    is nearly perfect: every change of its weights lowers their score, also one that raises the
    score of other samples. The samples are changed then, into others that it has not seen: by the
    ``augmentation``, otherwise by mixing pairs of them.
    """
    from lrfc.ir.keras import io as keras_io

    split, change = data.validation, augmentation or Augmentation()
    found = seen(original, teacher, data, change)
    if found is not None and (change or _mixable(original)):
        samples = _Changed(split.inputs, change)
        reference = samples.outputs(teacher)
        return Scorer(
            UNSEEN,
            lambda run: -divergence(reference, samples.outputs(run)),
            lambda score: f"divergence {-score:.4g} on changed samples",
            -1,
            found,
        )
    if name is None and split.targets is None:
        reference = keras_io.predict(teacher, split.inputs)
        return Scorer(
            DIVERGENCE,
            lambda run: -divergence(reference, keras_io.predict(run, split.inputs)),
            lambda score: f"divergence {-score:.4g}",
            -1,
        )
    chosen = metric(name, original, split)
    sign = 1 if chosen.higher_is_better else -1
    return Scorer(
        chosen.name,
        lambda run: sign * chosen.score(keras_io.predict(run, split.inputs), split),
        lambda score: f"{chosen.name} {chosen.shown(sign * score)}",
        sign,
        found,
    )


@dataclass(frozen=True)
class _Changed:
    """Samples that are changed as they are read, always in the same way."""

    inputs: Batch
    augmentation: Augmentation

    def outputs(self, run: Callable[[Batch], Batch]) -> Batch:
        """The outputs for all samples."""
        parts = [run(part) for part in self._parts()]
        return tuple(np.concatenate(values) for values in zip(*parts, strict=True))

    def _parts(self) -> Any:
        for number, part in enumerate(batches(self.inputs, _BATCH)):
            yield applied(self.augmentation, part, number) if self.augmentation else _mixed(part)


def _mixable(graph: Graph) -> bool:
    """Whether a mixture of two samples is a sample: not where an input takes indices."""
    return all(graph.tensors(name)[0].dtype.startswith("float") for name in graph.inputs)


def _mixed(inputs: Batch) -> Batch:
    """Each sample with a share of the one before (Zhang et al. 2018, arXiv 1710.09412)."""
    floats = [np.asarray(x, np.float32) for x in inputs]
    return tuple((1 - _MIXED) * x + _MIXED * np.roll(x, 1, axis=0) for x in floats)
