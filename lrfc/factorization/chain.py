"""The common part of the methods that split a kernel into a chain of smaller ones.

The files svd, spatial, tucker and train define the split of each method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import layout as layouts
from lrfc.factorization.base import Cost, Factors, Ranks, Statistics
from lrfc.factorization.chain_factors import ChainFactors, bonds, roles
from lrfc.factorization.layout import Layout, Split
from lrfc.factorization.linalg import Array
from lrfc.factorization.norms import output_scale
from lrfc.factorization.stages import finish, stage
from lrfc.factorization.unfold import Unfolding
from lrfc.ir.op import Op, Tensor


class Chain(ABC):
    """A tensor train over input channels, groups of spatial axes and output channels."""

    name: str

    @abstractmethod
    def split(self, layout: Layout) -> Split:
        """The spatial axes of each stage; an empty entry is a 1×1 stage."""

    @abstractmethod
    def limits(self, layout: Layout) -> str | None:
        """The reason why the method does not apply to this layer, or None."""

    def refuses(self, op: Op, source: Tensor) -> str | None:
        """The reason why the method cannot factorize the op, as one clause; None when it can."""
        reason = layouts.refusal(op, source)
        if reason is not None:
            return reason
        layout = Layout.of(op, source)
        return self.limits(layout) or layout.unrunnable(layout.place(self.split(layout)))

    def full(self, op: Op, source: Tensor) -> Ranks:
        """The smaller side of every bond: min(S·k_1···k_j, k_{j+1}···k_n·T)."""
        layout = Layout.of(op, source)
        return bonds(layout, self.split(layout))

    def cost(self, op: Op, source: Tensor, ranks: Ranks) -> Cost:
        """Parameters and MACs of the stages at those ranks, bias included."""
        layout = Layout.of(op, source)
        return layout.cost(self.split(layout), ranks)

    def decompose(
        self,
        op: Op,
        source: Tensor,
        *,
        scale: NDArray[Any] | None = None,
        statistics: Statistics | None = None,
    ) -> Factors:
        """The factors of the layer, for all ranks at once."""
        layout = Layout.of(op, source)
        return ChainFactors(
            layout, self.split(layout), output_scale(layout, scale), statistics, self.improved
        )

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The factor layers with placeholder weights; see ``Method``."""
        layout = Layout.of(op, source)
        split = self.split(layout)
        widths = (layout.inputs, *ranks, layout.outputs)
        cores = [
            np.zeros((layout.groups, widths[j], size, widths[j + 1]))
            for j, size in enumerate(layout.sizes(layout.place(split)))
        ]
        chain = [
            stage(layout, role, axes, core)
            for role, axes, core in zip(
                roles(layout, split), layout.place(split), cores, strict=True
            )
        ]
        return [*chain[:-1], finish(layout, chain[-1], None)]

    def improved(
        self, unfoldings: Sequence[Unfolding], cores: list[Array], ranks: Ranks
    ) -> list[Array]:
        """Better cores than the nested ones of these unfoldings; here the same."""
        return cores
