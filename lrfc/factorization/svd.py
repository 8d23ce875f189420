"""SVD: one bond between two layers, for convolutions (channel SVD) and matrix products."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.factorization.chain import Chain
from lrfc.factorization.layout import Layout, Split


@dataclass(frozen=True)
class ChannelSVD(Chain):
    """k×k convolution S→R with all strides, then 1×1 R→T (Zhang et al., arXiv 1505.06798).

    R·(S·k² + T) weights, each used at every output position. With statistics it is the optimum
    in the norm of the inputs.
    """

    name: str = "channel_svd"

    def split(self, layout: Layout) -> Split:
        """Kernel first."""
        return (layout.wide, ())

    def limits(self, layout: Layout) -> str | None:
        """Convolutions only."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd"
        if layout.outputs == 1:
            return "a group has one output channel: there is nothing to reduce"
        return None


@dataclass(frozen=True)
class ChannelSVD1x1(Chain):
    """1×1 S→R, then k×k R→T with all strides (the weight SVD of AIMET).

    R·S weights at the input positions and R·T·k² at the output positions: fewer weights than
    with the kernel first where T < S.
    """

    name: str = "channel_svd_1x1"

    def split(self, layout: Layout) -> Split:
        """1×1 first."""
        return ((), layout.wide)

    def limits(self, layout: Layout) -> str | None:
        """Convolutions with a kernel."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd"
        if not layout.wide:
            return "with a 1×1 kernel it is channel_svd"
        if layout.inputs == 1:
            return "a group has one input channel: there is nothing to reduce"
        return None


@dataclass(frozen=True)
class SVD(Chain):
    """Two matrix products S→R→T: R·(S + T) weights, each used once per position."""

    name: str = "svd"

    def split(self, layout: Layout) -> Split:
        """Two products."""
        return ((), ())

    def limits(self, layout: Layout) -> str | None:
        """Matrix products only."""
        return "a convolution has a kernel: use channel_svd" if layout.kernel else None
