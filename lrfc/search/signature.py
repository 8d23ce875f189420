"""What a runtime executes, op by op: the shape of the work that decides how long an op takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lrfc.ir.graph import Graph, Op, Shape


@dataclass(frozen=True)
class Signature:
    """One operation of a runtime for one sample; two ops with equal signatures take equal time on the same device.

    ``kind``: the family ('conv', 'depthwise', 'dense', 'add', 'pool', ... , the Keras kind in lower case for the rest). ``inputs`` and ``output``: shapes
    without the batch axis, channels last. ``kernel``, ``strides``, ``dilation``: spatial, empty where there is none. ``groups``: of a convolution.
    ``activation``: fused into the op, None for none. ``params``: weight values, bias included. ``macs``: multiply-accumulates.
    """

    kind: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    activation: str | None = None
    params: int = 0
    macs: int = 0


def signatures(graph: Graph) -> Iterator[tuple[str, Signature]]:
    """The name and signature of each op that a runtime executes, in order, of a graph whose BatchNorms are folded.

    Ops that cost nothing (reshapes, dropout, an activation that the op before it fuses) have none.
    """
    raise NotImplementedError


def chain(graph: Graph, name: str, stages: Sequence[Op]) -> Iterator[Signature]:
    """The signatures of the chain ``stages`` in the place of the op of that name (of a candidate: ``factors.stages(ranks)``)."""
    raise NotImplementedError


def _static(shape: Shape) -> tuple[int, ...]:
    return tuple(size for size in shape[1:] if size is not None)
