"""The use of a method for a layer: whether it applies, and the ranks at which it saves anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lrfc.factorization.base import Cost, Method, Ranks
from lrfc.ir import ops
from lrfc.ir.op import Op, Tensor

Quantity = Literal["params", "macs"]


def cost_of(op: Op, source: Tensor) -> Cost:
    """The cost of the unchanged layer."""
    return Cost(op.params, ops.macs(op, (source,), ops.infer(op, (source,))))


def eligible(methods: Mapping[str, Method], op: Op, source: Tensor) -> dict[str, str | None]:
    """The reason why each method is of no use for the layer, as one clause.

    None where the method applies and some rank saves parameters or MACs.
    """
    reasons: dict[str, str | None] = {}
    for name, method in methods.items():
        reason = method.refuses(op, source)
        if (
            reason is None
            and break_even(method, op, source, "params") is None
            and break_even(method, op, source, "macs") is None
        ):
            reason = "no rank saves parameters or MACs"
        reasons[name] = reason
    return reasons


def break_even(
    method: Method, op: Op, source: Tensor, quantity: Quantity, kept: float = 1.0
) -> Ranks | None:
    """The largest ranks that cost less than the share ``kept`` of the layer's own cost.

    None when rank one costs as much. The ranks lie on the line from all ones to the full ranks;
    costs grow with every rank, so bisection finds the point.
    """
    full, limit = method.full(op, source), kept * getattr(cost_of(op, source), quantity)
    steps = max(full)

    def ranks(step: int) -> Ranks:
        return tuple(max(1, rank * step // steps) for rank in full)

    low, high = 0, steps + 1  # low saves, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if getattr(method.cost(op, source, ranks(middle)), quantity) < limit:
            low = middle
        else:
            high = middle
    return ranks(low) if low else None
