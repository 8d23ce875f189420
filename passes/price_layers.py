"""Predict the latency of every candidate on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from lrfc.costs.latency import CostProfile
from lrfc.costs.workload import Workload
from lrfc.ir.fold import inference_form
from lrfc.search.facts import DesignSpace, Price
from lrfc.search.pricing import Executed, Prices, Reading, paying, priced
from lrfc.state import Fact, State


@dataclass(frozen=True)
class PriceLayers:
    """Predict the latency of every candidate, and drop those slower than the unfactorized layer.

    ``profile``: the cost profile of the device. ``known``: measured latencies of workloads, in the
    unit of the profile, which replace predicted ones. ``alone``: those of them that were measured
    outside of a network. ``ms_per_unit``: milliseconds per unit of the profile. ``slower``: do not
    drop slower candidates, for budgets that need them. ``executed``: the result of
    ``executed(state)``, if already computed.

    Given and result: the graph is not changed.
    """

    profile: CostProfile
    known: Mapping[Workload, float] = field(default_factory=dict)
    alone: Mapping[Workload, float] = field(default_factory=dict)
    ms_per_unit: float = 1.0
    slower: bool = False
    executed: Executed | None = None

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = (Price,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with the priced DesignSpace and its Price.

        UsageError if the profile cannot predict an op.
        """
        design = state.fact(DesignSpace)
        workloads = self.executed or executed(state, Reading())
        spaces = priced(design.spaces, workloads.price(self.profile, self.known))
        if not self.slower:
            spaces = tuple(map(paying, spaces))
        whole = workloads.whole(self.profile, self.known)
        prices = Prices(workloads, self.profile, self.known, self.alone)
        price = Price(self.profile.device, self.profile.unit, self.ms_per_unit, whole, prices)
        return state.with_fact(replace(design, spaces=spaces), price)


def executed(state: State, reading: Reading) -> Executed:
    """The workloads of the original and of every candidate."""
    return Executed(
        state.graph, inference_form(state.graph), state.fact(DesignSpace).spaces, reading
    )
