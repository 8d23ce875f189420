"""Operators of a .tflite file that may write their output over an input.

Additions, subtractions and multiplications of tensors of one shape read every value before they
write it, and no other operator reads an input that ends with them. A memory plan may then give both
tensors the same place. TensorFlow Lite Micro checks no plan for that; the kernels of CMSIS-NN and
its own go through the values in their order. In residual networks the addition is often where the
most bytes are alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lrfc.costs.arena import Arena
from lrfc.costs.overwriting import merged
from lrfc.costs.placement import Buffer
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import Activations

#: The operators that compute each value from the values at its place alone.
ELEMENTWISE = frozenset({"ADD", "SUB", "MUL"})


@dataclass(frozen=True)
class Shared:
    """The activations of a file, where outputs share the buffers of inputs.

    ``arena``: with a buffer for each place. ``buffers``: by tensor, the name of its buffer.
    """

    arena: Arena
    buffers: dict[int, str]


def shared(model: Any, found: Activations) -> Shared:
    """The activations of a ``ModelT`` with every output that can be in the place of an input.

    ``found``: its activations without. Inputs and outputs of the file keep places of their own.
    """
    graph = model.subgraphs[0]
    own = dict(zip(found.tensors, found.arena.buffers, strict=True))
    apart = {*flatfile.numbers(graph.inputs), *flatfile.numbers(graph.outputs)}
    pairs: dict[str, tuple[str, str]] = {}
    for step, (name, op) in enumerate(zip(found.arena.timeline, graph.operators, strict=True)):
        source = _overwritten(model, op, step, own, apart)
        if source is not None:
            (result,) = flatfile.numbers(op.outputs)
            pairs[name] = own[source].name, own[result].name
    arena, places = merged(found.arena, pairs)
    return Shared(arena, {tensor: places[buffer.name] for tensor, buffer in own.items()})


def _overwritten(
    model: Any, op: Any, step: int, own: dict[int, Buffer], apart: set[int]
) -> int | None:
    """The input whose place the output of an operator can take; None without one."""
    if flatfile.operator(model, op) not in ELEMENTWISE:
        return None
    tensors = model.subgraphs[0].tensors
    inputs, outputs = flatfile.numbers(op.inputs), flatfile.numbers(op.outputs)
    (result,) = outputs
    kinds = {
        (tuple(flatfile.numbers(tensors[n].shape)), tensors[n].type) for n in (*inputs, result)
    }
    if len(kinds) > 1 or result not in own or result in apart:
        return None
    ending = [n for n in inputs if n in own and n not in apart and own[n].last == step]
    return max(ending, key=lambda n: own[n].first, default=None)
