"""The original as a teacher: its outputs and feature maps for the samples of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.batch import Batch, batches, head
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.op import Ref
from lrfc.search.targets import Summed
from lrfc.system import memory
from lrfc.training.features import tapped

#: Most bytes of outputs and feature maps of all samples that are kept.
KEPT = 256 << 20
#: Samples for the variances of feature maps, and those of one pass.
SPREAD, PART = 128, 32


class Teacher:
    """The original with its BatchNorms folded.

    ``taps``: the feature maps that it gives after its own outputs. ``run``: its own outputs for a
    batch.
    """

    def __init__(self, original: Graph, taps: Sequence[Ref]) -> None:
        import keras

        from lrfc.ir.keras import io as keras_io

        self._taps = tuple(taps)
        self._graph = fold_batchnorm(tapped(original, taps))
        self._model = keras_io.to_keras(self._graph)
        own = self._model.outputs[: len(original.outputs)]
        self.run: Callable[[Batch], Batch] = keras_io.compiled(keras.Model(self._model.input, own))
        self._kept: Batch | None = None

    def variances(self, inputs: Batch) -> list[float]:
        """The variance of each feature map on some samples, the mean over its channels."""
        from lrfc.ir.keras import io as keras_io

        run, sums = keras_io.compiled(self._model), [Summed(-1) for _ in self._taps]
        for part in batches(head(inputs, SPREAD if sums else 0), PART):
            maps = run(part)[len(self._graph.outputs) - len(self._taps) :]
            for total, values in zip(sums, maps, strict=True):
                total.add(values)
        return [float(np.mean(total.moments()[1])) for total in sums]

    def keep(self, inputs: Batch) -> None:
        """Run on all samples once and keep the result, where it is small enough."""
        from lrfc.ir.keras import io as keras_io

        shapes = [self._graph.tensor(ref).shape[1:] for ref in self._graph.outputs]
        if any(None in shape for shape in shapes):
            return
        size = 4 * len(inputs[0]) * sum(prod(length or 1 for length in shape) for shape in shapes)
        if size <= memory.share(KEPT):
            self._kept = keras_io.predict(keras_io.compiled(self._model), inputs)

    def known(self, rows: NDArray[np.intp]) -> Batch:
        """The results for the samples of those rows; empty where they are not kept."""
        return () if self._kept is None else tuple(values[rows] for values in self._kept)

    def __call__(self, inputs: Sequence[Any], known: Sequence[Any]) -> list[Any]:
        """The outputs and feature maps: those that are known, otherwise of the inputs (tensors)."""
        import keras

        from lrfc.ir.keras import io as keras_io

        if known:
            return list(known)
        return list(keras.tree.flatten(keras_io.call(self._model, inputs, training=False)))
