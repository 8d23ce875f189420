"""The activation arena of a .tflite file, in the order of its operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lrfc.costs.arena import Arena
from lrfc.costs.placement import Buffer
from lrfc.errors import ModelError
from lrfc.targets.tflite import flatfile

#: Bytes that TensorFlow Lite Micro aligns every tensor to.
ALIGNMENT = 16


@dataclass(frozen=True)
class Activations:
    """The activations of the first subgraph of a file.

    ``arena``: operators are named by their first output, tensors by their name, with their number
    in the subgraph behind it where a name is not unique. ``tensors``: the number of each of its
    buffers.
    """

    arena: Arena
    tensors: tuple[int, ...]


def activations(model: Any) -> Activations:
    """The activations of a ``ModelT``, alive as long as in TensorFlow Lite Micro.

    Every tensor that is no constant and no variable has a buffer of its own, also the output of a
    RESHAPE; inputs are alive from the start, outputs to the end, any other from the operator that
    writes it to the last one that reads it. Sizes are rounded up to ALIGNMENT. What a kernel needs
    while it runs (``lrfc.targets.tflite.temporaries``) is not counted, nor are further subgraphs.
    ModelError for a tensor without a fixed size.
    """
    graph = model.subgraphs[0]
    first, last = _lifetimes(graph)
    names: set[str] = set()
    buffers: list[Buffer] = []
    numbers: list[int] = []
    labels: dict[int, str] = {}
    for number, tensor in enumerate(graph.tensors):
        label = flatfile.name(tensor)
        labels[number] = label if label and label not in names else f"{label}#{number}"
        names.add(labels[number])
        if number not in first or tensor.isVariable or flatfile.is_constant(model, tensor):
            continue
        size = -(-flatfile.tensor_bytes(tensor) // ALIGNMENT) * ALIGNMENT
        if size:
            buffers.append(Buffer(labels[number], size, first[number], last[number]))
            numbers.append(number)
    alive = [0] * (len(graph.operators) + 1)
    for buffer in buffers:
        alive[buffer.first] += buffer.size
        alive[buffer.last + 1] -= buffer.size
    timeline, total = {}, 0
    for change, op in zip(alive, graph.operators, strict=False):
        total += change
        timeline[labels[int(op.outputs[0])]] = total
    at_op = max(timeline, key=timeline.__getitem__)
    return Activations(Arena(timeline[at_op], at_op, timeline, tuple(buffers)), tuple(numbers))


def fixed(model: Any) -> Activations | None:
    """The activations of a ``ModelT`` whose arena is known in front of a run, or None.

    It is not known with further subgraphs, and with tensors without a fixed size.
    """
    if len(model.subgraphs) > 1:
        return None
    try:
        return activations(model)
    except ModelError:
        return None


def live_peak(content: bytes | bytearray) -> int:
    """The most bytes of activations of a file that are alive at one time; see ``activations``."""
    return activations(flatfile.unpack(content)).arena.peak_bytes


def _lifetimes(graph: Any) -> tuple[dict[int, int], dict[int, int]]:
    """The first and the last operator, by number, at which each used tensor is alive."""
    first = dict.fromkeys(flatfile.numbers(graph.inputs), 0)
    last = dict(first)
    for step, op in enumerate(graph.operators):
        for number in flatfile.numbers(op.outputs):
            first.setdefault(number, step)
            last[number] = step
        for number in flatfile.numbers(op.inputs):
            if number >= 0:  # an optional input that is not there has the number -1
                first.setdefault(number, 0)
                last[number] = step
    for number in flatfile.numbers(graph.outputs):
        first.setdefault(number, 0)
        last[number] = len(graph.operators) - 1
    return first, last
