"""Whether a network fits into the memory of the command: refused before any work where not."""

from __future__ import annotations

from lrfc.costs.arena import Arena, arena
from lrfc.errors import ModelError, UsageError
from lrfc.ir.graph import Graph
from lrfc.search.statistics import FEWEST
from lrfc.system import memory
from lrfc.text import size


def check(graph: Graph, samples: int) -> None:
    """Raise UsageError where the least that a refit holds is more than the memory allows.

    That is the original and the compressed network with their weights, and their activations for
    the fewest samples. ``samples``: of the data. Of a network with an open axis only the weights
    count.
    """
    weights = {id(array): array.nbytes for op in graph for array in op.weights.values()}
    held, count = sum(weights.values()), min(samples, FEWEST)
    activations = _arena(graph)
    need = 2 * (held + (0 if activations is None else count * activations.peak_bytes))
    if need <= memory.budget():
        return
    most = (
        ""
        if activations is None
        else f" and the activations of {count} samples, each {size(activations.peak_bytes)} at"
        f" '{activations.at_op}'"
    )
    raise UsageError(
        f"'{graph.name}' needs {size(need)}, for two networks with weights of {size(held)}{most};"
        f" {size(memory.budget())} are allowed: give more with --memory, or a smaller model"
    )


def _arena(graph: Graph) -> Arena | None:
    try:
        return arena(graph, 4)
    except ModelError:  # a shape is not fixed
        return None
