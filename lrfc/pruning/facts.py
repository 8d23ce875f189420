"""Facts about a plan: the choices for layers and dependency groups, and the remaining channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from lrfc.factorization.base import Factors
from lrfc.ir.graph import Graph
from lrfc.ir.op import Ref
from lrfc.pruning.labels import Ids
from lrfc.pruning.space import Keep
from lrfc.search.candidates import Candidate
from lrfc.state import Fact


@dataclass(frozen=True)
class Selection(Fact):
    """The choice for each factorizable layer of the original graph, and for each dependency group.

    ``reasons``: why a layer is not factorized, by layer. ``keeps``: the groups that lose units, and
    the units that they keep. ``removed``: the filters to remove, by the layer that produces them.
    ``whole_heads``: whether a unit of an attention layer is a head, not a dimension of its heads.
    The costs of a candidate are those after its neighbours are pruned. ``pruned_cost``: by
    quantity, the cost of the ops without candidates of their own, after pruning (see
    lrfc.pruning.milp.Joint). ``remark``: why this is not the selection that was requested, if so.
    """

    about_graph: ClassVar[bool] = False

    chosen: tuple[Candidate, ...]
    reasons: Mapping[str, str]
    factors: Mapping[str, Factors]
    keeps: Mapping[str, Keep] = field(default_factory=dict)
    removed: Mapping[str, Ids] = field(default_factory=dict)
    whole_heads: bool = False
    pruned_cost: Mapping[str, float] = field(default_factory=dict)
    remark: str | None = None

    def cost(self, quantity: str) -> float:
        """The MACs, parameters or predicted latency of all ops that depend on the choices.

        ``lrfc.pruning.selection.fixed`` has the cost of the others.
        """
        return self.pruned_cost.get(quantity, 0.0) + float(
            sum(getattr(c, quantity) for c in self.chosen)
        )

    @property
    def network(self) -> tuple[object, ...]:
        """Candidates and widths: equal for selections that make the same network."""
        widths = ((name, len(keep.units)) for name, keep in self.keeps.items())
        return *((c.layer, c.method, c.ranks) for c in self.chosen), *widths

    @property
    def divergence(self) -> float:
        """The predicted divergence of the network's output."""
        return sum(c.divergence for c in self.chosen) + sum(
            k.divergence for k in self.keeps.values()
        )


@dataclass(frozen=True)
class Pruned(Fact):
    """The channels that pruning leaves of the original's tensors.

    ``left``: by tensor, the axis and the indices of the remaining channels; tensors that keep all
    of their channels are not listed. ``slim``: the original without the removed filters, with its
    own weights.
    """

    about_graph: ClassVar[bool] = False

    slim: Graph
    left: Mapping[Ref, tuple[int, Ids]]
