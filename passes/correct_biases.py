"""Bias correction: remove the mean error that the rounding of weights causes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.affine import Affine, channel_axis, take_in_after
from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.ir.rounding import STEPS, rounded, rounds
from lrfc.state import Fact, State


@dataclass(frozen=True)
class CorrectBiases:
    """Subtract the mean error of each output channel, which 8-bit weights cause, from its bias.

    For weights W rounded to W₈ and inputs x it is (W₈ − W) ∗ E[x] (Nagel et al. 2019, arXiv
    1906.04721, 4.2). E[x] is the mean over calibration samples at each position, so that the effect
    of padding is exact. This pass runs last, on the weights that are emitted. The outputs of the
    float graph become worse by the same amount by which those of the integer file become better.

    ``steps``: steps from 0 to the largest weight in the format of the file (lrfc.ir.rounding).

    Given and result: the graph keeps its ops and shapes; biases change, and layers without a bias
    get one.
    """

    samples: int = 200
    steps: int = STEPS

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the corrected graph; the same state without linear layers."""
        graph = state.graph.copy()
        layers = [
            op
            for op in graph
            if rounds(op) and len(graph.calls(op)) == 1 and len(graph.operands(op.name)) == 1
        ]
        if not layers:
            return state
        means = _means(graph, layers, state.data.train.head(self.samples).inputs)
        for op in layers:
            corrected = _corrected(graph, op, means[graph.operands(op.name)[0]], self.steps)
            if corrected is not None:
                graph.replace(corrected)
        return state.with_graph(graph)


def _means(graph: Graph, layers: list[Op], inputs: Batch) -> Mapping[Ref, NDArray[np.float32]]:
    """The mean over samples (1, ...) of each tensor that a layer reads."""
    refs = list(dict.fromkeys(graph.operands(op.name)[0] for op in layers))
    run = keras_io.outputs_at(graph, refs)
    sums = [np.zeros((), np.float64)] * len(refs)
    for part in batches(inputs, 64):
        sums = [
            total + values.sum(0, dtype=np.float64, keepdims=True)
            for total, values in zip(sums, run(part), strict=True)
        ]
    return {
        ref: (total / len(inputs[0])).astype(np.float32)
        for ref, total in zip(refs, sums, strict=True)
    }


def _corrected(graph: Graph, op: Op, mean: NDArray[np.float32], steps: int) -> Op | None:
    """The layer with its corrected bias; None if its bias cannot take a value for each channel."""
    difference = rounded(op, steps).weights["kernel"] - op.weights["kernel"]
    layer = replace(op.with_attrs(use_bias=False, activation=None), weights={"kernel": difference})
    (error,) = keras_io.single(layer)([mean])
    tensor = graph.tensors(op.name)[0]
    axis = channel_axis(op, tensor)
    others = tuple(number for number in range(error.ndim) if number != axis)
    correction = -error.mean(axis=others, keepdims=True, dtype=np.float64)[0]
    corrected = take_in_after(
        op.with_attrs(activation=None), tensor, Affine(np.ones_like(correction), correction)
    )
    if corrected is None:
        return None
    return replace(corrected, attrs={**corrected.attrs, "activation": op["activation"]})
