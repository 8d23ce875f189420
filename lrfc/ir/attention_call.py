"""The arguments of a call of an attention layer, and what keeps it from being replaced."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrfc.ir.backend import keras
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Ref, Slot

#: The tensors that an attention layer reads, and all its arguments, in Keras' order.
TENSORS = ("query", "value", "key")
_ARGUMENTS = (
    *TENSORS,
    *(f"{name}_mask" for name in TENSORS),
    "attention_mask",
    "return_attention_scores",
    "training",
    "use_causal_mask",
)


class AttentionCall:
    """The arguments of one call of an attention layer.

    ``values``: by name, with a Slot for a tensor.
    """

    def __init__(self, graph: Graph, op: Op) -> None:
        self._graph, self._op = graph, op
        self.values = self.arguments(op)
        self._operands = graph.operands(op.name)

    @staticmethod
    def arguments(op: Op) -> dict[str, Any]:
        """The arguments of a call by name, with a Slot for a tensor."""
        args, kwargs = op.call or ((), {})
        return dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs)

    def tensor(self, name: str) -> Any:
        """The tensor of an argument, as a Ref; a constant as it is; None without it."""
        value = self.values.get(name)
        return self._operands[value.port] if isinstance(value, Slot) else value

    @property
    def sources(self) -> tuple[Ref, Ref, Ref]:
        """The tensors that queries, keys and values are computed from."""
        query, value, key = (self.tensor(name) for name in TENSORS)
        return query, value if key is None else key, value

    @property
    def masks(self) -> tuple[str, ...]:
        """The arguments that are masks.

        Keras' MultiHeadAttention takes the mask that its query carries, and not its query_mask.
        """
        first = () if self._op.kind == "MultiHeadAttention" else ("query_mask",)
        return *first, "value_mask", "key_mask", "attention_mask"

    @property
    def has_pattern(self) -> bool:
        """Whether the layer's configuration hides positions."""
        windowed = self._op.attrs.get("sliding_window") is not None
        return windowed or bool(self.values.get("use_causal_mask"))

    def pattern(self) -> Array:
        """The positions that the layer's configuration lets each one see, (1, 1, T, S)."""
        queries, keys = (self._graph.tensor(ref).shape[1] for ref in self.sources[:2])
        assert queries is not None
        assert keys is not None
        distance = np.arange(queries)[:, None] - np.arange(keys)
        seen = np.ones(distance.shape, bool)
        if self.values.get("use_causal_mask"):
            seen &= distance >= 0
        if (window := self._op.attrs.get("sliding_window")) is not None:
            seen &= np.abs(distance) < window
        return seen[None, None]

    def refusal(self) -> str | None:
        """The reason why the layer has to stay for this call, as one clause, or None."""
        read = [self.values.get(name) for name in TENSORS]
        if not all(isinstance(value, Slot) for value in (*read[:2], read[2] or Slot(0))):
            return "it reads a constant"
        shapes = [self._graph.tensor(ref).shape for ref in self.sources]
        if any(len(shape) != 3 for shape in shapes):
            return "its inputs are not sequences of vectors"
        if self.values.get("training") and self._op.attrs.get("dropout"):
            return "it was called with training=True"
        if self.has_pattern and None in (shapes[0][1], shapes[1][1]):
            return "its mask depends on a number of steps that is not fixed"
        mask = self.tensor("attention_mask")
        shape = self._graph.tensor(mask).shape if isinstance(mask, Ref) else np.shape(mask)
        others = any(
            self.tensor(name) is not None for name in self.masks if name != "attention_mask"
        )
        if len(shape) > 3 and (others or self.has_pattern):
            return "its masks have different numbers of axes"
        return None


def refusal(graph: Graph, op: Op) -> str | None:
    """The reason why an attention layer has to stay as it is, as one clause, or None."""
    if op.attrs.get("attention_axes") not in (None, (1,)):
        return "it attends along several axes"
    parts = {"query", "key", "value", "attention_output"}
    parts |= {"gate"} if op.attrs.get("use_gate") else set()
    allowed = {f"{part}/{name}" for part in parts for name in ("kernel", "bias")}
    if not {f"{part}/kernel" for part in parts} <= set(op.weights) <= allowed:
        return "it has weights of another kind"
    if op.weights["attention_output/kernel"].ndim != 3:
        return "its output has several axes"
    calls = graph.calls(op)
    masked = _masked(graph)
    if any(call.name in masked for call in calls):
        return "Keras may hand it a mask with its inputs, which its call does not name"
    reasons = (AttentionCall(graph, call).refusal() for call in calls)
    return next((reason for reason in reasons if reason is not None), None)


def _masked(graph: Graph) -> set[str]:
    """The ops behind one that makes a mask, which Keras hands on with the tensors."""
    found: set[str] = set()
    for op in graph:
        makes = op.kind == "Masking" or op.attrs.get("mask_zero") or _makes_masks(op.origin)
        if makes or any(ref.op in found for ref in graph.operands(op.name)):
            found.add(op.name)
    return found


def _makes_masks(origin: type[Any] | None) -> bool:
    """Whether it is the class of a user's layer that may make a mask, or of a model."""
    k = keras()
    if origin is None or not issubclass(origin, k.Layer):
        return False
    return issubclass(origin, k.Model) or origin.compute_mask is not k.Layer.compute_mask
