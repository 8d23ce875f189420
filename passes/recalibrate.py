"""Estimate the BatchNorm statistics anew, on what the compressed network delivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lrfc.passes.fold_batchnorm import drop_dropout
from lrfc.state import Fact, State, batches


@dataclass(frozen=True)
class RecalibrateBatchNorm:
    """Re-estimate every BatchNorm's moving mean and variance on training inputs, without gradients or labels.

    A few forward passes in training mode, batch statistics averaged with equal weight: the adaptive BatchNorm of EagleEye (Li et al. 2020,
    arXiv 2007.02491). Without BatchNorm layers, or on synthetic data, the graph stays as it is.
    """

    samples: int = 5_000
    batch: int = 250

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the new statistics."""
        from lrfc.ir import keras_io

        norms = [op for op in state.graph.layers() if op.kind == "BatchNormalization"]
        inputs = tuple(x[: self.samples] for x in state.data.train.inputs)
        size = min(self.batch, len(inputs[0]))
        if not norms or state.data.synthetic or size < 16:  # noqa: PLR2004  fewer samples say less than the old statistics
            return state
        model = keras_io.to_keras(drop_dropout(state.graph))
        layers = [model.get_layer(op.shared or op.name) for op in norms]
        step = state.progress.stage("batchnorm", len(inputs[0]) // size)
        parts = [part for part in batches(inputs, size) if len(part[0]) == size]
        for number, part in enumerate(parts):
            for layer in layers:
                layer.momentum = number / (number + 1)  # the running value becomes the mean of all batches so far
            keras_io.call(model, part, training=True)
            step(1)
        updated = {
            op.name: {**op.weights, "moving_mean": np.asarray(layer.moving_mean), "moving_variance": np.asarray(layer.moving_variance)}
            for op, layer in zip(norms, layers, strict=True)
        }
        return state.with_graph(state.graph.with_weights(updated))
