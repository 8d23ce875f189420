"""Re-estimate BatchNorm statistics on the activations of the compressed network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.backend import quiet
from lrfc.ir.batch import Batch, batches
from lrfc.ir.fold import drop_dropout
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.ir.op import Ref
from lrfc.pruning.facts import Pruned
from lrfc.search.batchnorm import moved
from lrfc.state import Fact, State

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RecalibrateBatchNorm:
    """Correct the statistics of every BatchNorm by the change that compression causes.

    Adaptive BatchNorm (EagleEye, Li et al. 2020, arXiv 2007.02491) replaces the moving mean and
    variance by those of a few forward passes in training mode. But a model that was trained with
    augmentation has other statistics than plain images show, and would lose accuracy. So this pass
    runs both networks on the same training inputs, and applies only the difference of their
    statistics (``lrfc.search.batchnorm``). It needs no gradients and no labels.

    The graph is not changed without BatchNorms, or with fewer than 16 inputs; an uncompressed
    network keeps its statistics. Without ``variances`` only the means are corrected, which is bias
    correction. ``samples``: the most training inputs. ``batch``: inputs per forward pass.

    Given and result: the graph keeps its ops and shapes; statistics of BatchNorms change.
    """

    samples: int = 500
    batch: int = 250
    variances: bool = True

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the corrected statistics."""
        inputs = state.data.train.head(self.samples).inputs
        size = min(self.batch, len(inputs[0]))
        names = [op.name for op in state.graph.layers() if op.kind == "BatchNormalization"]
        if not names or size < 16:
            return state
        parts = [part for part in batches(inputs, size) if len(part[0]) == size]
        stage = state.progress.stage
        old = _ORIGINALS.get(
            state.original,
            state.data.train.inputs,
            (tuple(names), len(parts), size),
            lambda: _statistics(
                state.original, names, parts, stage("batchnorm of the original", len(parts))
            ),
        )
        new = _statistics(state.graph, names, parts, stage("batchnorm", len(parts)))
        updated = {}
        for name in names:
            op, before = state.graph.op(name), _remaining(state.known(Pruned), name, old[name])
            after = new[name] if self.variances else (new[name][0], before[1])
            mean, variance = moved(op, before, after)
            updated[name] = {**op.weights, "moving_mean": mean, "moving_variance": variance}
        return state.with_graph(state.graph.with_weights(updated))


#: Mean and variance of each channel, by the name of the BatchNorm.
_Statistics = dict[str, tuple[Array, Array]]


#: The statistics of each original: every plan of a build needs them.
_ORIGINALS: GraphCache[_Statistics] = GraphCache()


def _remaining(
    pruned: Pruned | None, name: str, moments: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The moments of the channels that pruning leaves."""
    left = None if pruned is None else pruned.left.get(Ref(name))
    return moments if left is None else (moments[0][left[1]], moments[1][left[1]])


def _statistics(
    graph: Graph, names: Sequence[str], parts: Sequence[Batch], step: Callable[[int], None]
) -> _Statistics:
    """The batch mean and variance of each BatchNorm, averaged over batches.

    All BatchNorms run in training mode, so that the ones before normalise by their batch, too.
    """
    import tensorflow as tf

    from lrfc.ir.keras import io as keras_io

    model = keras_io.to_keras(drop_dropout(graph))
    layers = {name: model.get_layer(graph.op(name).shared or name) for name in names}
    for layer in layers.values():
        layer.trainable = True  # a frozen BatchNorm would use its moving statistics
        layer.momentum = 0.0  # the moving values are those of the last batch

    def observe(*arrays: Any) -> None:
        keras_io.call(model, arrays, training=True)

    # Op by op, all activations would stay in memory.
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in parts[0]]
    with quiet():
        compiled = tf.function(observe, autograph=False).get_concrete_function(*specs)
    sums = {name: (np.float64(0), np.float64(0)) for name in layers}
    for part in parts:
        compiled(*map(tf.constant, part))
        for name, layer in layers.items():
            mean, variance = sums[name]
            sums[name] = mean + layer.moving_mean.numpy(), variance + layer.moving_variance.numpy()
        step(1)
    count = len(parts)
    return {
        name: (np.asarray(mean / count, np.float32), np.asarray(variance / count, np.float32))
        for name, (mean, variance) in sums.items()
    }
