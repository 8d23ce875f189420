"""Select a method and ranks for every layer, and filters to remove, within the budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import Constraints, select
from lrfc.search.facts import DesignSpace
from lrfc.state import Fact, State


@dataclass(frozen=True)
class SelectRanks(Constraints):
    """Select one candidate for each layer, and the units that each dependency group keeps.

    The selection has the minimum of the quantity ``minimise`` within the budgets. It is computed
    exactly, by a MILP.

    Given and result: the graph is not changed.
    """

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its Selection; BudgetError if a budget cannot be met."""
        selection = select(state, self)
        if selection.remark is not None:
            state.progress.log(f"  {selection.remark}")
        return state.with_fact(selection)
