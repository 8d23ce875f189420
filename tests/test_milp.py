"""The MILP of ranks and filters: costs of the rewritten graph, brute-force optimum, peak memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import Budget
from lrfc.costs.arena import arena
from lrfc.costs.totals import totals
from lrfc.engine.budgets import meet
from lrfc.engine.closest import closest
from lrfc.errors import BudgetError, UnreachableError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.factorize import Factorize
from lrfc.passes.lock_filters import LockFilters
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning import milp as joint
from lrfc.pruning.facts import Pruned, Selection
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.selection import reachable, without_filters
from lrfc.pruning.space import FilterSpace, counts
from lrfc.search.candidates import pareto
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import divergence
from lrfc.state import State
from lrfc.targets.catalog import target
from tests import helpers
from tests.compression import SIZE, explored, learnt, state_of


def filtered(state: State, **options: object) -> State:
    """The state with its DesignSpace and its FilterSpace."""
    settings: dict[str, Any] = {"size": SIZE, "images": 32, **options}
    return ExploreFilters(**settings)(explored(state))


@pytest.fixture(scope="module")
def state() -> State:
    return filtered(learnt())


def built(selected: State) -> State:
    return PruneFilters()(Factorize()(selected))


def share(value: float) -> Budget:
    return Budget(value=value, relative=True)


def test_numbers_of_units_are_multiples_and_start_with_all() -> None:
    assert counts(16, 1, 8) == [16, 14, 12, 10, 8, 6, 4, 2]
    assert counts(64, 16, 8) == [64, 48, 32, 16]
    assert counts(20, 8, 8) == [20, 16, 8]
    assert counts(4, 8, 8) == [4]


def test_removing_more_is_never_predicted_to_harm_less(state: State) -> None:
    choices = state.fact(FilterSpace).choices
    assert set(choices) == {"conv0", "conv1"}
    for keeps in choices.values():
        impacts = [keep.divergence for keep in keeps]
        assert impacts[0] == 0
        assert impacts == sorted(impacts)
        assert impacts[-1] > 0


@pytest.mark.parametrize("kept", [0.8, 0.5, 0.25])
@pytest.mark.parametrize("methods", [None, ()])
def test_the_predicted_costs_are_those_of_the_graph(
    state: State, kept: float, methods: tuple[str, ...] | None
) -> None:
    found = SelectRanks(share(kept), methods=methods)(state)
    selection = found.fact(Selection)
    graph = built(found).graph
    graph.check()
    whole, after = totals(state.original), totals(graph)
    assert after["macs"] <= kept * whole["macs"]
    spaces = state.fact(DesignSpace).spaces
    assert after["macs"] == whole["macs"] - sum(s.whole.macs for s in spaces) + sum(
        c.macs for c in selection.chosen
    )
    if methods == ():
        assert all(c.method is None for c in selection.chosen)
        assert selection.keeps


def test_the_optimum_is_that_of_brute_force(state: State) -> None:
    """With few candidates and levels, every combination is rewritten and counted."""
    design, filters = state.fact(DesignSpace), state.fact(FilterSpace)
    spaces = tuple(
        replace(s, candidates=(s.whole, *[c for c in pareto(s.candidates) if c.method][::9][:3]))
        for s in design.spaces
    )
    narrow = replace(filters, choices={name: keeps[::3] for name, keeps in filters.choices.items()})
    small = state.with_fact(replace(design, spaces=spaces), narrow)
    whole = totals(state.original)["macs"]
    combinations = []
    for chosen in product(*(s.candidates for s in spaces)):
        for keeps in product(*narrow.choices.values()):
            cut = {keep.group.name: keep for keep in keeps if keep.cuts}
            factors = {
                s.op.name: s.factors[c.method]
                for s, c in zip(spaces, chosen, strict=True)
                if c.method is not None
            }
            graph = built(
                small.with_fact(Selection(chosen, {}, factors, cut, narrow.removed(cut)))
            ).graph
            combinations.append(
                (
                    totals(graph)["macs"],
                    sum(c.divergence for c in chosen) + sum(k.divergence for k in keeps),
                )
            )
    for kept in (0.7, 0.45, 0.3):
        best = min(impact for macs, impact in combinations if macs <= kept * whole)
        found = SelectRanks(share(kept))(small).fact(Selection)
        assert found.divergence == pytest.approx(best, rel=2e-3)
    assert reachable(small, "macs") == min(macs for macs, _ in combinations)


def test_both_together_are_never_predicted_worse_than_either(state: State) -> None:
    for kept in (0.7, 0.4):
        together, ranks, filters = (
            SelectRanks(share(kept), **options)(state).fact(Selection).divergence
            for options in ({}, {"prune": False}, {"methods": ()})
        )
        assert together <= min(ranks, filters) * (1 + 2e-3)


def test_an_error_names_the_means_and_the_large_layers_that_keep_their_filters(
    state: State,
) -> None:
    for methods, means in (
        (None, "these methods and cutting filters reach is"),
        ((), "cutting filters reaches is"),
    ):
        with pytest.raises(BudgetError, match=means):
            SelectRanks(share(0.001), methods=methods)(state)
    with pytest.raises(BudgetError, match=r"these methods reach is [\d,]+ \([\d.]+ %\)$"):
        SelectRanks(share(0.001), prune=False)(state)
    kept = ExploreFilters(size=SIZE, images=32, keep=("conv0",))(state)
    with pytest.raises(
        BudgetError, match=r" %\); filters stay in conv0: its filters are kept by --keep conv0$"
    ):
        SelectRanks(share(0.001))(kept)


def test_filters_reach_below_what_ranks_reach(state: State) -> None:
    assert reachable(state, "macs") < reachable(without_filters(state), "macs")
    least = reachable(state, "macs") / totals(state.original)["macs"]
    with pytest.raises(UnreachableError) as caught:
        SelectRanks(share(least / 2))(state)
    assert caught.value.least == reachable(state, "macs")


@pytest.mark.parametrize("build", [helpers.residual, helpers.branches, helpers.conv_net])
def test_the_peak_memory_is_within_its_bound(build) -> None:
    state = filtered(state_of(helpers.graph_of(build())))
    whole = arena(state.original).peak_bytes
    tight = 0
    for limit in (0.9, 0.7, 0.5):
        try:
            found = SelectRanks(peak_memory=(PeakMemory(4, limit * whole),))(state)
        except BudgetError:
            continue
        tight += 1
        assert arena(fold_batchnorm(built(found).graph)).peak_bytes <= limit * whole
    assert tight or joint.others(state.original, ())  # the models' inputs alone may need more


@pytest.mark.parametrize("build", [helpers.residual, helpers.branches, helpers.conv_net])
def test_the_least_peak_memory_is_enough_and_less_is_not(build) -> None:
    state = filtered(state_of(helpers.graph_of(build())))
    least = joint.least_peak_memory(
        state.graph, state.fact(DesignSpace).spaces, state.fact(FilterSpace), 4
    )
    assert (
        arena(
            fold_batchnorm(
                built(SelectRanks(peak_memory=(PeakMemory(4, 1.001 * least),))(state)).graph
            )
        ).peak_bytes
        <= 1.001 * least
    )
    with pytest.raises(BudgetError, match="cannot be met"):
        SelectRanks(peak_memory=(PeakMemory(4, 0.99 * least),))(state)
    limit = int(0.5 * least)
    with pytest.raises(UnreachableError) as caught:
        meet(state, SelectRanks(), None, Budget(value=limit, relative=False), [target("tflite")])
    assert (caught.value.quantity, caught.value.limit) == ("ram", limit)
    assert caught.value.least == pytest.approx(least)


def test_repairs_use_the_remaining_channels(state: State) -> None:
    """The statistics and the targets of the repairs are those of the remaining channels."""
    cut = built(SelectRanks(share(0.4), methods=())(state))
    pruned = cut.fact(Pruned)
    axis, left = pruned.left[Ref("bn0")]
    assert (axis, len(left)) == (3, cut.graph.op("bn0").weights["gamma"].size)
    recalibrated = RecalibrateBatchNorm()(cut)
    refitted = Refit(samples=256)(recalibrated)
    inputs = state.data.validation.inputs
    reference = keras_io.predict(state.original, inputs)
    before, after = (
        divergence(reference, keras_io.predict(each.graph, inputs)) for each in (cut, refitted)
    )
    assert after < 0.7 * before


def test_an_alternative_plan_is_chosen_if_it_is_closer(state: State) -> None:
    lines: list[str] = []
    logged = replace(state, progress=replace(state.progress, log=lines.append))
    select = closest(logged, SelectRanks(share(0.5)))
    judged = {
        line.split(":")[0].strip(): float(line.split("divergence ")[1])
        for line in lines
        if "divergence" in line
    }
    assert {"no filters cut", "filters alone"} <= {line.split(":")[0].strip() for line in lines}
    expected = {
        "no filters cut": (None, False),
        "filters alone": ((), True),
        "all together": (None, True),
    }
    # Plans that are one network are not judged.
    best = min(judged, key=judged.__getitem__, default="all together")
    assert (select.methods, select.prune) == expected.get(best, (tuple(best.split(", ")), True))


def test_a_locked_build_removes_the_same_filters(state: State) -> None:
    first = SelectRanks(share(0.4), methods=())(state)
    keeps = first.fact(Selection).keeps
    kept = {name: (k.group.width, tuple(k.units.tolist())) for name, k in keeps.items()}
    again = SelectRanks(methods=())(LockFilters(kept)(state))
    assert {k: v.tolist() for k, v in again.fact(Selection).removed.items()} == {
        k: v.tolist() for k, v in first.fact(Selection).removed.items()
    }
    assert str(built(again).graph) == str(built(first).graph)
    with pytest.raises(UsageError, match="group 'nobody'"):
        LockFilters({"nobody": (1, (0,))})(state)
    width = state.fact(FilterSpace).dependencies["conv0"].width
    for wrong in ((width, (width,)), (width, ()), (width + 1, (0,))):
        with pytest.raises(UsageError, match="conv0"):
            LockFilters({"conv0": wrong})(state)


def test_layers_that_are_kept_lose_nothing(state: State) -> None:
    kept = ExploreFilters(size=SIZE, images=32, keep=("conv0",))(state)
    assert set(kept.fact(FilterSpace).choices) == {"conv1"}
    assert "--keep conv0" in kept.fact(FilterSpace).refused["conv0"]
    assert np.all(
        [
            keep.group.name == "conv1"
            for keep in SelectRanks(share(0.5))(kept).fact(Selection).keeps.values()
        ]
    )


def test_channels_are_those_of_the_output_of_each_layer() -> None:
    """Depthwise filters depend on the input; a unit of a grouped convolution is several filters."""
    import keras
    from keras import layers

    image = keras.Input((6, 6, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(
        layers.Conv2D(8, 1, name="stem")(image)
    )
    x = layers.Conv2D(16, 3, groups=8, padding="same", name="grouped")(
        layers.Conv2D(32, 1, name="point")(x)
    )
    outputs = layers.Dense(3, name="head")(
        layers.GlobalAveragePooling2D()(layers.Conv2D(6, 1, name="last")(x))
    )
    state = ExploreFilters(size=SIZE, images=32)(
        state_of(helpers.graph_of(helpers.random_weights(keras.Model(image, outputs))))
    )
    filters = state.fact(FilterSpace)
    counted = filters.left(
        filters.removed({name: filters.choices[name][-1] for name in ("stem", "point")})
    )
    stem, point = (len(filters.choices[name][-1].units) for name in ("stem", "point"))
    assert {
        name: counted[name] for name in ("stem", "depthwise", "point", "grouped", "last", "head")
    } == {
        "stem": (8, stem),
        "depthwise": (16, 2 * stem),
        "point": (32, 4 * point),
        "grouped": (16, 2 * point),
        "last": (6, 6),
        "head": (3, 3),
    }


def test_a_layer_with_some_prunable_filters_has_no_reason() -> None:
    """Half of the filters of ``both`` have a consumer that cannot be sampled, the others can go."""
    import keras
    from keras import layers, ops

    image = keras.Input((6, 6, 3))
    one, other = ops.split(layers.Conv2D(8, 3, name="both")(image), 2, axis=-1)
    shared = layers.Conv2D(4, 1, name="shared")
    maps = (
        shared(one),
        shared(layers.AveragePooling2D(2)(one)),
        layers.Conv2D(4, 1, name="point")(other),
    )
    outputs = layers.Dense(3, name="head")(
        layers.Concatenate()([layers.GlobalAveragePooling2D()(each) for each in maps])
    )
    state = ExploreFilters(size=SIZE, images=32)(
        state_of(helpers.graph_of(helpers.random_weights(keras.Model(image, outputs))))
    )
    filters = state.fact(FilterSpace)
    assert any(
        part.layer == "both"
        for keeps in filters.choices.values()
        for part in keeps[0].group.producers
    )
    assert list(filters.refused) == ["head"]
    assert LockFilters({})(state).fact(FilterSpace).refused == filters.refused


def test_filters_are_removed_only_with_samples_to_refit_on() -> None:
    graph = helpers.graph_of(
        helpers.dense_net()
    )  # no BatchNorm that made-up inputs could be matched to
    for state in (state_of(graph, synthetic=True), state_of(graph, samples=12)):
        with pytest.raises(UsageError, match="--prune off"):
            ExploreFilters()(state)


def test_without_a_solution_in_time_no_filters_are_removed(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    logged = replace(state, progress=replace(state.progress, log=lines.append))
    alone = SelectRanks(share(0.6), prune=False)(state).fact(Selection)
    solve = joint.solved

    def slow(
        objective, integrality, constraints, **options
    ):  # the least that can be reached is found, the best within the budget is not
        found = solve(objective, integrality, constraints, **options)
        if len(constraints) > 1:
            found.x, found.status = None, 1
        return found

    monkeypatch.setattr(joint, "solved", slow)
    selection = SelectRanks(share(0.6))(logged).fact(Selection)
    assert (selection.chosen, selection.keeps) == (alone.chosen, {})
    assert lines == [
        (
            "  no choice of ranks and filters within the macs budgets was found in 60 s: no filters"
            " are cut"
        )
    ]
    with pytest.raises(BudgetError, match="was found in 60 s"):
        SelectRanks(share(0.6), methods=())(state)
