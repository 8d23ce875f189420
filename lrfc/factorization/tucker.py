"""Tucker-2: both channel axes are reduced, with two free ranks."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.factorization.chain import Chain
from lrfc.factorization.layout import Layout, Split


@dataclass(frozen=True)
class Tucker2(Chain):
    """1×1 S→R_in, k×k R_in→R_out with all strides, 1×1 R_out→T (Kim et al., arXiv 1511.06530).

    S·R_in weights at the input positions, R_in·R_out·k² + R_out·T at the output positions. It is the tensor train over (S, k², T), so that its truncation
    from the left is the sequentially truncated HOSVD (Vannieuwenhoven et al., SIAM J. Sci. Comput. 34(2), 2012); the output side is the optimum for the
    input side that was chosen.
    """

    name: str = "tucker2"

    def split(self, layout: Layout) -> Split:
        """1×1, kernel, 1×1."""
        return ((), layout.wide, ())

    def limits(self, layout: Layout) -> str | None:
        """Convolutions with a kernel and channels on both sides."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd or tucker_matrix"
        if not layout.wide:
            return "with a 1×1 kernel it is channel_svd"
        if min(layout.inputs, layout.outputs) == 1:
            return "a group has one channel on one side: there is nothing to reduce there"
        return None
