"""Estimate the BatchNorm statistics anew, on what the compressed network delivers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.batch import Batch, batches
from lrfc.ir.fold import drop_dropout
from lrfc.ir.graph import Graph
from lrfc.ir.op import Ref
from lrfc.pruning.facts import Pruned
from lrfc.search.batchnorm import moved
from lrfc.state import Fact, State

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RecalibrateBatchNorm:
    """Move every BatchNorm's statistics by what compression has changed, on training inputs, without gradients or labels.

    Adaptive BatchNorm (EagleEye, Li et al. 2020, arXiv 2007.02491) replaces the moving mean and
    variance by those of a few forward passes in training mode. But a model trained with
    augmentation has other statistics than the plain images show, and loses accuracy by that alone.
    So both networks are passed, and only the difference is carried over
    (``lrfc.search.batchnorm``). An uncompressed network stays as it is. Without BatchNorm, or with
    fewer than 16 inputs, the graph is not changed. Without ``variances`` only the means are moved,
    which is bias correction.
    """

    samples: int = 2_000
    batch: int = 250
    variances: bool = True

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the new statistics."""
        inputs = state.data.train.head(self.samples).inputs
        size = min(self.batch, len(inputs[0]))
        names = [op.name for op in state.graph.layers() if op.kind == "BatchNormalization"]
        if not names or size < 16:
            return state
        parts = [part for part in batches(inputs, size) if len(part[0]) == size]
        step = state.progress.stage("batchnorm", 2 * len(parts))
        old = _remembered(state.original, names, state.data.train.inputs, parts, step)
        new = _statistics(state.graph, names, parts, step)
        updated = {}
        for name in names:
            op, before = state.graph.op(name), _left(state.known(Pruned), name, old[name])
            after = new[name] if self.variances else (new[name][0], before[1])
            mean, variance = moved(op, before, after)
            updated[name] = {**op.weights, "moving_mean": mean, "moving_variance": variance}
        return state.with_graph(state.graph.with_weights(updated))


@dataclass(frozen=True)
class _Seen:
    """The statistics of a network, and what they were seen on."""

    inputs: Batch
    request: tuple[tuple[str, ...], int, int]
    found: dict[str, tuple[Array, Array]]


#: Of each original that still exists, those asked for last: they are the same for every plan that
#: is tried.
_SEEN: WeakKeyDictionary[Graph, _Seen] = WeakKeyDictionary()


def _remembered(
    graph: Graph,
    names: Sequence[str],
    inputs: Batch,
    parts: Sequence[Batch],
    step: Callable[[int], None],
) -> dict[str, tuple[Array, Array]]:
    request, seen = (tuple(names), len(parts), len(parts[0][0])), _SEEN.get(graph)
    if (
        seen is not None
        and seen.request == request
        and all(a is b for a, b in zip(seen.inputs, inputs, strict=True))
    ):
        step(len(parts))
        return seen.found
    found = _statistics(graph, names, parts, step)
    _SEEN[graph] = _Seen(inputs, request, found)
    return found


def _left(pruned: Pruned | None, name: str, moments: tuple[Array, Array]) -> tuple[Array, Array]:
    """The moments of the channels that are left."""
    cut = None if pruned is None else pruned.left.get(Ref(name))
    return moments if cut is None else (moments[0][cut[1]], moments[1][cut[1]])


def _statistics(
    graph: Graph, names: Sequence[str], parts: Sequence[Batch], step: Callable[[int], None]
) -> dict[str, tuple[Array, Array]]:
    """The mean over batches of each BatchNorm's batch mean and variance, every BatchNorm before it normalising by its batch too."""
    from lrfc.ir.keras import io as keras_io

    model = keras_io.to_keras(drop_dropout(graph))
    layers = {name: model.get_layer(graph.op(name).shared or name) for name in names}
    for layer in layers.values():
        layer.trainable = True  # a frozen BatchNorm would not look at its batch
    for number, part in enumerate(parts):
        for layer in layers.values():
            layer.momentum = number / (
                number + 1
            )  # the running value becomes the mean of all batches so far
        keras_io.call(model, part, training=True)
        step(1)
    return {
        name: (np.asarray(layer.moving_mean), np.asarray(layer.moving_variance))
        for name, layer in layers.items()
    }
