"""Attention layers as fully connected layers, with the products of their outputs between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrfc.ir.attention_call import AttentionCall, refusal
from lrfc.ir.backend import operation
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Ref, Slot

#: By mask: the place of the axis of steps that it lacks.
_LACKING = {"query_mask": (-1,), "value_mask": (-2,), "key_mask": (-2,)}
#: The arguments of a call: see ``Op.call``.
_Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
#: In place of the scores of positions that a mask hides, as in Keras' Softmax.
_HIDDEN = -1e9


def without_attention(graph: Graph) -> tuple[Graph, Mapping[str, Sequence[str]]]:
    """Replace every attention layer by its projections and what is between them.

    A layer for which ``refusal`` has a reason stays, and so do all its calls. The second value are
    the names of the ops in the place of each layer; the last has the layer's own.
    """
    lowered = graph.copy()
    weights: dict[str, Mapping[str, Array]] = {}
    parts: dict[str, Sequence[str]] = {}
    for op in graph:
        if op.info.family == "attention" and refusal(graph, op) is None:
            parts[op.name] = _Lowering(lowered, op, weights)()
    return lowered, parts


class _Lowering:
    """The replacement of one call of an attention layer.

    ``weights``: those of the projections of shared layers, by key, which all calls have to share.
    """

    def __init__(self, graph: Graph, op: Op, weights: dict[str, Mapping[str, Array]]) -> None:
        self._graph, self._op, self._weights = graph, op, weights
        self._call = AttentionCall(graph, op)
        self._parts: list[str] = []
        self._old = f"{op.name}\0"  # frees the name for the output projection
        graph.rename(op.name, self._old)

    def __call__(self) -> Sequence[str]:
        """The names of the new ops."""
        call, attrs = self._call, self._op.attrs
        query, key, value = (
            self._heads(name, ref)
            for name, ref in zip(("query", "key", "value"), call.sources, strict=True)
        )
        size = self._op.weights["query/kernel"].shape[-1]
        query = self._function("query_scaled", "Multiply", (query,), 1 / math.sqrt(size))
        scores = self._function("scores", "Einsum", (key, query), subscripts="bsnh,btnh->bnts")
        seen = self._softmax(scores, self._mask())
        dropped = seen
        if attrs.get("dropout"):
            dropped = self._add("dropout", "Dropout", (seen,), rate=attrs["dropout"])
        weighted = {"subscripts": "bnts,bsnh->btnh"}
        context = self._function("context", "Einsum", (dropped, value), **weighted)
        if attrs.get("use_gate"):
            gate = self._heads("gate", call.sources[0], activation="sigmoid")
            context = self._function("gated", "Multiply", (context, gate))
        _, _, heads, width = self._graph.tensor(context).shape
        assert heads is not None
        assert width is not None
        flat = self._reshaped("flat", context, (heads * width,))
        self._replaced(flat, seen)
        return self._parts

    def _heads(self, part: str, source: Ref, **attrs: Any) -> Ref:
        """One of the projections into heads, (B, T, N, H)."""
        heads, size = self._op.weights[f"{part}/kernel"].shape[1:]
        name = self._graph.free_name(f"{self._op.name}__{part}")
        projected = self._dense(name, part, source, heads * size, **attrs)
        split = self._reshaped(f"{part}_heads", projected, (heads, size))
        groups = self._op.weights["query/kernel"].shape[1] // heads
        if groups == 1:
            return split
        return self._function(f"{part}_repeated", "Repeat", (split,), repeats=groups, axis=2)

    def _dense(self, name: str, part: str, source: Ref, units: int, **attrs: Any) -> Ref:
        """A fully connected layer with the weights of a projection, as matrices."""
        op = self._op
        last = part == "attention_output"
        shared = op.shared if last or op.shared is None else f"{op.shared}__{part}"
        key = shared or name
        if key not in self._weights:
            kernel = op.weights[f"{part}/kernel"].reshape(-1, units)
            bias = op.weights.get(f"{part}/bias")
            self._weights[key] = {"kernel": kernel} | (
                {} if bias is None else {"bias": bias.reshape(units)}
            )
        weights = self._weights[key]
        attrs |= {} if "bias" in weights else {"use_bias": False}
        attrs |= {} if op.attrs.get("trainable", True) else {"trainable": False}
        dense = Op(name, "Dense", {"units": units, **attrs}, weights, shared)
        return self._new(dense, (source,))

    def _reshaped(self, part: str, source: Ref, last: tuple[int, ...]) -> Ref:
        """The tensor with other axes behind the steps."""
        steps = self._graph.tensor(source).shape[1]
        return self._add(part, "Reshape", (source,), target_shape=(steps or -1, *last))

    def _mask(self) -> Any:
        """All masks in one, (B or 1, N or 1, T, S): a tensor, a constant, or None without any."""
        call = self._call
        masks = [self._stretched(name) for name in call.masks if call.tensor(name) is not None]
        if call.has_pattern:
            masks.append(call.pattern())
        if not masks:
            return None
        whole = masks[0]
        for number, mask in enumerate(masks[1:], start=2):
            whole = self._both(f"mask{number}", whole, mask)
        return whole

    def _stretched(self, name: str) -> Any:
        """A mask as booleans, with the axis of steps that it lacks and with that of the heads."""
        axes = _LACKING.get(name, ())
        mask = self._call.tensor(name)
        if not isinstance(mask, Ref):
            constant = np.asarray(mask).astype(bool)
            for axis in axes:
                constant = np.expand_dims(constant, axis)
            return np.expand_dims(constant, -3) if constant.ndim < 4 else constant
        if self._graph.tensor(mask).dtype != "bool":
            mask = self._function(f"{name}_bool", "Cast", (mask,), dtype="bool")
        for axis in axes:
            mask = self._function(f"{name}_steps", "ExpandDims", (mask,), axis=axis)
        while len(self._graph.tensor(mask).shape) < 4:
            mask = self._function(f"{name}_heads", "ExpandDims", (mask,), axis=-3)
        return mask

    def _both(self, part: str, one: Any, two: Any) -> Any:
        """Where both masks show a position."""
        refs = [mask for mask in (one, two) if isinstance(mask, Ref)]
        constants = [mask for mask in (one, two) if not isinstance(mask, Ref)]
        return self._function(part, "LogicalAnd", refs, *constants) if refs else one & two

    def _softmax(self, scores: Ref, mask: Any) -> Ref:
        """The weights of the values, for positions that the mask shows.

        Where it hides all positions they are equal, as in Keras' ``ops.dot_product_attention``; 0
        with a dropout and where the weights are an output, as Keras then takes its Softmax.
        """
        if mask is None:
            return self._add("weights", "Softmax", (scores,))
        refs = (mask,) if isinstance(mask, Ref) else ()
        first = Slot(0) if refs else mask
        own = Slot(len(refs))
        if self._op.attrs.get("dropout") or self._call.values.get("return_attention_scores"):
            return self._added("weights", "Softmax", (*refs, scores), {}, ((own,), {"mask": first}))
        chosen: _Arguments = ((first, own, np.float32(_HIDDEN)), {})
        where = operation("Where")
        masked = self._added("masked", "ops.Where", (*refs, scores), {}, chosen, where)
        return self._add("weights", "Softmax", (masked,))

    def _function(
        self, part: str, kind: str, operands: Sequence[Ref], *constants: Any, **attrs: Any
    ) -> Ref:
        """A function of keras.ops on tensors, and on constants behind them."""
        slots = map(Slot, range(len(operands)))
        call: _Arguments = ((*slots, *constants), {})
        return self._added(part, f"ops.{kind}", operands, attrs, call, operation(kind))

    def _add(self, part: str, kind: str, operands: Sequence[Ref], **attrs: Any) -> Ref:
        """A layer without weights."""
        return self._added(part, kind, operands, attrs)

    def _added(
        self,
        part: str,
        kind: str,
        operands: Sequence[Ref],
        attrs: Mapping[str, Any],
        call: _Arguments | None = None,
        origin: type | None = None,
    ) -> Ref:
        name = self._graph.free_name(f"{self._op.name}__{part}")
        return self._new(Op(name, kind, attrs, call=call, origin=origin), operands)

    def _new(self, op: Op, operands: Sequence[Ref]) -> Ref:
        """Add an op in the place of the layer."""
        self._parts.append(op.name)
        return self._graph.add(op, operands, before=self._old)

    def _replaced(self, flat: Ref, seen: Ref) -> None:
        """Put the output projection in the place of the layer, and under its name."""
        units = self._op.weights["attention_output/kernel"].shape[-1]
        last = self._dense(self._op.name, "attention_output", flat, units)
        self._graph.substitute(Ref(self._old), last)
        if len(self._graph.tensors(self._old)) > 1:
            self._graph.substitute(Ref(self._old, 1), seen)
        self._graph.remove(self._old)
