"""Scale the channels between two linear layers so that both suit 8 bits."""

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
    """Multiply the channels between two linear layers by scales, and divide them out again in the second: the function stays the same.

    An int8 file has one scale for all channels of an activation, and one for all weights that make
    an output channel. Between two layers with nothing nonlinear between them (the stages of a
    factorization), or only what is positively homogeneous (ReLU), each channel's range can be moved
    between the activation and the weights that read it: cross-layer equalisation (Nagel et al.
    2019, arXiv 1906.04721, 4.1), here for weights with a scale per output channel, so that what is
    weighed is the activation against the second layer. The noise that rounding leaves in the output
    of the second layer is, with Δ the step of the activation x, Δ_t those of the weights w and E
    over calibration inputs,

        Σ_it (w_it / s_i)² Δ² / 12 + Σ_t Δ_t² / 12 · Σ_i s_i² E[x_i²].

    Of the scales s_i = r_i^β / a_i^(1-β), with a_i the range of the activation and r_i that of the
    weights that read it (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, formula 4), those with
    the least noise are taken, or none. Where the pair is linear, channels whose range is mostly
    negative change their sign: the common range becomes narrower. ``bits``: of the activations.
    ``convolutions``: only those have a scale per output channel, so that the outputs of other
    layers stay as they are. To be run behind FoldBatchNorm, on the weights that ship.

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
        """The state with the balanced graph."""
        graph = state.graph.copy()
        found = tuple(
            pair
            for pair in pairs(graph)
            if not self.convolutions or scaled_by_channel(graph.op(pair.first))
        )
        if not found:
            return state
        ranges = _ranges(graph, found, state.data.train.head(self.samples).inputs)
        changed = equalize(graph, found, ranges, self.bits, self.sweeps)
        if changed:
            mean = float(np.exp(np.mean(np.log(list(changed.values())))))
            state.progress.log(
                f"  {len(changed)} of {len(found)} pairs of layers balanced, rounding noise of"
                f" these {factor(mean)}"
            )
        return state.with_graph(graph)


def _ranges(graph: Graph, wanted: Sequence[Pair], inputs: Batch) -> dict[Ref, Ranges]:
    """What the calibration inputs show of the activation of each pair."""
    axes = {pair.tensor: pair.axis for pair in wanted}
    run = keras_io.outputs_at(graph, axes)
    found: dict[Ref, Ranges] = {}
    count = len(inputs[0])
    for part in batches(inputs, 64):
        for ref, values in zip(axes, run(part), strict=True):
            new, old = Ranges.of(values, axes[ref]), found.get(ref)
            new = replace(new, square=new.square * len(part[0]) / count)
            found[ref] = (
                new
                if old is None
                else Ranges(
                    np.minimum(old.low, new.low),
                    np.maximum(old.high, new.high),
                    old.square + new.square,
                )
            )
    return found
