"""Remove the filters of the pruned dependency groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.pruning.cut import without
from lrfc.pruning.facts import Pruned, Selection
from lrfc.pruning.groups import groups
from lrfc.pruning.labels import Ids
from lrfc.pruning.space import labels
from lrfc.state import Fact, State


@dataclass(frozen=True)
class PruneFilters:
    """Remove the filters that the selection lists, and all weights that depend on them.

    BatchNorms lose channels, and consumers lose input channels. Without filters to remove, the
    graph is not changed.

    Given (filters 1 and 2 of ``conv`` are to be removed)::

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
        """The state with the smaller graph and, if it lost filters, the fact ``Pruned``."""
        selection = state.fact(Selection)
        if not selection.removed:
            return state
        whole = selection.whole_heads
        pruned = _pruned(state.original, selection.removed, whole_heads=whole)
        # Factorization has changed the labels, but not the filters of a layer.
        dependencies = groups(state.graph, like=state.original, whole_heads=whole)
        smaller = without(state.graph, dependencies, labels(dependencies, selection.removed))
        return state.with_graph(smaller).with_fact(pruned)


def _pruned(original: Graph, removed: Mapping[str, Ids], *, whole_heads: bool) -> Pruned:
    """The original without these filters (by layer), and the channels that its tensors keep."""
    dependencies = groups(original, whole_heads=whole_heads)
    gone = labels(dependencies, removed)
    left = {
        ref: (of_tensor.axis, np.flatnonzero(~np.isin(of_tensor.ids, gone)))
        for ref, of_tensor in dependencies.labels.items()
        if of_tensor.axis is not None and np.isin(of_tensor.ids, gone).any()
    }
    return Pruned(without(original, dependencies, gone), left)
