"""Costs of pruned ops: parameters, MACs and latency are those of the pruned graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import Budget
from lrfc.costs import latency
from lrfc.costs.pruned_ops import narrowed
from lrfc.costs.totals import totals
from lrfc.costs.workload import Workload, workloads
from lrfc.errors import BudgetError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.factorize import Factorize
from lrfc.passes.price_layers import PriceLayers
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning import milp as joint
from lrfc.pruning.costs import narrower
from lrfc.pruning.facts import Selection
from lrfc.pruning.kept_fractions import Shares
from lrfc.pruning.selection import fixed, reachable, without_filters
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace, Price
from lrfc.state import State
from tests import helpers
from tests.compression import SIZE, explored, learnt, state_of

PROFILE = latency.load("host", "tflite", "fp32", 1)


def filtered(state: State, multiple: int = 1) -> State:
    return ExploreFilters(size=SIZE, images=32, multiple=multiple)(explored(state))


def padded_shortcuts() -> Any:
    """A network in which three groups meet behind the second padding, as in the CIFAR ResNets."""
    import keras
    from keras import layers, ops

    x = image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    for stage, width in enumerate((16, 32)):
        y = layers.Conv2D(width, 3, strides=2, padding="same", activation="relu", name=f"a{stage}")(
            x
        )
        y = layers.Conv2D(width, 3, padding="same", name=f"b{stage}")(y)
        left = layers.AveragePooling2D(1, 2, name=f"down{stage}")(x)
        short = ops.pad(left, ((0, 0), (0, 0), (0, 0), (width // 4, width // 4)))
        x = layers.ReLU(name=f"relu{stage}")(layers.Add(name=f"add{stage}")([y, short]))
    return keras.Model(
        image,
        layers.Dense(4, name="head")(layers.GlobalAveragePooling2D(name="mean")(x)),
        name="padded",
    )


@pytest.fixture(
    scope="module", params=["learnt", "residual", "padded", "embedding", "stream", "sizes"]
)
def state(request: pytest.FixtureRequest) -> State:
    if request.param == "learnt":
        return PriceLayers(PROFILE, slower=True)(filtered(learnt()))
    small = {"embedding": embedding, "stream": stream, "sizes": sizes}
    if request.param in small:
        return PriceLayers(PROFILE, slower=True)(
            filtered(state_of(helpers.graph_of(small[request.param]())))
        )
    if request.param == "padded":
        return PriceLayers(PROFILE, slower=True)(
            filtered(state_of(helpers.graph_of(padded_shortcuts())), multiple=4)
        )
    return PriceLayers(PROFILE, slower=True)(
        filtered(state_of(helpers.graph_of(helpers.residual())))
    )


def stream() -> Any:
    """Convolutions whose inputs and outputs are in the same group."""
    import keras
    from keras import layers

    x = image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="stem")(x)
    for number in range(2):
        y = layers.Conv2D(24, 3, padding="same", activation="relu", name=f"conv{number}")(x)
        x = layers.Add(name=f"add{number}")([x, y])
    return keras.Model(
        image,
        layers.Dense(4, name="head")(layers.GlobalAveragePooling2D(name="mean")(x)),
        name="stream",
    )


def sizes() -> Any:
    """A convolution with calls on images of two sizes."""
    import keras
    from keras import layers

    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="stem")(image)
    twice = layers.Conv2D(24, 3, padding="same", activation="relu", name="twice")
    far, near = twice(x), twice(layers.MaxPooling2D(name="half")(x))
    joined = layers.Concatenate(name="both")(
        [layers.GlobalAveragePooling2D(name=f"mean{i}")(each) for i, each in enumerate((far, near))]
    )
    return keras.Model(image, layers.Dense(4, name="head")(joined), name="sizes")


def embedding() -> Any:
    import keras
    from keras import layers

    words = keras.Input((16,), dtype="int32", name="words")
    x = layers.Embedding(50, 32, name="table")(words)
    x = layers.PReLU(shared_axes=[1], name="slope")(layers.Conv1D(48, 3, name="conv")(x))
    return keras.Model(
        words,
        layers.Dense(4, name="head")(layers.GlobalAveragePooling1D(name="mean")(x)),
        name="embedding",
    )


def built(selected: State) -> Graph:
    return fold_batchnorm(PruneFilters()(Factorize()(selected)).graph)


@pytest.fixture(scope="module")
def plans(state: State) -> list[State]:
    """Plans within several budgets: of ranks and filters, and of filters alone."""
    found = []
    for methods in (None, ()):
        for kept in (0.8, 0.6, 0.4):
            try:
                found.append(
                    SelectRanks(max_latency=Budget(value=kept, relative=True), methods=methods)(
                        state
                    )
                )
            except BudgetError:
                continue
    return found


def test_shared_layers_with_inputs_of_several_sizes_are_pruned_too(state: State) -> None:
    if "twice" in state.graph:
        assert {"stem", "twice"} <= set(state.fact(FilterSpace).choices)
        assert not any(space.op.name == "twice" for space in state.fact(DesignSpace).spaces)


def test_the_predicted_latency_is_that_of_the_pruned_workloads(plans: list[State]) -> None:
    assert any(each.fact(Selection).keeps for each in plans)
    for each in plans:
        runs = PROFILE.predict(workload for _, workload in workloads(built(each)))
        assert fixed(each)["latency"] + each.fact(Selection).cost("latency") == pytest.approx(
            runs, rel=0.01
        )


def test_parameters_and_macs_are_those_of_the_pruned_graph(
    state: State, plans: list[State]
) -> None:
    folded = sum(op.params for op in state.graph.layers() if op.kind == "BatchNormalization") > 0
    for each in plans:
        counted, selection = totals(built(each)), each.fact(Selection)
        assert fixed(each)["macs"] + selection.cost("macs") == counted["macs"]
        predicted = fixed(each)["params"] + selection.cost("params")
        # The bias that a folded BatchNorm leaves is counted as if no filter of it went.
        assert counted["params"] <= predicted <= counted["params"] + (100 if folded else 0)


@pytest.mark.parametrize("methods", [None, ()])
def test_the_milp_predicts_the_cost_of_its_choices(
    state: State, methods: tuple[str, ...] | None
) -> None:
    design = (
        state.fact(DesignSpace) if methods is None else state.fact(DesignSpace).narrowed(methods)
    )
    for minimise in ("macs", "params", "latency"):
        program = joint.Program(
            state.graph,
            design.spaces,
            state.fact(FilterSpace),
            (),
            frozenset(),
            state.fact(Price).prices,
        )
        values, found = program.optimum({}, minimise), program.solution({}, minimise)
        for quantity in ("macs", "params", "latency"):
            assert np.dot(program.costs[quantity], values) == pytest.approx(
                found.cost(quantity), rel=1e-4
            )


def test_a_latency_budget_is_met_and_pruning_is_never_worse(state: State) -> None:
    for kept in (0.9, 0.7, 0.5):
        budget = Budget(value=kept, relative=True)
        try:
            alone = SelectRanks(max_latency=budget, prune=False)(state).fact(Selection)
        except BudgetError:
            continue
        both = SelectRanks(max_latency=budget)(state)
        selection = both.fact(Selection)
        assert selection.divergence <= alone.divergence * (1 + 2 * joint.GAP) + 1e-9
        assert fixed(both)["latency"] + selection.cost("latency") <= kept * state.fact(
            Price
        ).whole * (1 + 1e-5)


def test_the_least_latency_is_reached(state: State) -> None:
    least = reachable(state, "latency") / state.fact(Price).whole
    assert least <= reachable(without_filters(state), "latency") / state.fact(Price).whole + 1e-9
    found = SelectRanks(max_latency=Budget(value=min(1.0, 1.01 * least), relative=True))(state)
    assert fixed(found)["latency"] + found.fact(Selection).cost(
        "latency"
    ) <= 1.01 * least * state.fact(Price).whole * (1 + 1e-5)


def test_with_too_many_combinations_of_groups_a_budget_is_nearly_met(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "COMBINATIONS", 12)
    found = SelectRanks(max_latency=Budget(value=0.6, relative=True))(state)
    assert (
        fixed(found)["latency"] + found.fact(Selection).cost("latency")
        <= 0.6 * state.fact(Price).whole * 1.1
    )


def test_times_measured_in_a_network_are_used_unchanged(state: State) -> None:
    """A narrow op that was measured to be slow counts with its measured time."""
    least = reachable(state, "latency") / state.fact(Price).whole
    budget = Budget(value=min(1.0, 0.5 * (1 + least)), relative=True)
    found = SelectRanks(max_latency=budget, methods=())(state)
    whole = {each for _, each in workloads(fold_batchnorm(state.graph))}
    seen = {
        each: 100 * PROFILE.op(each)
        for _, each in workloads(built(found))
        if each.macs and each not in whole
    }
    assert seen
    again = PriceLayers(PROFILE, seen, slower=True)(state)
    other = SelectRanks(max_latency=budget, methods=())(again)
    assert not seen.keys() & {each for _, each in workloads(built(other))}


def test_times_of_single_ops_give_the_change_with_the_width() -> None:
    """The time at full width is that in the network; other widths scale it as they do alone."""
    state = filtered(learnt())
    plain = PriceLayers(PROFILE, slower=True)(state).fact(Price).prices
    alone = {
        each: 1.0 + each.output[-1]
        for each in narrower(
            state.graph, Shares(state.graph, state.fact(FilterSpace)), plain.executed
        )
    }
    (op,) = plain.executed.ops(("conv1",))[0]
    prices = PriceLayers(PROFILE, {**alone, op: 34.0}, alone, slower=True)(state).fact(Price).prices
    assert op.output[-1] == 16
    times = prices.narrowed((op,), ((1.0, 1.0), (1.0, 0.5)), carried=False)
    np.testing.assert_allclose(times, [34.0, 34.0 * 9 / 17])


def test_without_prices_latency_is_proportional_to_macs() -> None:
    state = filtered(learnt())
    spaces = tuple(
        replace(space, candidates=tuple(replace(c, latency=c.macs / 1e6) for c in space.candidates))
        for space in state.fact(DesignSpace).spaces
    )
    found = joint.allocate(
        state.graph,
        spaces,
        state.fact(FilterSpace),
        {"latency": 0.5 * sum(s.whole.latency for s in spaces)},
    )
    assert found.keeps or any(c.method for c in found.chosen)
    assert sum(c.latency for c in found.chosen) == pytest.approx(
        sum(c.macs for c in found.chosen) / 1e6, rel=1e-4
    )


def conv(read: int, made: int, groups: int = 1) -> Workload:
    return Workload(
        "conv",
        ((8, 8, read),),
        (8, 8, made),
        (3, 3),
        (1, 1),
        (1, 1),
        groups,
        params=9 * read * made // groups,
        macs=64 * 9 * read * made // groups,
    )


def test_narrower_ops() -> None:
    assert list(narrowed([conv(16, 32)], 0.5, 0.25)) == [conv(8, 8)]
    assert list(narrowed([conv(16, 4), conv(4, 4), conv(4, 32)], 0.5, 0.25)) == [
        conv(8, 4),
        conv(4, 4),
        conv(4, 8),
    ]
    pool = Workload("pool", ((8, 8, 16),), (4, 4, 16), (2, 2), (2, 2))
    assert list(narrowed([pool], 0.5, 1.0, carried=True)) == [
        Workload("pool", ((8, 8, 8),), (4, 4, 8), (2, 2), (2, 2))
    ]
    assert list(narrowed([conv(16, 16, 4)], 0.5, 1.0, carried=True)) == [conv(8, 8, 2)]
    padded = Workload("ops.pad", ((8, 8, 16),), (8, 8, 32))
    assert list(narrowed([padded], 0.5, 0.75)) == [Workload("ops.pad", ((8, 8, 8),), (8, 8, 24))]
    biased = replace(conv(16, 32), params=9 * 16 * 32 + 32)
    assert list(narrowed([biased], 0.5, 0.25)) == [replace(conv(8, 8), params=9 * 8 * 8 + 8)]
    activation = Workload("sigmoid", ((8, 8, 32),), (8, 8, 32))
    assert list(narrowed([conv(16, 32), activation], 1.0, 0.5)) == [
        conv(16, 16),
        Workload("sigmoid", ((8, 8, 16),), (8, 8, 16)),
    ]


def test_ties_never_outweigh_the_objective(state: State) -> None:
    """MACs decide between choices that are otherwise equal, however many MACs a network has."""
    prices, spaces = state.fact(Price).prices, state.fact(DesignSpace).spaces
    large = tuple(
        replace(space, candidates=tuple(replace(c, macs=10**9 * c.macs) for c in space.candidates))
        for space in spaces
    )
    limit = {"latency": 0.8 * state.fact(Price).whole - fixed(state)["latency"]}
    found = [
        joint.allocate(state.graph, each, state.fact(FilterSpace), limit, prices=prices)
        for each in (spaces, large)
    ]
    impacts = [
        sum(c.divergence for c in each.chosen)
        + sum(keep.divergence for keep in each.keeps.values())
        for each in found
    ]
    assert impacts[1] == pytest.approx(impacts[0], rel=3 * joint.GAP, abs=1e-9)
