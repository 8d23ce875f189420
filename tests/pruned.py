"""Helpers: the reference of a pruned network, with zeros for removed units, and random networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization.einsum import Einsum
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op
from lrfc.pruning.cut import cut
from lrfc.pruning.groups import Dependencies, Group, groups
from tests.helpers import difference, random_inputs, random_weights

Kept = Mapping[str, NDArray[np.intp]]


def zeroed(graph: Graph, dependencies: Dependencies, kept: Kept) -> Graph:
    """The graph whose consumers have zero weights for the units that are not kept."""
    weights: dict[str, dict[str, Any]] = {}
    for group in dependencies.groups:
        gone = np.setdiff1d(np.arange(group.width), kept.get(group.name, np.arange(group.width)))
        if not group.consumers:  # filters multiplied with each other: 0 on one side is enough
            first = group.producers[0]
            given = weights.get(first.layer, graph.op(first.layer).weights)
            weights[first.layer] = {name: np.array(array) for name, array in given.items()}
            for array in weights[first.layer].values():
                array[..., first.where(gone)] = 0
        for part in group.consumers:
            op = graph.op(part.layer)
            weights[part.layer] = _blind(
                graph, op, weights.get(part.layer, dict(op.weights)), part.where(gone)
            )
    return graph.with_weights(weights)


def _blind(
    graph: Graph, op: Op, weights: Mapping[str, Any], rows: NDArray[np.intp]
) -> dict[str, Any]:
    name = "depthwise_kernel" if op.kind.startswith("Separable") else "kernel"
    kernel = np.array(weights[name])
    if op.kind == "EinsumDense":
        einsum = Einsum.of(op, graph.input_tensors(op.name)[0])
        matrix = einsum.matrix(kernel)
        matrix[rows] = 0
        kernel = einsum.kernel(matrix)
    elif op.kind.endswith("Transpose"):
        kernel[..., rows] = 0
    elif op.kind == "Dense":
        kernel[rows] = 0
    else:
        kernel[..., np.unique(rows % kernel.shape[-2]), :] = 0
    return {**weights, name: kernel}


def halves(
    dependencies: Dependencies, seed: int = 0, share: float = 0.5
) -> dict[str, NDArray[np.intp]]:
    """Random units of every group, about this share of them."""
    rng = np.random.default_rng(seed)
    return {g.name: _some(g, rng, share) for g in dependencies.groups}


def checked(
    graph: Graph,
    share: float = 0.5,
    seed: int = 0,
    samples: int = 2,
    *,
    whole_heads: bool = False,
) -> tuple[Dependencies, Graph]:
    """Prune every group of a graph and compare; the dependencies and the pruned graph."""
    found = groups(graph, whole_heads=whole_heads)
    kept = halves(found, seed, share)
    smaller = cut(graph, kept, found)
    smaller.check()
    batch = random_inputs(graph, samples, seed)
    expected = keras_io.predict(zeroed(graph, found, kept), batch)
    assert difference(expected, keras_io.predict(smaller, batch)) < 1e-5
    if any(len(kept[group.name]) < group.width for group in found.groups):
        assert smaller.params < graph.params
    removed = found.removed(kept)
    for op in graph:
        for ref in [r for r in found.labels if r.op == op.name]:
            assert found.shape(graph, ref, removed) == smaller.tensor(ref).shape
    return found, smaller


def _some(group: Group, rng: np.random.Generator, share: float) -> NDArray[np.intp]:
    return np.sort(rng.choice(group.width, max(1, round(share * group.width)), replace=False))


# -- random networks -------------------------------------------------------------------------------


def _grouped(x: Any, width: int, groups: int) -> Any:
    from keras import layers

    return layers.Conv2D(groups * max(1, width // groups), 3, padding="same", groups=groups)(x)


def _block(kind: str, x: Any, width: int) -> Any:
    """One more block behind x (B, H, W, C)."""
    from keras import layers, ops

    channels = x.shape[-1]
    even = channels % 2 == 0
    if kind == "residual":
        y = layers.BatchNormalization()(
            layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        )
        return layers.Activation("sigmoid")(layers.Add()([x, y]))
    if kind == "dense_concat":
        return layers.Concatenate()([layers.Conv2D(width, 1, activation="relu")(x), x])
    if kind == "squeeze_excite":
        gate = layers.Conv2D(channels, 1, activation="sigmoid")(
            layers.Conv2D(width, 1, activation="relu")(
                layers.GlobalAveragePooling2D(keepdims=True)(x)
            )
        )
        return layers.Multiply()([x, gate])
    if kind == "squeeze_excite_flat":
        gate = layers.Dense(channels, activation="hard_sigmoid")(
            layers.Dense(width)(layers.GlobalMaxPooling2D()(x))
        )
        return layers.Multiply()([layers.Reshape((1, 1, channels))(gate), x])
    if kind == "shared":
        conv, norm = layers.Conv2D(width, 3, padding="same"), layers.BatchNormalization()
        return layers.Maximum()([norm(conv(x)), norm(conv(layers.ReLU()(x)))])
    if kind == "shared_recurrent":
        conv = layers.Conv2D(channels, 1, activation="tanh")
        return conv(conv(x))
    if kind == "split" and even:
        left, right = ops.split(x, 2, axis=-1)
        return layers.Concatenate()([layers.Conv2D(width, 1)(right), left])
    if kind == "slice":
        return x[..., 1:] + 0.5
    if kind == "padded_shortcut":
        shortcut = ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 2)))
        return layers.ReLU()(
            layers.Add()([layers.Conv2D(channels + 3, 3, strides=2, padding="same")(x), shortcut])
        )
    if kind == "shuffle" and even:
        h, w = x.shape[1:3]
        return layers.Reshape((h, w, channels))(
            layers.Permute((1, 2, 4, 3))(layers.Reshape((h, w, 2, channels // 2))(x))
        )
    if kind == "group_norm" and even:
        return layers.GroupNormalization(2)(layers.Conv2D(channels, 1)(x))
    simple: dict[str, Callable[[], Any]] = {
        "conv": lambda: layers.Conv2D(width, 3, padding="same", activation="relu"),
        "transposed": lambda: layers.Conv2DTranspose(width, 2, strides=2, padding="same"),
        "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        "separable": lambda: layers.SeparableConv2D(width, 3, padding="same", depth_multiplier=2),
        "prelu": lambda: layers.PReLU(shared_axes=[1, 2]),
        "dense": lambda: layers.Dense(width, activation="gelu"),
        "pool": lambda: layers.AveragePooling2D(2, strides=1, padding="same"),
        "rescaling": lambda: layers.Rescaling(
            [0.1 * (i + 1) for i in range(channels)], offset=[0.3] * channels
        ),
        "layer_norm": layers.LayerNormalization,
        "spatial_norm": lambda: layers.LayerNormalization(axis=[1, 2]),
        "pad": lambda: layers.Cropping2D(1) if x.shape[1] > 4 else layers.ZeroPadding2D(1),
    }
    if kind == "grouped" and even:
        return _grouped(x, width, 2)
    if kind == "by_channel":
        return _grouped(x, 2 * channels, channels)
    return simple[kind if kind in simple else "conv"]()(x)


BLOCKS = (
    *(
        "conv",
        "residual",
        "dense_concat",
        "squeeze_excite",
        "squeeze_excite_flat",
        "shared",
        "shared_recurrent",
        "split",
        "slice",
        "shuffle",
    ),
    *(
        "group_norm",
        "transposed",
        "depthwise",
        "separable",
        "prelu",
        "dense",
        "pool",
        "rescaling",
        "layer_norm",
        "spatial_norm",
        "pad",
    ),
    *("grouped", "by_channel", "padded_shortcut"),
)


def random_net(
    blocks: Sequence[str], widths: Sequence[int], *, flat: bool, two_outputs: bool, seed: int
) -> Any:
    """A network of those blocks between a stem and one or two heads."""
    import keras
    from keras import layers

    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(widths[0], 3, padding="same", name="stem")(inputs)
    middle = x
    for i, (kind, width) in enumerate(zip(blocks, widths[1:], strict=True)):
        x = _block(kind, x, width)
        middle = x if i == 0 else middle
    outputs = [
        layers.Dense(3, name="head")(
            layers.Flatten()(x) if flat else layers.GlobalAveragePooling2D()(x)
        )
    ]
    if two_outputs:
        outputs.append(layers.Conv2D(2, 1, name="mask")(middle))
    return random_weights(keras.Model(inputs, outputs), seed)
