"""A graph cut into consecutive parts, of which only those behind a changed layer run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrfc.ir import ops
from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Ref

#: Parts of equal work that a network is cut into: with eight, the passes from each layer on take
#: 56 % of whole ones.
PARTS = 8


@dataclass(frozen=True, eq=False)
class _Part:
    """Consecutive ops as a Keras model.

    ``inputs``: the tensors that it reads from parts before it. ``outputs``: those that later parts
    read.
    """

    names: frozenset[str]
    model: Any
    run: Callable[[Batch], Batch]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


class Segments:
    """A graph as a sequence of Keras models, with the tensors between them for some inputs."""

    def __init__(self, graph: Graph, parts: int = PARTS) -> None:
        self._graph = graph
        self._parts = [
            _part(graph, group, inputs, outputs)
            for group, inputs, outputs in _groups(graph, parts)
            if outputs
        ]
        self._values: dict[Ref, Array] = {}

    def predict(self, inputs: Batch, batch: int) -> Batch:
        """The network's outputs for many inputs, in batches."""
        outputs = [self._outputs(self._input_values(part), 0) for part in batches(inputs, batch)]
        return tuple(np.concatenate(values) for values in zip(*outputs, strict=True))

    def hold(self, inputs: Batch) -> Batch:
        """The network's outputs for the inputs that changes are evaluated on.

        The tensors between the parts are stored for ``outputs``.
        """
        self._values = self._input_values(inputs)
        return self._outputs(self._values, 0)

    def layers(self, name: str) -> list[Any]:
        """The Keras layers of that name: one for each part that calls it."""
        calls = {op.name for op in self._graph if (op.shared or op.name) == name}
        return [part.model.get_layer(name) for part in self._parts if calls & part.names]

    def outputs(self, changed: Iterable[str]) -> Batch:
        """The outputs for the inputs of ``hold``, after these Keras layers got other weights."""
        names = set(changed)
        calls = {op.name for op in self._graph if (op.shared or op.name) in names}
        first = next(
            (i for i, part in enumerate(self._parts) if calls & part.names), len(self._parts)
        )
        return self._outputs(dict(self._values), first)

    def _input_values(self, inputs: Batch) -> dict[Ref, Array]:
        return {Ref(name): x for name, x in zip(self._graph.inputs, inputs, strict=True)}

    def _outputs(self, values: dict[Ref, Array], first: int) -> Batch:
        for part in self._parts[first:]:
            values.update(
                zip(part.outputs, part.run(tuple(values[ref] for ref in part.inputs)), strict=True)
            )
        return tuple(values[ref] for ref in self._graph.outputs)


def _groups(graph: Graph, parts: int) -> list[tuple[list[Op], tuple[Ref, ...], tuple[Ref, ...]]]:
    """Groups of consecutive ops of about equal work, with the tensors that each reads and gives."""
    order = [op for op in graph if op.kind != "InputLayer"]
    last = {
        ref: i for i, op in enumerate(order) for ref in graph.operands(op.name)
    } | dict.fromkeys(graph.outputs, len(order))
    work = [ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in order]
    batch = {graph.tensor(Ref(name)).shape[0] for name in graph.inputs}
    # Keras passes a mask along with its tensor, and it would be lost at a cut.
    masked = any(op.kind == "Masking" or op.attrs.get("mask_zero") for op in order)
    groups: list[tuple[list[Op], tuple[Ref, ...], tuple[Ref, ...]]] = []
    group: list[Op] = []
    live: dict[Ref, None] = {Ref(name): None for name in graph.inputs}
    done, total, full = 0, max(sum(work), 1), 0
    for i, op in enumerate(order):
        group.append(op)
        live |= {Ref(op.name, output): None for output in range(len(graph.tensors(op.name)))}
        done += work[i]
        passing = [ref for ref in live if last.get(ref, -1) > i]
        split = (
            all(graph.tensor(ref).shape[:1] == (length,) for ref in passing for length in batch)
            and not masked
        )
        if i == len(order) - 1 or (split and full < done * parts // total < parts):
            full = done * parts // total
            names = {op.name for op in group}
            inputs = dict.fromkeys(
                ref for op in group for ref in graph.operands(op.name) if ref.op not in names
            )
            groups.append((group, tuple(inputs), tuple(ref for ref in passing if ref.op in names)))
            group = []
        live = dict.fromkeys(passing)
    return groups


def _part(
    graph: Graph, group: Sequence[Op], inputs: Sequence[Ref], outputs: tuple[Ref, ...]
) -> _Part:
    from lrfc.ir.keras import io as keras_io

    piece = Graph(graph.name)
    inside: dict[Ref, Ref] = {}
    for number, ref in enumerate(inputs):
        tensor = graph.tensor(ref)
        inside[ref] = piece.add(
            Op(
                f"from_before_{number}",
                "InputLayer",
                {"batch_shape": tensor.shape, "dtype": tensor.dtype},
            )
        )
    for op in group:
        piece.add(op, [inside[ref] for ref in graph.operands(op.name)])
        inside |= {
            Ref(op.name, output): Ref(op.name, output)
            for output in range(len(graph.tensors(op.name)))
        }
    piece.outputs = outputs
    model = keras_io.to_keras(piece)
    return _Part(
        frozenset(op.name for op in group), model, keras_io.compiled(model), tuple(inputs), outputs
    )
