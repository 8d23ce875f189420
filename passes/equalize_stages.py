"""Cross-layer equalisation: scale the channels between two linear layers to suit 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lrfc.ir.batch import Batch, batches
from lrfc.ir.equalize import Pair, Ranges, equalize, pairs
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.ir.rounding import scaled_by_channel
from lrfc.state import Fact, State
from lrfc.text import factor


@dataclass(frozen=True)
class EqualizeStages:
    """Scale the channels that one linear layer computes, and divide by the scales in the next one.

    An int8 file has one scale for all channels of an activation, and one scale for the weights of
    each output channel. Two layers with nothing between them (factor layers), or only a positively
    homogeneous function (ReLU), can move the range of a channel from the activation into the
    weights that read it, or back. This is cross-layer equalisation (Nagel et al. 2019, arXiv
    1906.04721, 4.1). Since weights have a scale per output channel here, the first layer does not
    matter; the range of the activation is traded against that of the second layer's weights.

    The variance of the noise that rounding causes in the output of the second layer is, with the
    quantisation steps Δ of the activation x and Δ_t of the weights w, and E over calibration
    samples,

        Σ_it (w_it / s_i)² Δ² / 12 + Σ_t Δ_t² / 12 · Σ_i s_i² E[x_i²].

    The pass tries the scales s_i = r_i^β / a_i^(1-β), with a_i the range of the activation and
    r_i that of the weights that read it (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, formula
    4), and takes those with the least noise, if they are better than none. In a linear pair,
    channels whose range is mostly negative change their sign, which makes the common range
    narrower.

    ``bits``: of the activations. ``convolutions``: equalise only pairs whose first layer is one,
    for formats that have no scale per output channel for other layers. This pass runs after
    FoldBatchNorm, on the weights that are emitted.

    Given and result: the graph keeps its ops and shapes; weights change, the function does not.
    """

    samples: int = 200
    sweeps: int = 2
    bits: int = 8
    convolutions: bool = False

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the equalised graph."""
        graph = state.graph.copy()
        candidates = tuple(
            pair
            for pair in pairs(graph)
            if not self.convolutions or scaled_by_channel(graph.op(pair.first))
        )
        if not candidates:
            return state
        ranges = _ranges(graph, candidates, state.data.train.head(self.samples).inputs)
        noise = equalize(graph, candidates, ranges, self.bits, self.sweeps)
        if noise:
            mean = float(np.exp(np.mean(np.log(list(noise.values())))))
            state.progress.log(
                f"  {len(noise)} of {len(candidates)} pairs of layers equalised, their rounding"
                f" noise {factor(mean)}"
            )
        return state.with_graph(graph)


def _ranges(graph: Graph, candidates: Sequence[Pair], inputs: Batch) -> dict[Ref, Ranges]:
    """The ranges and mean squares of the activation of each pair on calibration samples."""
    axes = {pair.tensor: pair.axis for pair in candidates}
    run = keras_io.outputs_at(graph, axes)
    ranges: dict[Ref, Ranges] = {}
    count = len(inputs[0])
    for part in batches(inputs, 64):
        for ref, values in zip(axes, run(part), strict=True):
            new, old = Ranges.of(values, axes[ref]), ranges.get(ref)
            new = replace(new, square=new.square * len(part[0]) / count)
            ranges[ref] = (
                new
                if old is None
                else Ranges(
                    np.minimum(old.low, new.low),
                    np.maximum(old.high, new.high),
                    old.square + new.square,
                )
            )
    return ranges
