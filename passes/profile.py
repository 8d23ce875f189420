"""Count what each operation costs: weights, multiply-accumulates, bytes, activation memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from lrfc.config import precision as precisions
from lrfc.costs.arena import Arena, arena
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Shape
from lrfc.state import Fact, State


@dataclass(frozen=True)
class Row:
    """One op: output shapes, weight values and bytes (0 for further calls of a shared layer), MACs of one sample, and the arena's bytes while it runs."""

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    params: int
    macs: int
    weight_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Profile(Fact):
    """The costs of a graph, op by op in execution order, and of the whole, for one sample."""

    rows: tuple[Row, ...]
    arena: Arena
    precision: str

    @property
    def params(self) -> int:
        """Weight values; shared ones count once."""
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return sum(row.macs for row in self.rows)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(row.weight_bytes for row in self.rows)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the planned activation arena (16-byte aligned).

        ``arena.peak_bytes`` is the lower bound of any plan.
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
    """Profile the graph as it would be stored in ``precision`` (see lrfc.config.precision): int8 has 1 byte per kernel value and activation, 4 per bias value.

    Element-wise work counts no MACs; the arena is that of ``lrfc.costs.arena.arena``. ModelError
    when a shape is not fixed.

    Given and result: the graph is not changed.
    """

    precision: precisions.Name = "fp32"

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Profile,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with the ``Profile`` of its graph."""
        return state.with_fact(profile(state.graph, self.precision))


def profile(graph: Graph, precision: str = "fp32") -> Profile:
    """The profile of a graph outside a pipeline."""
    sizes = precisions.of(precision)
    memory = arena(graph, sizes.activation)
    own = {op.name for op in graph.layers()}
    rows = tuple(
        Row(
            op.name,
            op.kind,
            tuple(tensor.shape for tensor in graph.tensors(op.name)),
            op.params if op.name in own else 0,
            ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)),
            sum(_stored(weight, sizes) for weight in op.weights.values()) if op.name in own else 0,
            memory.timeline[op.name],
        )
        for op in graph
    )
    return Profile(rows, memory, precision)


def _stored(weight: Array, sizes: precisions.Precision) -> int:
    """Bytes of a weight: vectors (biases, statistics) are wider than kernels where those are rounded, integers are kept."""
    if not np.issubdtype(weight.dtype, np.floating):
        return weight.nbytes
    return weight.size * (sizes.weight if weight.ndim > 1 else sizes.vector)
