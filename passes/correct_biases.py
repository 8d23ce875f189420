"""Take the mean of what rounding the weights adds to a layer's output out of its bias."""

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
    """Subtract from each bias the mean shift of the output that 8-bit weights cause: (W₈ − W) ∗ E[x], over channels and calibration inputs.

    Nagel et al. 2019 (arXiv 1906.04721, 4.2), with the mean inputs from calibration, position by
    position, so that padding counts as it does. To be run last, on the weights that ship. The float
    function changes by just what the int8 file is to be better by.

    Given and result: the graph keeps its ops and shapes; biases change, and appear where there were
    none. ``steps``: of the weights in the format of the file (lrfc.ir.rounding).
    """

    samples: int = 200
    steps: int = STEPS

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the corrected graph."""
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
    """The mean sample (1, ...) of what each layer reads."""
    read = list(dict.fromkeys(graph.operands(op.name)[0] for op in layers))
    run = keras_io.outputs_at(graph, read)
    sums = [np.zeros((), np.float64)] * len(read)
    for part in batches(inputs, 64):
        sums = [
            total + values.sum(0, dtype=np.float64, keepdims=True)
            for total, values in zip(sums, run(part), strict=True)
        ]
    return {
        ref: (total / len(inputs[0])).astype(np.float32)
        for ref, total in zip(read, sums, strict=True)
    }


def _corrected(graph: Graph, op: Op, mean: NDArray[np.float32], steps: int) -> Op | None:
    kernel = rounded(op, steps).weights["kernel"] - op.weights["kernel"]
    error = replace(op.with_attrs(use_bias=False, activation=None), weights={"kernel": kernel})
    (shift,) = keras_io.single(error)([mean])
    tensor = graph.tensors(op.name)[0]
    axis = channel_axis(op, tensor)
    others = tuple(number for number in range(shift.ndim) if number != axis)
    moved = -shift.mean(axis=others, keepdims=True, dtype=np.float64)[0]
    found = take_in_after(
        op.with_attrs(activation=None), tensor, Affine(np.ones_like(moved), moved)
    )
    return (
        None
        if found is None
        else replace(found, attrs={**found.attrs, "activation": op["activation"]})
    )
