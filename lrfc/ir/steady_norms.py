"""Layer normalisation for integers of 8 bits: positions are scaled before their variance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrfc.ir.backend import operation
from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.ir.keras.run import outputs_at
from lrfc.ir.op import Op, Ref, Slot

#: The least scale of a position, as a share of the largest: an integer division by 0 is an error.
LEAST = 0.01


def with_steady_norms(graph: Graph, samples: Batch) -> Graph:
    """The graph with other formulas for its layer normalisations along the last axis.

    With c the centred values of a position, s = E|c| + δ, n = c / s and t = √ε / s,

        c / √(E[c²] + ε) = n / √(E[n²] + t²).

    One scale for a tensor of 8 bits has to hold the variances E[c²] of all positions. Those of a
    transformer differ by orders of magnitude, so that the small ones are rounded to a few values.
    E[n²] is about 1 wherever a position varies by more than δ, which is ``LEAST`` of the largest
    E|c| on the samples. Keras' formula also subtracts two products larger than their difference.
    """
    norms = [op for op in graph if op.kind == "LayerNormalization" and _is_plain(graph, op)]
    changed, largest = graph.copy(), _largest(graph, norms, samples)
    for op in norms:
        root = math.sqrt(op["epsilon"])
        _Steady(changed, op)(root, max(root, LEAST * largest[op.name]))
    return changed


def _is_plain(graph: Graph, op: Op) -> bool:
    """Whether the values of the last axis are normalised by mean and variance."""
    rank, axis = len(graph.tensors(op.name)[0].shape), op["axis"]
    axes = axis if isinstance(axis, Sequence) else [axis]
    return [a % rank for a in axes] == [rank - 1] and not op["rms_scaling"] and op["epsilon"] > 0


def _largest(graph: Graph, norms: Sequence[Op], samples: Batch) -> Mapping[str, float]:
    """The largest mean distance from the mean of a position, by normalisation."""
    largest = dict.fromkeys((op.name for op in norms), 0.0)
    if not largest:
        return largest
    run = outputs_at(graph, [graph.operands(name)[0] for name in largest])
    for part in batches(samples, 64):
        for name, x in zip(largest, run(part), strict=True):
            distance = np.abs(x - x.mean(-1, keepdims=True)).mean(-1)
            largest[name] = max(largest[name], float(distance.max()))
    return largest


class _Steady:
    """The replacement of one call of a layer."""

    def __init__(self, graph: Graph, op: Op) -> None:
        self._graph, self._op = graph, op
        self._old = f"{op.name}\0"  # frees the name for the last new op
        graph.rename(op.name, self._old)

    def __call__(self, root: float, delta: float) -> None:
        """Put the new ops in the place of the layer. ``root``: of ε; ``delta``: δ."""
        source = self._graph.operands(self._old)[0]
        centred = self._add("centred", "Subtract", source, self._mean("mean", source))
        size = self._mean("size", self._add("absolute", "Absolute", centred))
        scale = self._add("scale", "Add", size, delta)
        steady = self._add("steady", "Divide", centred, scale)
        least = self._add("least", "Divide", root, scale)
        variance = self._mean("variance", self._add("square", "Multiply", steady, steady))
        # Subtracted: where one tensor looks like a bias, Keras adds it by an op for images, which
        # the converter refuses here.
        floor = self._add("floor", "Multiply", least, self._add("negative", "Negative", least))
        variance = self._add("moment", "Subtract", variance, floor)
        result = self._add("normal", "Multiply", steady, self._add("inverse", "Rsqrt", variance))
        shape = (*(1 for _ in self._graph.tensor(result).shape[1:]), -1)
        for kind, name in (("Multiply", "gamma"), ("Add", "beta")):
            if name in self._op.weights:
                result = self._add(name, kind, result, self._op.weights[name].reshape(shape))
        self._graph.substitute(Ref(self._old), result)
        self._graph.remove(self._old)
        self._graph.rename(result.op, self._op.name)

    def _mean(self, part: str, source: Ref) -> Ref:
        return self._add(part, "Mean", source, axis=-1, keepdims=True)

    def _add(self, part: str, kind: str, *values: Any, **attrs: Any) -> Ref:
        """A function of keras.ops of tensors and constants."""
        operands = tuple(value for value in values if isinstance(value, Ref))
        slots = iter(range(len(operands)))
        args = tuple(Slot(next(slots)) if isinstance(value, Ref) else value for value in values)
        name = self._graph.free_name(f"{self._op.name}__{part}")
        new = Op(name, f"ops.{kind}", attrs, call=(args, {}), origin=operation(kind))
        return self._graph.add(new, operands, before=self._old)
