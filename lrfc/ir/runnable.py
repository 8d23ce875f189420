"""Whether TensorFlow can run a graph on this processor."""

from __future__ import annotations

from lrfc.errors import ModelError
from lrfc.ir.channels_last import stuck
from lrfc.ir.graph import Graph
from lrfc.ir.processor import VARIABLE, onednn


def check(graph: Graph) -> None:
    """Raise ModelError when the graph holds what TensorFlow computes with oneDNN alone, and that is off. ``graph``: with its channels last."""
    names = stuck(graph)
    if names and not onednn().on:
        raise ModelError(
            f"model '{graph.name}' computes with channels first in {', '.join(names)}, which TensorFlow does with oneDNN only, and oneDNN is"
            f" {onednn()}: set {VARIABLE}=1 before Python starts, or rebuild the layer with data_format='channels_last'"
        )
