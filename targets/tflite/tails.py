"""The tail of a .tflite file's arena in TensorFlow Lite Micro."""

from __future__ import annotations

from typing import Any

from lrfc.costs.tail import BASE, TENSOR, operator_bytes
from lrfc.targets.tflite import flatfile

#: Operators with a multiplier for each channel.
_PER_CHANNEL = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})


def file_tail(model: Any) -> int:
    """The bytes of the tail of a ``ModelT``; see ``lrfc.costs.tail``."""
    graph = model.subgraphs[0]
    total = BASE + TENSOR * len(graph.tensors)
    for op in graph.operators:
        name = flatfile.operator(model, op)
        result = graph.tensors[op.outputs[0]]
        total += operator_bytes(name, 0, int(result.shape[-1]) if name in _PER_CHANNEL else 0)
    return total
