"""Outputs of graphs on whole sets of samples, computed once."""

from __future__ import annotations

from math import prod

from lrfc.ir.batch import Batch, head
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.ir.keras.run import predict

#: Bytes of the largest outputs that are stored.
LARGEST = 64 << 20

_OUTPUTS: GraphCache[Batch] = GraphCache()
#: The outputs for the most first samples so far, in a list of one.
_FIRST: GraphCache[list[Batch]] = GraphCache()


def storable(graph: Graph, batch: Batch) -> bool:
    """Whether the outputs of a graph for all samples are small enough to be stored."""
    shapes = [graph.tensor(ref).shape[1:] for ref in graph.outputs]
    size = 4 * len(batch[0]) * sum(prod(length or 1 for length in shape) for shape in shapes)
    return size <= LARGEST and not any(None in shape for shape in shapes)


def outputs(graph: Graph, batch: Batch) -> Batch:
    """The outputs of a graph for all samples, as ``predict``, with its BatchNorms folded.

    They are stored for as long as the graph exists; neither it nor the arrays may change.
    """

    def computed() -> Batch:
        return predict(fold_batchnorm(graph), batch)

    if not storable(graph, batch):
        return computed()
    return _OUTPUTS.get(graph, batch, None, computed)


def first_outputs(graph: Graph, batch: Batch, count: int) -> Batch:
    """The outputs of a graph for at most the first ``count`` samples; see ``outputs``.

    Fewer than at an earlier call are taken from its result.
    """
    count = min(count, len(batch[0]))
    known = _FIRST.get(graph, batch, None, list)
    if not known or len(known[0][0]) < count:
        known[:] = [predict(fold_batchnorm(graph), head(batch, count))]
    return head(known[0], count)
