"""The heads of attention layers: labels through the products between their projections."""

from __future__ import annotations

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.head_pairs import letters
from lrfc.ir.op import Op, Ref
from lrfc.pruning.labels import Call, Labels


def head_axes(graph: Graph, ref: Ref) -> frozenset[int]:
    """The axes of a tensor that an einsum keeps in all of its operands and its output.

    Each index along them, a head, is computed apart from the others. Between the tensor and the
    einsum may be ops that keep the axes as they are; or it meets the einsum's output (a gate).
    Empty without such an einsum.
    """
    for reader, port in graph.consumers(ref):
        op, operands = graph.op(reader), graph.operands(reader)
        if op.kind == "ops.Einsum":
            return _shared_axes(op, port, len(operands))
        tensors = (*graph.input_tensors(reader), *graph.tensors(reader))
        if op.kind == "ops.Repeat" or len({tensor.shape for tensor in tensors}) == 1:
            beside = (graph.op(other.op) for other in operands if other != ref)
            products = [
                _shared_axes(each, -1, len(graph.operands(each.name)))
                for each in beside
                if each.kind == "ops.Einsum"
            ]
            return products[0] if products else head_axes(graph, Ref(reader))
    return frozenset()


def _shared_axes(op: Op, port: int, operands: int) -> frozenset[int]:
    """The axes of an operand of an einsum, or of its output (-1), that all of them have.

    Without the axis of the samples.
    """
    terms = letters(op, operands)
    if terms is None:
        return frozenset()
    shared = set.intersection(*map(set, terms))
    return frozenset(axis for axis, letter in enumerate(terms[port]) if axis and letter in shared)


def einsum(call: Call) -> list[Labels]:
    """The labels behind a product of tensors.

    Indices at the same letter are unified. Where the product sums over it, a removed index is a
    term that is missing on both sides.
    """
    terms = letters(call.op, len(call.inputs))
    if terms is None:
        return call.freeze(
            f"its filters are read by {call.title}, whose axes lack a letter of their own"
        )
    *reads, made = terms
    carried = {
        term[labels.axis]: labels.ids
        for term, labels in zip(reads, call.labels, strict=True)
        if labels.axis is not None
    }
    if len(carried) > 1:
        return call.freeze(f"its filters meet others on another axis in {call.title}")
    fixed = [Labels.fixed(f"the output of {call.title}")]
    if not carried:
        return fixed
    ((letter, ids),) = carried.items()
    for term, labels in zip(reads, call.labels, strict=True):
        if labels.axis is not None:
            call.walk.unify(ids, labels.ids)
        elif letter in term:
            call.walk.freeze(ids, f"its filters meet {labels.source} in {call.title}")
    return [Labels(made.index(letter), ids)] if letter in made else fixed


def repeat(call: Call) -> list[Labels]:
    """The labels behind an op that repeats every index of an axis."""
    source, axis = call.source, call.op.attrs.get("axis")
    if source.axis is None:
        return [Labels.fixed(f"the output of {call.title}")]
    times = call.op.attrs.get("repeats")
    if axis is None or not isinstance(times, int):
        return call.freeze(f"its filters are repeated by {call.title}, not all as often")
    repeated = source.axis == axis % len(call.inputs[0].shape)
    return [Labels(source.axis, np.repeat(source.ids, times) if repeated else source.ids)]


def masked_softmax(call: Call) -> list[Labels]:
    """The labels behind a softmax with a mask, which comes before or behind the scores.

    The softmax mixes the indices of its own axis only.
    """
    shape, rank = call.outputs[0].shape, len(call.outputs[0].shape)
    axis = call.op.attrs.get("axis", -1)
    mixed = {a % rank for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    whole = [i for i, tensor in enumerate(call.inputs) if tensor.dtype != "bool"]
    masks = [labels for i, labels in enumerate(call.labels) if i not in whole]
    if len(whole) != 1 or call.inputs[whole[0]].shape != shape or any(m.ids.size for m in masks):
        return call.freeze(f"its filters are read by {call.title}, which mixes them")
    scores = call.labels[whole[0]]
    if scores.axis in mixed:
        return call.freeze(f"its filters are read by {call.title}, which mixes them")
    return [scores]
