"""Facts of a plan: the choice for each layer and group of filters, and the channels that pruning leaves."""

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
    """The choice for each factorizable layer of the original graph, and the reason where it is left alone.

    ``beside``: what all else costs that channels were taken from; see lrfc.pruning.milp.Joint.
    ``keeps``: the groups of filters that lose some, and which units they keep; ``removed``: the
    filters that go, by the layer that makes them. The costs of a candidate are those that it has
    between what is left of its neighbours. ``remark``: why it is not the one that was asked for,
    where it is not.
    """

    about_graph: ClassVar[bool] = False

    chosen: tuple[Candidate, ...]
    reasons: Mapping[str, str]
    factors: Mapping[str, Factors]
    keeps: Mapping[str, Keep] = field(default_factory=dict)
    removed: Mapping[str, Ids] = field(default_factory=dict)
    beside: Mapping[str, float] = field(default_factory=dict)
    remark: str | None = None

    def cost(self, quantity: str) -> float:
        """The MACs, parameters or predicted latency of all that depends on the choices; see ``fixed`` for the rest."""
        return self.beside.get(quantity, 0.0) + float(
            sum(getattr(c, quantity) for c in self.chosen)
        )

    @property
    def divergence(self) -> float:
        """The predicted divergence of the network's output."""
        return sum(c.divergence for c in self.chosen) + sum(
            k.divergence for k in self.keeps.values()
        )


@dataclass(frozen=True)
class Pruned(Fact):
    """Which channels of the original's tensors are left: by op, the axis and the indices; ops that keep all of theirs are not named.

    ``slim`` is the original without the filters that are gone, with its own weights.
    """

    about_graph: ClassVar[bool] = False

    slim: Graph
    left: Mapping[Ref, tuple[int, Ids]]
