"""Channel statistics on calibration data: slopes of the output, and ranks of feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.factorization.einsum import Einsum
from lrfc.ir.batch import Batch, batches, head
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.ir.ops import conv_geometry
from lrfc.search.sensitivity import is_distribution
from lrfc.system import memory

#: Samples for slopes (one backward pass each), and samples for ranks of feature maps.
SLOPES, RANKED = 96, 16
#: Most values of feature maps that one forward pass returns.
DELIVERED = 32 << 20
#: Largest side of a feature map whose rank is computed from all values; of larger ones, every n-th
#: row and column is used.
SIDE = 32


def slopes(
    graph: Graph, readers: Sequence[Op], inputs: Batch, seed: int
) -> dict[str, NDArray[np.float32]]:
    """The change of ℓ per relative change of each input channel, by layer (samples, channels).

    ℓ is the log-probability of a class that is drawn at random. All classes are equally likely:
    where the network is certain, the log-probability of its own prediction has no slope. For
    outputs that are no probabilities, ℓ is their sum with random signs, relative to their spread
    over the samples. A layer is linear in its inputs, so the slope is Σ W·∂ℓ/∂W over the
    weights of the channel. ``readers`` are the layers. ModelError without inputs.
    """
    import keras
    import tensorflow as tf

    from lrfc.ir.keras import io as keras_io

    if not inputs:
        raise ModelError("the taylor criterion needs calibration data")
    model = keras_io.to_keras(graph)
    kernels = [_kernel(keras_io.layer_of(model, op)) for op in readers]
    samples = head(inputs, SLOPES)
    rng = np.random.default_rng(seed)
    cotangents = [_cotangent(values, rng) for values in keras_io.predict(model, samples)]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def products(batch: list[Any], weights: list[Any]) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            outputs = keras.tree.flatten(keras_io.call(model, batch))
            score = tf.add_n([tf.reduce_sum(y * w) for y, w in zip(outputs, weights, strict=True)])
        gradients = tape.gradient(score, kernels, unconnected_gradients="zero")
        return [
            _by_input(graph, op, kernel * gradient)
            for op, kernel, gradient in zip(readers, kernels, gradients, strict=True)
        ]

    rows: list[list[NDArray[np.float32]]] = [[] for _ in readers]
    for i in range(len(samples[0])):
        values = products(
            [tf.constant(x[i : i + 1]) for x in samples],
            [tf.constant(c[i : i + 1]) for c in cotangents],
        )
        for row, value in zip(rows, values, strict=True):
            row.append(np.asarray(value))
    return {op.name: np.stack(row) for op, row in zip(readers, rows, strict=True)}


def _kernel(layer: Any) -> Any:
    """The TensorFlow variable of the weights that multiply the input of a Keras layer."""
    variable = layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel
    return variable.value


def _by_input(graph: Graph, op: Op, values: Any) -> Any:
    """Values in the shape of a kernel, summed for each input channel (or row of a matrix)."""
    import tensorflow as tf

    source, rank = graph.input_tensors(op.name)[0], len(values.shape)
    if op.info.family == "dense":
        return tf.reduce_sum(values, 1)
    if op.info.family == "einsum":
        einsum = Einsum.of(op, source)
        return tf.reshape(
            tf.reduce_sum(values, [einsum.weights.index(letter) for letter in einsum.made]), [-1]
        )
    if op.info.is_transposed:
        return tf.reduce_sum(values, list(range(rank - 1)))
    summed = tf.reduce_sum(values, list(range(rank - 2)))
    if op.info.is_separable:
        return tf.reduce_sum(summed, 1)
    groups = conv_geometry(op, source).groups
    return tf.reshape(
        tf.transpose(tf.reduce_sum(tf.reshape(summed, [summed.shape[0], groups, -1]), 2)), [-1]
    )


def _cotangent(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """∂ℓ/∂(output): that of log p of a random class, or random signs over the spread."""
    if is_distribution(values):
        p = np.clip(values.astype(np.float64), 1e-12, None)
        drawn = np.arange(p.shape[-1]) == rng.integers(0, p.shape[-1], (*p.shape[:-1], 1))
        return np.asarray(np.where(drawn, 1 / p, 0), np.float32)
    spread = max(float(np.sqrt(np.sum(np.square(values - values.mean(0))) / len(values))), 1e-12)
    return np.asarray(rng.choice([-1.0, 1.0], values.shape) / spread, np.float32)


def ranks(graph: Graph, axes: Mapping[Ref, int], inputs: Batch) -> dict[Ref, NDArray[np.float64]]:
    """The mean rank of the feature maps of each channel, plus less than 1 for their energy.

    ``axes``: the channel axis of each tensor. A feature map is a matrix of the first spatial axis
    by the others. Without spatial axes it is one value, of rank 1, and the energy alone decides.
    ModelError without inputs.
    """
    from lrfc.ir.keras import io as keras_io

    if not inputs:
        raise ModelError("the feature_rank criterion needs calibration data")
    run = keras_io.outputs_at(graph, axes)
    samples = head(inputs, RANKED)
    size = sum(prod(n or 1 for n in graph.tensor(ref).shape[1:]) for ref in axes)
    rank = {ref: np.zeros(graph.tensor(ref).shape[axis] or 0) for ref, axis in axes.items()}
    energy = {ref: np.zeros_like(values) for ref, values in rank.items()}
    for part in batches(samples, max(1, memory.share(DELIVERED) // max(1, size))):
        for ref, values in zip(axes, run(part), strict=True):
            maps = np.moveaxis(values, axes[ref], 1)
            maps = maps.reshape(*maps.shape[:2], maps.shape[2] if maps.ndim > 2 else 1, -1)
            energy[ref] += np.square(maps, dtype=np.float64).mean((2, 3)).sum(0)
            steps = [-(-n // SIDE) for n in maps.shape[2:]]
            rank[ref] += np.linalg.matrix_rank(maps[:, :, :: steps[0], :: steps[1]]).sum(0)
    return {
        ref: (
            rank[ref] / len(samples[0])
            + 0.999 * energy[ref] / max(float(energy[ref].max(initial=0)), 1e-30)
        )
        for ref in axes
    }
