"""Temporary buffers in the arena of TensorFlow Lite Micro, which its kernels use as they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from lrfc.costs.placement import Buffer
from lrfc.targets.tflite import flatfile

#: The reductions whose kernels keep an index and the axes, and those that add up in 32 bits.
_REDUCTIONS = frozenset({"MEAN", "REDUCE_MAX", "REDUCE_MIN", "SUM"})
_SUMS = frozenset({"MEAN", "SUM"})


def temporaries(model: Any, alignment: int) -> tuple[Buffer, ...]:
    """The buffers of a ``ModelT``'s kernels, each alive at its operator alone.

    Those of reductions and of transposed convolutions of integers; no other operator that lrfc
    emits was seen to need any. Sizes are rounded up to ``alignment``.
    """
    return tuple(
        Buffer(f"{step}/{number}", -(-size // alignment) * alignment, step, step)
        for step, op in enumerate(model.subgraphs[0].operators)
        for number, size in enumerate(_sizes(model, op))
    )


def end(placed: Mapping[Buffer, int], more: Sequence[Buffer]) -> int:
    """The bytes of an arena with these buffers, after the runtime has placed more of them.

    As its GreedyMemoryPlanner does beside a plan: the largest first, each in the lowest gap.
    """
    places = dict(placed)
    for buffer in sorted(more, key=lambda buffer: -buffer.size):
        offset = 0
        alive = [(at, other.size) for other, at in places.items() if other.meets(buffer)]
        for start, size in sorted(alive):
            if start - offset >= buffer.size:
                break
            offset = max(offset, start + size)
        places[buffer] = offset
    return max((at + buffer.size for buffer, at in places.items()), default=0)


def _sizes(model: Any, op: Any) -> list[int]:
    """The bytes of each buffer of one kernel."""
    name, tensors = flatfile.operator(model, op), model.subgraphs[0].tensors
    types, result = flatfile.schema().TensorType, tensors[int(op.outputs[0])]
    outputs = prod(flatfile.numbers(result.shape))
    if name in _REDUCTIONS:
        index = 4 * len(flatfile.numbers(tensors[int(op.inputs[0])].shape))
        sums = name in _SUMS and result.type in (types.INT8, types.INT16)
        return [*([4 * outputs] if sums else []), index, index]
    if name == "TRANSPOSE_CONV":  # the sums, in 32 or 64 bits
        return [{types.INT8: 4, types.INT16: 8}.get(result.type, 0) * outputs]
    return []
