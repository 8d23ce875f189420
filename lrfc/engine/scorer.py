"""The score of a network after each stage of a build, on the test samples or on some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrfc.data.counts import STAGED
from lrfc.data.dataset import Split
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.metric import Metric
from lrfc.system.spans import span
from lrfc.text import count


def sampled(test: Split) -> int | None:
    """The number of test samples that stages are scored on; None where these are all."""
    return STAGED if len(test) > STAGED else None


@dataclass(frozen=True)
class Scorer:
    """Scores of networks by a metric; ``log`` gets a line for each.

    ``test``: the test samples. ``original``: the network that the others are compared with.
    """

    metric: Metric
    test: Split
    original: Graph
    log: Callable[[str], None]

    @cached_property
    @span("scores")
    def before(self) -> float:
        """The score of the original on all samples."""
        score = self.metric.score(keras_io.outputs(self.original, self.test.inputs), self.test)
        self.log(f"  {self.metric.name} {self.metric.shown(score)}")
        return score

    @span("scores")
    def whole(self, graph: Graph) -> float:
        """The score of a network on all samples."""
        score = self._score(graph, self.test)
        self.log(f"  {self.metric.name} {self.metric.shown(score)}")
        return score

    def estimated(self, graph: Graph) -> float:
        """The score of the original and the difference from it on some samples.

        Both networks run on the same samples, so that those which are hard for both do not count.
        """
        few = sampled(self.test)
        if few is None:
            return self.whole(graph)
        with span("scores"):
            sample, before = self._sample
            estimate = self.before + self._score(graph, sample) - before
        score = min(estimate, 1.0) if self.metric.percent else estimate
        shown = self.metric.shown(score)
        self.log(f"  {self.metric.name} about {shown}, by {count(few)} samples")
        return score

    @cached_property
    def _sample(self) -> tuple[Split, float]:
        """Samples at equal distances, as the classes may be in order, and the original's score."""
        rows = np.linspace(0, len(self.test) - 1, sampled(self.test) or 1).astype(np.intp)
        sample = self.test.take(rows)
        if not keras_io.storable(self.original, self.test.inputs):
            return sample, self._score(self.original, sample)
        outputs = keras_io.outputs(self.original, self.test.inputs)
        return sample, self.metric.score(tuple(y[rows] for y in outputs), sample)

    def _score(self, graph: Graph, split: Split) -> float:
        # Folded, a network runs a fifth faster.
        return self.metric.score(keras_io.predict(fold_batchnorm(graph), split.inputs), split)
