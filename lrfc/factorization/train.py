"""Tensor train: a stage for every spatial axis, between two 1×1 stages."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.factorization.chain import Chain
from lrfc.factorization.layout import Layout, Split


@dataclass(frozen=True)
class TensorTrain(Chain):
    """1×1 S→r₁, k×1 r₁→r₂, 1×k r₂→r₃, 1×1 r₃→T.

    Each middle stage has the stride of its axis. The mode order is S, k_h, k_w, T; 3-D has one more
    stage. S·r₁ weights at the input positions, r₁·k_h·r₂ at Ho×Wi, and
    r₂·k_w·r₃ + r₃·T at Ho×Wo.
    """

    name: str = "tt"

    def split(self, layout: Layout) -> Split:
        """1×1, one stage per axis, 1×1."""
        return ((), *((axis,) for axis in layout.wide), ())

    def limits(self, layout: Layout) -> str | None:
        """Convolutions with a kernel along at least two axes, and channels on both sides."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd or tt_matrix"
        if not layout.wide:
            return "with a 1×1 kernel it is channel_svd"
        if len(layout.wide) < 2:
            return "with a kernel along one axis it is tucker2"
        if min(layout.inputs, layout.outputs) == 1:
            return "a group has one channel on one side: there is nothing to reduce there"
        return None
