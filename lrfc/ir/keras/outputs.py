"""Outputs of graphs on whole sets of samples, computed once."""

from __future__ import annotations

from math import prod

from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.ir.keras.run import predict

#: Bytes of the largest outputs that are stored.
LARGEST = 64 << 20

_OUTPUTS: GraphCache[Batch] = GraphCache()


def outputs(graph: Graph, batch: Batch) -> Batch:
    """The outputs of a graph for all samples, as ``predict``.

    They are stored for as long as the graph exists; neither it nor the arrays may change.
    """
    shapes = [graph.tensor(ref).shape[1:] for ref in graph.outputs]
    size = 4 * len(batch[0]) * sum(prod(length or 1 for length in shape) for shape in shapes)
    if size > LARGEST or any(None in shape for shape in shapes):
        return predict(graph, batch)
    return _OUTPUTS.get(graph, batch, None, lambda: predict(graph, batch))
