"""Take the filters that go from an earlier build, in the place of exploring them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lrfc.errors import UsageError
from lrfc.pruning.space import FilterSpace, Keep, prunable
from lrfc.search.candidates import selected
from lrfc.state import Fact, State


@dataclass(frozen=True)
class LockFilters:
    """Give each dependency group the one choice that an earlier build made for it.

    ``kept``: by group, the indices of the units that stay. UsageError when the model has no such
    group or unit.
    """

    kept: Mapping[str, tuple[int, ...]]
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (FilterSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with a FilterSpace of one choice a group."""
        readable = {op.name for op, reason in selected(state.graph, (), ()) if reason is None}
        found, _, refused = prunable(state.graph, readable, self.keep, self.only)
        known = {group.name: group for group in found.groups}
        for name, units in self.kept.items():
            if not units or name not in known or max(units) >= known[name].width:
                raise UsageError(
                    f"the plan keeps {len(units)} filters of a group '{name}' that the model does"
                    " not have so"
                )
        choices = {
            name: (Keep(known[name], np.array(units, np.intp)),)
            for name, units in self.kept.items()
        }
        return state.with_fact(FilterSpace(found, choices, refused))
