"""Cut the filters that the selection removes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lrfc.pruning.cut import without
from lrfc.pruning.facts import Pruned, Selection
from lrfc.pruning.groups import groups
from lrfc.pruning.space import labels
from lrfc.state import Fact, State


@dataclass(frozen=True)
class PruneFilters:
    """Remove the filters that the selection names, with everything that belongs to them; without any the graph is not changed.

    Given (filters 1 and 2 of ``conv`` are to go)::

        conv = Conv2D(x) filters=4 -> (?, 16, 16, 4)
        norm = BatchNormalization(conv) -> (?, 16, 16, 4)
        head = Conv2D(norm) filters=8 -> (?, 16, 16, 8)

    Result::

        conv = Conv2D(x) filters=2 -> (?, 16, 16, 2)
        norm = BatchNormalization(conv) -> (?, 16, 16, 2)
        head = Conv2D(norm) filters=8 -> (?, 16, 16, 8)
    """

    needs: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the smaller graph and, where filters went, the fact ``Pruned``."""
        removed = state.fact(Selection).removed
        if not removed:
            return state
        original = groups(state.original)
        gone = labels(original, removed)
        left = {
            ref: (each.axis, np.flatnonzero(~np.isin(each.ids, gone)))
            for ref, each in original.labels.items()
            if each.axis is not None and np.isin(each.ids, gone).any()
        }
        slim = without(state.original, original, gone)
        found = groups(state.graph, like=state.original)
        return state.with_graph(without(state.graph, found, labels(found, removed))).with_fact(
            Pruned(slim, left)
        )
