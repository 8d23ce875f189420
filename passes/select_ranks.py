"""Choose a method and ranks for every layer, and the filters that go, within the budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import Constraints, select
from lrfc.search.facts import DesignSpace
from lrfc.state import Fact, State


@dataclass(frozen=True)
class SelectRanks(Constraints):
    """Pick one candidate for each layer: the least of ``minimise`` within the budgets."""

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its Selection. BudgetError when a budget cannot be met."""
        selection = select(state, self)
        if selection.remark is not None:
            state.progress.log(f"  {selection.remark}")
        return state.with_fact(selection)
