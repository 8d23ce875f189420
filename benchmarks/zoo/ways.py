"""The ways to compress a network that the evaluation compares, over one exploration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.evbmf import evbmf_rank
from lrfc.config.build import METHODS, Budget
from lrfc.costs.totals import totals
from lrfc.errors import BudgetError
from lrfc.factorization import METHODS as ALL
from lrfc.factorization.layout import Layout
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import fixed, without_filters
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.facts import DesignSpace
from lrfc.state import State

#: The methods for convolutions and those for matrix products.
FULL = ("svd", "tt_matrix", "tucker_matrix")
CONV = tuple(name for name in ALL if name not in FULL)
#: Steps of a bisection for the plan of a family that meets a budget.
STEPS = 30


def explored(state: State) -> State:
    """The state with the candidates of every method, and with the filters that can be cut."""
    return ExploreFilters()(ExploreLayers(methods=tuple(ALL))(state))


def plans(state: State, kept: float) -> Iterator[tuple[str, Callable[[], State | None]]]:
    """Each way with a function that selects a plan with that share of the MACs.

    It returns None where the way cannot reach the share. ``state``: explored.
    """
    budget = Budget(value=kept, relative=True)

    def mixed(methods: tuple[str, ...], *, prune: bool = False) -> Callable[[], State | None]:
        def chosen() -> State | None:
            try:
                return SelectRanks(budget, methods=methods, prune=prune)(state)
            except BudgetError:
                return None

        return chosen

    yield "hybrid", mixed(METHODS)
    yield "all methods", mixed(tuple(ALL))
    for name in CONV:
        yield name, mixed((name, *FULL))
    if any(space.op.info.is_matrix_product for space in state.fact(DesignSpace).spaces):
        for name in FULL:
            yield f"{name} alone", mixed((*CONV, name))
    yield "filters", mixed((), prune=True)
    yield "ranks and filters", mixed(METHODS, prune=True)
    for name, family in _families(state):
        yield name, lambda family=family: _within(state, budget, family)


#: A function from a number in 0..1, where 1 is the original, to the choice for each layer.
Family = Callable[[float], Mapping[str, Candidate]]


def _families(state: State) -> Iterator[tuple[str, Family]]:
    """Ranks from the weights alone, or the same share of them everywhere, by SVD."""
    spaces = [space for space in state.fact(DesignSpace).spaces if _svd(space) is not None]
    values = {space.op.name: _singular_values(state, space) for space in spaces}
    noise = {name: max(1, each[1]) for name, each in values.items()}
    shares = {
        name: np.cumsum(np.square(each[0])) / np.sum(np.square(each[0]))
        for name, each in values.items()
    }

    def energy(knob: float) -> Mapping[str, Candidate]:
        kept = 1 - (1 - knob) ** 3
        return {s.op.name: _at(s, np.searchsorted(shares[s.op.name], kept) + 1) for s in spaces}

    def evbmf(knob: float) -> Mapping[str, Candidate]:
        times = knob / max(1 - knob, 1e-9)
        return {s.op.name: _at(s, times * noise[s.op.name]) for s in spaces}

    def uniform(knob: float) -> Mapping[str, Candidate]:
        return {s.op.name: _at(s, knob * len(shares[s.op.name])) for s in spaces}

    yield "energy", energy
    yield "EVBMF", evbmf
    yield "uniform", uniform


def _svd(space: LayerSpace) -> str | None:
    """The method with one bond that the layer has candidates of."""
    names = {candidate.method for candidate in space.candidates}
    return next((name for name in ("channel_svd", "svd") if name in names), None)


def _singular_values(state: State, space: LayerSpace) -> tuple[Any, int]:
    """Those of the kernel as a matrix, and how many are above its noise."""
    layout = Layout.of(space.op, state.original.input_tensors(space.op.name)[0])
    matrix = layout.matrix(layout.tensor())[0]
    return np.linalg.svd(matrix, compute_uv=False), evbmf_rank(matrix)


def _at(space: LayerSpace, wanted: float) -> Candidate:
    """The candidate nearest to a rank; the layer unchanged where that rank saves nothing."""
    own = [candidate for candidate in space.candidates if candidate.method == _svd(space)]
    if wanted > max(candidate.ranks[0] for candidate in own):
        return space.whole
    return min(own, key=lambda candidate: abs(np.log(max(wanted, 0.5) / candidate.ranks[0])))


def _within(state: State, budget: Budget, family: Family) -> State | None:
    """The state with the largest plan of a family within a budget; None without one."""
    spaces, outside = state.fact(DesignSpace).spaces, fixed(without_filters(state))["macs"]
    limit = budget.limit(totals(state.original)["macs"])

    def macs(chosen: Mapping[str, Candidate]) -> float:
        return outside + sum(chosen.get(space.op.name, space.whole).macs for space in spaces)

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(family(middle)) <= limit else (low, middle)
    chosen = family(low)
    if macs(chosen) > limit:
        return None
    picked = tuple(chosen.get(space.op.name, space.whole) for space in spaces)
    factors = {
        space.op.name: space.factors[candidate.method]
        for space, candidate in zip(spaces, picked, strict=True)
        if candidate.method is not None
    }
    return without_filters(state).with_fact(Selection(picked, {}, factors))
