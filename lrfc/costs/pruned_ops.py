"""Workloads of a layer after some of its channels are pruned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from lrfc.costs.workload import Workload


def narrowed(
    ops: Sequence[Workload], kept_in: float, kept_out: float, *, carried: bool = False
) -> Iterator[Workload]:
    """The workloads of one call of a pruned layer, one for each of ``ops``.

    ``kept_in`` and ``kept_out``: kept fractions of its input and output channels. Ops before the
    first with MACs have the input channels, ops behind the last one the output channels, and the
    tensors between them do not change; without MACs, the last op has both. ``carried``: the layer
    passes channels through, alone or in groups (a depthwise or grouped convolution), so that all
    tensors lose the input channels.
    """
    multiply = [place for place, op in enumerate(ops) if op.macs] or [len(ops) - 1]
    first, last = (len(ops), len(ops)) if carried else (multiply[0], multiply[-1])
    for place, op in enumerate(ops):
        before = kept_in if place <= first else kept_out if place > last else 1.0
        behind = kept_out if place >= last else kept_in if place < first else 1.0
        yield _narrowed(op, before, behind, carried=carried)


def _narrowed(op: Workload, kept_in: float, kept_out: float, *, carried: bool) -> Workload:
    inputs, output = tuple(_cut(shape, kept_in) for shape in op.inputs), _cut(op.output, kept_out)
    groups = max(1, round(kept_in * op.groups)) if carried else op.groups
    scale = (output[-1] / op.output[-1] if op.output else 1.0) * (
        inputs[0][-1] / op.inputs[0][-1] if op.inputs and op.inputs[0] else 1.0
    )
    scale *= op.groups / groups
    bias = _bias(op)
    params = round(scale * (op.params - bias)) + (output[-1] if bias else 0)
    return replace(
        op, inputs=inputs, output=output, groups=groups, params=params, macs=round(scale * op.macs)
    )


def _bias(op: Workload) -> int:
    """Values of the bias: the output channels where params exceed the kernel by that, else 0."""
    if not op.macs:
        return 0
    kernel = prod(op.kernel) * op.inputs[0][-1] // op.groups * op.output[-1]
    return op.output[-1] if op.params == kernel + op.output[-1] else 0


def _cut(shape: tuple[int, ...], share: float) -> tuple[int, ...]:
    return (*shape[:-1], max(1, round(share * shape[-1]))) if shape else shape
