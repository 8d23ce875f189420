"""The selection and the graph of a plan before it is built, without a line in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lrfc.factorization.warm import quick
from lrfc.ir.graph import Graph
from lrfc.passes.factorize import Factorize
from lrfc.passes.prune_filters import PruneFilters
from lrfc.pipeline import name_of
from lrfc.protocols import Pass
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import Constraints, select
from lrfc.state import Progress, State
from lrfc.system.spans import span


def selected(state: State, constraints: Constraints) -> State:
    """The state with the best Selection within the constraints; BudgetError where there is none."""
    return state.with_fact(select(state, constraints))


def fitted_quickly(planned: State) -> State:
    """The plan of a state with fits of few sweeps, where each rank has a fit of its own."""
    selection = planned.fact(Selection)
    factors = {
        candidate.layer: quick(selection.factors[candidate.layer])
        for candidate in selection.chosen
        if candidate.method is not None
    }
    return planned.with_fact(replace(selection, factors=factors))


def rewritten(state: State, repairs: Sequence[Pass] = ()) -> Graph:
    """The graph of the state's Selection, layers factorized and filters cut, after ``repairs``."""
    state = replace(state, progress=Progress())
    steps: tuple[Pass, ...] = (Factorize(), PruneFilters(), *repairs)
    for step in steps:
        with span(name_of(step)):
            state = step(state)
            state.graph.check()
    return state.graph
