"""Facts of the search: the candidates of every layer, and their predicted latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lrfc.costs.totals import totals
from lrfc.errors import BudgetError
from lrfc.ir.graph_cache import GraphCache
from lrfc.search.candidates import LayerSpace, pareto
from lrfc.search.pricing import Prices
from lrfc.state import Fact, State


@dataclass(frozen=True)
class DesignSpace(Fact):
    """The candidates of every layer with their costs and errors.

    ``skipped``: by layer, the reason why it has no candidates.
    """

    spaces: tuple[LayerSpace, ...]
    skipped: Mapping[str, str]

    def narrowed(self, methods: tuple[str, ...]) -> DesignSpace:
        """The same layers with the candidates of these methods only.

        BudgetError where a layer has none, as a limit on memory excludes it unchanged.
        """
        spaces = []
        for space in self.spaces:
            left = tuple(c for c in space.candidates if c.method is None or c.method in methods)
            if not left:
                raise BudgetError(
                    f"no candidate of {space.op.name} by {', '.join(methods) or 'filters alone'}"
                    " is within the limit on memory"
                )
            spaces.append(replace(space, candidates=left))
        return replace(self, spaces=tuple(spaces))

    def outside(self, whole: Mapping[str, float]) -> dict[str, float]:
        """The costs of all other layers: those of the ``whole`` network less these layers'."""
        return {
            quantity: cost - sum(getattr(s.whole, quantity) for s in self.spaces)
            for quantity, cost in whole.items()
        }

    def least(self, quantity: str) -> float:
        """The least sum of a quantity over the layers."""
        return float(sum(min(getattr(c, quantity) for c in s.candidates) for s in self.spaces))

    @property
    def size(self) -> int:
        """Number of candidates."""
        return sum(len(s.candidates) for s in self.spaces)

    @property
    def undominated(self) -> int:
        """Number of candidates on the Pareto fronts of their layers."""
        return sum(len(pareto(s.candidates)) for s in self.spaces)


@dataclass(frozen=True)
class Price(Fact):
    """The device that the latencies of the design space are predicted for.

    ``unit``: of the latencies, 'ms' or 'cycles'; ``ms_per_unit`` turns them into milliseconds.
    ``whole``: the predicted latency of the original. ``prices``: of ops that have lost channels.
    """

    device: str
    unit: str
    ms_per_unit: float
    whole: float
    prices: Prices


def costs(state: State) -> dict[str, float]:
    """MACs and parameters of the original, and its predicted latency where a device is known."""
    price, original = state.known(Price), state.original
    whole = _TOTALS.get(original, (), None, lambda: totals(original))
    return whole | ({} if price is None else {"latency": price.whole})


#: The MACs and parameters of each original: every allocation needs them.
_TOTALS: GraphCache[dict[str, int]] = GraphCache()
