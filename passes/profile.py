"""Profile the ops of a graph: weights, multiply–accumulates, bytes, activation memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from lrfc.config import precision as precisions
from lrfc.costs.arena import Arena, arena
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Shape
from lrfc.state import Fact, State


@dataclass(frozen=True)
class Row:
    """The costs of one op.

    ``params`` and ``weight_bytes`` are 0 for further calls of a shared layer. ``macs`` are those of
    one sample. ``live_bytes`` are the activations alive while the op runs.
    """

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    params: int
    macs: int
    weight_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Profile(Fact):
    """The costs of a graph for one sample: of each op in execution order, and in total."""

    rows: tuple[Row, ...]
    arena: Arena
    precision: str

    @property
    def params(self) -> int:
        """The number of weight values; shared ones count once."""
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        """The multiply–accumulates of one sample."""
        return sum(row.macs for row in self.rows)

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights."""
        return sum(row.weight_bytes for row in self.rows)

    @property
    def arena_bytes(self) -> int:
        """The bytes of the planned activation arena, with tensors aligned to 16 bytes.

        ``arena.peak_bytes`` is the lower bound of every plan.
        """
        return self.arena.planned_bytes()

    def to_json(self) -> dict[str, Any]:
        """Totals and rows as plain values."""
        return {
            "precision": self.precision,
            "params": self.params,
            "macs": self.macs,
            "weight_bytes": self.weight_bytes,
            "arena_bytes": self.arena_bytes,
            "peak_live_bytes": self.arena.peak_bytes,
            "peak_at": self.arena.at_op,
            "ops": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class ProfileModel:
    """Profile the graph as it would be stored in a precision (see lrfc.config.precision).

    In int8, values of kernels and activations have 1 byte, values of biases 4. Element-wise ops
    have no MACs. The arena is that of ``lrfc.costs.arena.arena``.

    Given and result: the graph is not changed.
    """

    precision: precisions.Name = "fp32"

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Profile,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with the ``Profile`` of its graph; ModelError if a shape is not fixed."""
        return state.with_fact(profile(state.graph, self.precision))


def profile(graph: Graph, precision: str = "fp32") -> Profile:
    """The profile of a graph; ModelError if a shape is not fixed."""
    sizes = precisions.of(precision)
    memory = arena(graph, sizes.activation)
    first_calls = {op.name for op in graph.layers()}
    rows = tuple(
        Row(
            op.name,
            op.kind,
            tuple(tensor.shape for tensor in graph.tensors(op.name)),
            op.params if op.name in first_calls else 0,
            ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)),
            _weight_bytes(op, sizes) if op.name in first_calls else 0,
            memory.timeline[op.name],
        )
        for op in graph
    )
    return Profile(rows, memory, precision)


def _weight_bytes(op: Op, sizes: precisions.Precision) -> int:
    """The bytes of an op's weights."""
    return sum(_bytes(weight, sizes) for weight in op.weights.values())


def _bytes(weight: Array, sizes: precisions.Precision) -> int:
    """The bytes of one weight array.

    Integers keep their type. In integer precisions, vectors (biases, statistics) are wider than
    kernels.
    """
    if not np.issubdtype(weight.dtype, np.floating):
        return weight.nbytes
    return weight.size * (sizes.weight if weight.ndim > 1 else sizes.vector)
