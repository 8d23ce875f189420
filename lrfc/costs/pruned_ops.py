"""What a runtime executes of a layer when some of its channels are gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from lrfc.costs.workload import Workload


def narrowed(
    ops: Sequence[Workload], read: float, made: float, *, carried: bool = False
) -> Iterator[Workload]:
    """The ops of one call when these shares of the channels that it reads and makes are left, one for each of ``ops``.

    What lies in front of the first op that multiplies works on what is read, what lies behind the
    last one on what is made, and the tensors between them stay; where none multiplies, the last op
    takes what is read to what is made. ``carried``: channels are kept apart, or in groups that go
    as a whole (a depthwise or grouped convolution): all tensors lose what is read.
    """
    multiply = [place for place, op in enumerate(ops) if op.macs] or [len(ops) - 1]
    first, last = (len(ops), len(ops)) if carried else (multiply[0], multiply[-1])
    for place, op in enumerate(ops):
        before = read if place <= first else made if place > last else 1.0
        behind = made if place >= last else read if place < first else 1.0
        yield _narrowed(op, before, behind, carried=carried)


def _narrowed(op: Workload, read: float, made: float, *, carried: bool) -> Workload:
    inputs, output = tuple(_cut(shape, read) for shape in op.inputs), _cut(op.output, made)
    groups = max(1, round(read * op.groups)) if carried else op.groups
    kept = (output[-1] / op.output[-1] if op.output else 1.0) * (
        inputs[0][-1] / op.inputs[0][-1] if op.inputs and op.inputs[0] else 1.0
    )
    kept *= op.groups / groups
    bias = _bias(op)
    params = round(kept * (op.params - bias)) + (output[-1] if bias else 0)
    return replace(
        op, inputs=inputs, output=output, groups=groups, params=params, macs=round(kept * op.macs)
    )


def _bias(op: Workload) -> int:
    """Values of the bias: one for each output channel, where the parameters are so many more than those of the kernel."""
    if not op.macs:
        return 0
    kernel = prod(op.kernel) * op.inputs[0][-1] // op.groups * op.output[-1]
    return op.output[-1] if op.params == kernel + op.output[-1] else 0


def _cut(shape: tuple[int, ...], share: float) -> tuple[int, ...]:
    return (*shape[:-1], max(1, round(share * shape[-1]))) if shape else shape
