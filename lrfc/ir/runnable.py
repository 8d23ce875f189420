"""Whether TensorFlow can run a graph on this processor."""

from __future__ import annotations

from lrfc.errors import ModelError
from lrfc.ir import processor
from lrfc.ir.channels_last import stuck
from lrfc.ir.graph import Graph


def check(graph: Graph) -> None:
    """Raise ModelError when a graph, converted to channels last, needs oneDNN and it is off."""
    names = stuck(graph)
    if names and not processor.onednn().on:
        raise ModelError(
            f"model '{graph.name}' computes with channels first in {', '.join(names)}, which"
            f" TensorFlow does with oneDNN only, and oneDNN is {processor.onednn()}: set"
            f" {processor.VARIABLE}=1 before Python starts, or rebuild the layer with"
            " data_format='channels_last'"
        )
