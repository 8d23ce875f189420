"""Predict how long every candidate takes on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from lrfc.costs.latency import CostProfile
from lrfc.costs.workload import Workload
from lrfc.ir.fold import fold_batchnorm
from lrfc.search.facts import DesignSpace, Price
from lrfc.search.pricing import Executed, Prices, Reading, paying, priced
from lrfc.state import Fact, State


@dataclass(frozen=True)
class PriceLayers:
    """Give every candidate its predicted latency, and leave out those that are slower than the layer as it is.

    ``known``: measured times of ops, in the profile's unit, in the place of predicted ones; of
    these, ``alone`` are of ops outside of a network. ``ms_per_unit``: of the profile's unit.
    ``slower``: keep the candidates that do not pay in time too, for budgets that need them.
    ``executed``: what ``executed(state)`` gave, so that it is not found anew.
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

        UsageError when the profile cannot tell what an op takes.
        """
        design = state.fact(DesignSpace)
        found = self.executed or executed(state, Reading())
        spaces = priced(design.spaces, found.price(self.profile, self.known))
        if not self.slower:
            spaces = tuple(map(paying, spaces))
        whole, prices = (
            found.whole(self.profile, self.known),
            Prices(found, self.profile, self.known, self.alone),
        )
        price = Price(self.profile.device, self.profile.unit, self.ms_per_unit, whole, prices)
        return state.with_fact(replace(design, spaces=spaces), price)


def executed(state: State, reading: Reading) -> Executed:
    """The ops of the original and of every candidate, as a runtime executes them."""
    return Executed(
        state.graph, fold_batchnorm(state.graph), state.fact(DesignSpace).spaces, reading
    )
