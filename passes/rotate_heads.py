"""Turn the dimensions of attention heads, so that those that matter least can be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.ir.head_pairs import Pair, pairs
from lrfc.ir.head_rotation import Matrix, rotated, second_moments
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.search.statistics import repairable
from lrfc.state import Fact, State


@dataclass(frozen=True)
class RotateHeads:
    """Turn the dimensions of the heads of attention layers into the order of their weight.

    This is the joint factorization of a pair of projections. The scores of a head are the products
    X·Yᵀ of its queries and keys, whose rank is at most the number of its dimensions; its output is
    the product of its mixed values and of the rows of the output projection that read them. The
    pass finds matrices A and B, with A·Bᵀ = 1, after which the first r dimensions of X·A and Y·B
    are the best approximation of rank r of that product on calibration samples; see
    ``lrfc.ir.head_rotation``. Heads that share keys and values share A. How many dimensions the
    heads of a layer keep is chosen with the filters of all other layers.

    ``samples``: calibration samples. With too few to cut filters the graph stays as it is.

    Given and result: the graph keeps its ops and shapes; weights change, the function does not.
    """

    samples: int = 256

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the turned weights."""
        graph, found = state.graph, tuple(pairs(state.graph))
        if not found or not repairable(state):
            return state
        moments = _moments(graph, found, state.data.train.head(self.samples).inputs)
        for pair in found:
            graph = rotated(graph, pair, moments)
        return state.with_graph(graph)


def _moments(graph: Graph, found: Sequence[Pair], inputs: Batch) -> Mapping[Ref, Matrix]:
    """The second moments of the dimensions in each tensor of the pairs."""
    held = {ref: (pair, heads) for pair in found for ref, heads in pair.held}
    run = keras_io.outputs_at(graph, held)
    moments: dict[Ref, Matrix] = {}
    for part in batches(inputs, 64):
        for (ref, (pair, heads)), values in zip(held.items(), run(part), strict=True):
            new = second_moments(values, heads, min(pair.heads))
            moments[ref] = moments[ref] + new if ref in moments else new
    return moments
