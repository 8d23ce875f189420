"""The memory plan of a .tflite file for microcontrollers.

TensorFlow Lite Micro places the activations of a file when it loads it, the largest first, which
may take far more memory than are ever alive at one time. It follows a plan that the file holds as
metadata (the section on offline planned tensor allocations of its docs/memory_management.md).
LiteRT and Vela ignore it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrfc.costs.placement import plan
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import ALIGNMENT, activations, fixed
from lrfc.targets.tflite.in_place import Shared, shared
from lrfc.targets.tflite.order import least_order
from lrfc.targets.tflite.temporaries import end, temporaries

#: The name of the metadata.
NAME = "OfflineMemoryAllocation"


def with_plan(content: bytes | bytearray) -> bytes:
    """The file with its operators in the order of the least peak, and with a memory plan.

    Its outputs are the same. A file whose arena is not known in front of a run stays as it is; see
    ``lrfc.targets.tflite.activations.fixed``.
    """
    model = flatfile.unpack(content)
    found = fixed(model)
    if found is None:
        return bytes(content)
    graph = model.subgraphs[0]
    graph.operators = [graph.operators[number] for number in least_order(model, found)]
    _embed(model, shared(model, activations(model)))
    return flatfile.pack(model)


def planned_bytes(model: Any) -> int | None:
    """The bytes of a ``ModelT``'s arena by its own memory plan, or else by that of a runtime.

    By its own plan, with what TensorFlow Lite Micro's kernels need beside tensors. None where they
    are known at run time only.
    """
    found = fixed(model)
    if found is None:
        return None
    places = offsets(model)
    if not places:
        return found.arena.planned_bytes(ALIGNMENT)
    placed = {
        buffer: places[tensor]
        for tensor, buffer in zip(found.tensors, found.arena.buffers, strict=True)
    }
    return end(placed, temporaries(model, ALIGNMENT))


def offsets(model: Any) -> dict[int, int]:
    """The offset of each tensor that the plan in a ``ModelT`` places; empty without a plan."""
    for metadata in model.metadata or ():
        if flatfile.name(metadata) == NAME:
            content = np.asarray(model.buffers[metadata.buffer].data, np.uint8).view("<i4")
            places = enumerate(content[3:].tolist())  # behind a head of three numbers
            return {number: place for number, place in places if place >= 0}
    return {}


def _embed(model: Any, found: Shared) -> None:
    """Add the metadata: format 0, subgraph 0, the number of tensors and the offset of each.

    -1 stands for a constant, and for a tensor that is placed at run time.
    """
    schema = flatfile.schema()
    # The kernels' own buffers are placed at run time, where the plan leaves room for them.
    placed = plan((*found.arena.buffers, *temporaries(model, ALIGNMENT)), ALIGNMENT)
    places = np.full(len(model.subgraphs[0].tensors), -1, "<i4")
    places[list(found.buffers)] = [placed[name] for name in found.buffers.values()]
    content = np.concatenate([np.asarray([0, 0, len(places)], "<i4"), places])
    buffer, metadata = schema.BufferT(), schema.MetadataT()
    buffer.data = content.view(np.uint8)
    metadata.name, metadata.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), metadata]
