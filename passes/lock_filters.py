"""Repeat the pruning of an earlier build, without exploration."""

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
    """Give each dependency group a single choice: that of an earlier build.

    ``kept``: by group, the number of its units and those that it keeps. ``keep``, ``only``,
    ``whole_heads``: see ExploreFilters.

    Given and result: the graph is not changed.
    """

    kept: Mapping[str, tuple[int, tuple[int, ...]]]
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    whole_heads: bool = False

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (FilterSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with a FilterSpace of one choice per group.

        UsageError if the model does not have a group with these units.
        """
        readable = {op.name for op, reason in selected(state.graph, (), ()) if reason is None}
        dependencies, _, refused = prunable(
            state.graph, readable, self.keep, self.only, whole_heads=self.whole_heads
        )
        groups = {group.name: group for group in dependencies.groups}
        for name, (width, units) in self.kept.items():
            fits = name in groups and groups[name].width == width
            if not fits or not units or max(units) >= width:
                raise UsageError(
                    f"the plan keeps {len(units)} filters of a group '{name}', which does not fit"
                    " the model"
                )
        choices = {
            name: (Keep(groups[name], np.array(units, np.intp)),)
            for name, (_, units) in self.kept.items()
        }
        return state.with_fact(FilterSpace(dependencies, choices, refused))
