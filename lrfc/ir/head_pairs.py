"""Pairs of projections of attention layers with nothing but the dimensions of heads between them.

The scores of a head are the products of its queries and its keys, and what it adds to the output is
the product of its mixed values and of its rows of the output projection. Both sum over the
dimensions of the head, so that any matrix on one side and its inverse on the other change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Slot

#: The letters of the operands of a product, and of its output: (B, T, N, H) and so on.
Terms = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two fully connected layers, by name, with ``heads`` of ``size`` dimensions between them.

    ``first`` computes them. ``second`` computes them too, for ``scores`` (queries and keys);
    otherwise it sums over them (values and output projection). ``heads``: of the first and of the
    second; one is a multiple of the other where heads share keys and values. ``tensors``: what
    holds the dimensions, on the side of the first and, for scores, on that of the second.
    """

    first: str
    second: str
    heads: tuple[int, int]
    size: int
    scores: bool
    tensors: tuple[Ref, ...]

    @property
    def held(self) -> tuple[tuple[Ref, int], ...]:
        """The tensors, each with its number of heads."""
        heads = self.heads if self.scores else self.heads[1:]
        return tuple(zip(self.tensors, heads, strict=True))


def pairs(graph: Graph) -> Iterator[Pair]:
    """The pairs of a graph whose attention layers are lowered, see ``lrfc.ir.attention``."""
    for op in graph:
        terms = letters(op, 2) if op.kind == "ops.Einsum" else None
        if terms is not None and len(graph.operands(op.name)) == 2:
            found = _scores(graph, op, terms) or _values(graph, op, terms)
            if found is not None:
                yield found


def letters(op: Op, operands: int) -> Terms | None:
    """The letters of each operand of an einsum and of its output.

    None where some axes have no letter, a term has one twice, or a constant is among the factors.
    """
    text = str(op.attrs.get("subscripts", "")).replace(" ", "")
    reads, arrow, made = text.partition("->")
    terms = (*reads.split(","), made)
    once = all(len(set(term)) == len(term) for term in terms)
    if not arrow or "." in text or not once or len(terms) != operands + 1:
        return None
    return terms


@dataclass(frozen=True)
class _Projection:
    """A layer that computes heads, each of them repeated ``times`` times where it is read."""

    layer: str
    heads: int
    times: int
    size: int


def _scores(graph: Graph, op: Op, terms: Terms) -> Pair | None:
    """The queries and keys whose products an einsum sums over the dimensions of each head."""
    one, other, made = terms
    found = [_projection(graph, ref) for ref in graph.operands(op.name)]
    if any(len(term) != 4 for term in (one, other)) or one[2:] != other[2:] or one[3] in made:
        return None
    first, second = found
    if first is None or second is None or one[2] not in made or first.layer == second.layer:
        return None
    return Pair(
        first.layer,
        second.layer,
        (first.heads, second.heads),
        first.size,
        scores=True,
        tensors=(Ref(first.layer), Ref(second.layer)),
    )


def _values(graph: Graph, op: Op, terms: Terms) -> Pair | None:
    """The values that an einsum mixes, and the projection that reads the result of all heads."""
    *reads, made = terms
    for term, other, ref in zip(reads, reversed(reads), graph.operands(op.name), strict=True):
        mixed = len(term) == len(made) == 4 and term[2:] == made[2:] and term[3] not in other
        first = _projection(graph, ref) if mixed and term[2] in other else None
        flat = graph.only_consumer(op.name)
        if first is None or flat is None or flat.kind != "Reshape":
            continue
        last, width = graph.only_consumer(flat.name), first.heads * first.times * first.size
        if last is None or not _plain(last) or graph.tensors(flat.name)[0].shape[2:] != (width,):
            continue
        heads = first.heads, first.heads * first.times
        flat_ref = Ref(flat.name)
        return Pair(first.layer, last.name, heads, first.size, scores=False, tensors=(flat_ref,))
    return None


def _projection(graph: Graph, ref: Ref) -> _Projection | None:
    """The layer whose filters are the heads in a tensor (B, T, N, H), and are in no other."""
    op, times = graph.op(ref.op), 1
    while op.kind in ("ops.Multiply", "ops.Repeat") and graph.only_consumer(op.name) is not None:
        repeats = _repeats(op) if op.kind == "ops.Repeat" else _scaled(graph, op)
        if repeats is None:
            return None
        times *= repeats
        op = graph.op(graph.operands(op.name)[0].op)
    shape = graph.tensors(op.name)[0].shape
    if op.kind != "Reshape" or len(shape) != 4 or graph.only_consumer(op.name) is None:
        return None
    layer = graph.op(graph.operands(op.name)[0].op)
    heads, size = shape[2:]
    if not _plain(layer) or heads is None or size is None or layer["units"] != heads * size:
        return None
    if graph.only_consumer(layer.name) is None:
        return None
    return _Projection(layer.name, heads, times, size)


def _plain(op: Op) -> bool:
    """Whether the op is the only call of a fully connected layer without an activation."""
    return op.kind == "Dense" and op.shared is None and op["activation"] in (None, "linear")


def _repeats(op: Op) -> int | None:
    """How often an op repeats each head; None for one that repeats something else."""
    times = op.attrs.get("repeats")
    return times if op.attrs.get("axis") == 2 and isinstance(times, int) else None


def _scaled(graph: Graph, op: Op) -> int | None:
    """1 for an op that multiplies all values by one number, else None."""
    args, kwargs = op.call or ((), {})
    factors = [value for value in (*args, *kwargs.values()) if not isinstance(value, Slot)]
    single = len(graph.operands(op.name)) == 1 and all(np.size(value) == 1 for value in factors)
    return 1 if single else None
