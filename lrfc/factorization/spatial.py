"""Spatial SVD: a convolution along one axis, then one along the others."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.factorization.chain import Chain
from lrfc.factorization.layout import Layout, Split


@dataclass(frozen=True)
class SpatialSVD(Chain):
    """k×1 S→R with that axis' stride, then 1×k R→T (Jaderberg et al., arXiv 1405.3866).

    In 3-D k×1×1, then 1×k×k. R·S·k_h weights at Ho×Wi positions and R·k_w·T at Ho×Wo.
    Strides, dilation and padding split axis by axis, exactly.
    """

    name: str = "spatial_svd"

    def split(self, layout: Layout) -> Split:
        """The first axis, then the others."""
        return (layout.wide[:1], layout.wide[1:])

    def limits(self, layout: Layout) -> str | None:
        """Kernels that are longer than 1 along at least two axes."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd"
        if len(layout.wide) < 2:
            return (
                "its kernel is longer than 1 along fewer than two axes: there is nothing to split"
            )
        return None


@dataclass(frozen=True)
class SpatialSVDWidthFirst(SpatialSVD):
    """1×k S→R with that axis' stride, then k×1 R→T (3-D: 1×1×k, then k×k×1).

    Cheaper than height first where it leaves the smaller map.
    """

    name: str = "spatial_svd_w"

    def split(self, layout: Layout) -> Split:
        """The last axis, then the others."""
        return (layout.wide[-1:], layout.wide[:-1])
