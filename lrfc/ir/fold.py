"""The form of a graph for inference, which is emitted, and the rewrites that lead to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrfc.ir.affine import Affine, affine, at_inference, take_in_after
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.ir.padding import pad_later


def inference_form(graph: Graph) -> Graph:
    """The graph with its BatchNorms folded and its padding where it costs the least.

    See ``fold_batchnorm`` and ``lrfc.ir.padding.pad_later``.
    """
    return pad_later(fold_batchnorm(graph))


def drop_dropout(graph: Graph) -> Graph:
    """Remove the layers that are the identity at inference.

    Given::

        conv = Conv2D(x) filters=8 kernel_size=3 -> (?, 6, 6, 8)
        drop = Dropout(conv) -> (?, 6, 6, 8)
        relu = ReLU(drop) -> (?, 6, 6, 8)

    Result::

        conv = Conv2D(x) filters=8 kernel_size=3 -> (?, 6, 6, 8)
        relu = ReLU(conv) -> (?, 6, 6, 8)

    A layer that was called with ``training=True`` is active at inference and stays.
    """
    graph = graph.copy()
    for op in graph:
        if op.info.is_dropout and at_inference(op):
            graph.splice(op.name, [])
    return graph


def fold_batchnorm(graph: Graph) -> Graph:
    """Multiply each BatchNorm into the linear layer whose only reader it is.

    Given::

        conv = Conv2D(x) filters=8 kernel_size=3 use_bias=False -> (?, 6, 6, 8)
        bn = BatchNormalization(conv) -> (?, 6, 6, 8)
        relu = ReLU(bn) -> (?, 6, 6, 8)

    Result::

        conv = Conv2D(x) filters=8 kernel_size=3 -> (?, 6, 6, 8)
        relu = ReLU(conv) -> (?, 6, 6, 8)

    A BatchNorm folds into a shared layer when each call is followed by one that computes the same.
    A BatchNorm after any other op stays.
    """
    graph = graph.copy()
    for layer in graph.layers():
        while layer.info.is_linear and _fold_next(graph, graph.op(layer.name)):
            pass
    return graph


def _fold_next(graph: Graph, layer: Op) -> bool:
    """Fold the BatchNorm after every call of the layer into it; return whether it was possible."""
    calls = graph.calls(layer)
    norms = [graph.only_consumer(call.name) for call in calls]
    transforms = [_transform(graph, norm) for norm in norms]
    first = transforms[0]
    if first is None or not all(other is not None and _equal(first, other) for other in transforms):
        return False
    folded = take_in_after(layer, graph.tensor(Ref(layer.name)), first)
    if folded is None:
        return False
    for norm in norms:
        assert norm is not None
        graph.splice(norm.name, [])
    for call in calls:  # all calls share the very same arrays
        graph.replace(replace(call, attrs=folded.attrs, weights=folded.weights))
    return True


def _transform(graph: Graph, norm: Op | None) -> Affine | None:
    """The affine map of a BatchNorm; None for any other op."""
    if norm is None or norm.kind != "BatchNormalization" or len(graph.operands(norm.name)) != 1:
        return None
    return affine(norm, graph.input_tensors(norm.name)[0])


def _equal(a: Affine, b: Affine) -> bool:
    return np.array_equal(a.scale, b.scale) and np.array_equal(a.shift, b.shift)
