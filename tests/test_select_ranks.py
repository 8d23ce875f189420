"""Rank selection: the rewritten graph meets the budgets, and unfactorized layers have a reason."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lrfc.config.build import Budget
from lrfc.costs.totals import totals
from lrfc.errors import UnreachableError
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import plan, run
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import reachable
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from tests import helpers
from tests.compression import SIZE, explored, state_of


@pytest.fixture(scope="module")
def state() -> State:
    return explored(state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12, 14)))))


@pytest.fixture(scope="module")
def shared() -> State:
    return explored(state_of(helpers.graph_of(helpers.shared_conv())))


def share(value: float) -> Budget:
    return Budget(value=value, relative=True)


def rewritten(state: State, **budgets: Budget) -> State:
    return run(state, plan([SelectRanks(**budgets), Factorize()], known=(DesignSpace,)))


@pytest.mark.parametrize("kept", [0.4, 0.55, 0.7, 0.9])
def test_the_rewritten_graph_meets_the_budgets(state, kept) -> None:
    whole = totals(state.original)
    for quantity in ("macs", "params"):
        after = rewritten(state, **{f"max_{quantity}": share(kept)})
        assert totals(after.graph)[quantity] <= kept * whole[quantity]
    after = rewritten(state, max_macs=share(kept), max_params=share(kept))
    assert all(totals(after.graph)[quantity] <= kept * whole[quantity] for quantity in whole)
    absolute = rewritten(state, max_macs=Budget(value=round(kept * whole["macs"]), relative=False))
    assert totals(absolute.graph)["macs"] <= round(kept * whole["macs"])


def test_the_totals_are_those_of_the_choices(state, shared) -> None:
    for each, kept in ((state, 0.5), (shared, 0.7)):
        before = totals(each.graph)
        after = rewritten(each, max_macs=share(kept))
        spaces, chosen = each.fact(DesignSpace).spaces, after.fact(Selection).chosen
        for quantity, value in totals(after.graph).items():
            saved = sum(
                getattr(s.candidates[0], quantity) - getattr(c, quantity)
                for s, c in zip(spaces, chosen, strict=True)
            )
            assert value == before[quantity] - saved


def test_totals_count_the_file_and_not_the_training_graph(state) -> None:
    # conv + bias after folding, without the four arrays of each BatchNorm
    widths = (3, 10, 12, 14)
    convs = sum(9 * a * b + b for a, b in pairwise(widths))
    assert totals(state.graph)["params"] == convs + 14 * 5 + 5
    assert totals(state.graph)["macs"] == 9 * (144 * 3 * 10 + 36 * 10 * 12 + 9 * 12 * 14) + 14 * 5


def test_the_least_is_reachable_and_nothing_below_it(state) -> None:
    least = {quantity: reachable(state, quantity) for quantity in ("macs", "params")}
    for quantity in ("macs", "params"):
        after = rewritten(
            state, **{f"max_{quantity}": Budget(value=least[quantity], relative=False)}
        )
        assert totals(after.graph)[quantity] == least[quantity]
        below = Budget(value=least[quantity] - 1, relative=False)
        with pytest.raises(UnreachableError) as caught:
            SelectRanks(**{f"max_{quantity}": below})(state)
        assert caught.value.quantity == quantity
        assert (caught.value.limit, caught.value.least) == (below.value, least[quantity])


def test_without_budgets_no_layer_is_factorized(state) -> None:
    selection = SelectRanks()(state).fact(Selection)
    assert selection.divergence == 0
    assert all(c.method is None for c in selection.chosen)
    assert set(selection.factors) == set()


def test_a_smaller_budget_has_a_larger_divergence(state) -> None:
    impacts = [
        SelectRanks(max_macs=share(kept))(state).fact(Selection).divergence
        for kept in (0.9, 0.7, 0.5, 0.4)
    ]
    assert impacts == sorted(impacts)
    assert impacts[-1] > impacts[0]


def test_every_factorizable_layer_has_a_choice_or_a_reason() -> None:
    given = state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12, 14), classes=1)))
    found = explored(given, keep=("conv1",))
    selection = SelectRanks(max_macs=share(0.9))(found).fact(Selection)
    factorized = {c.layer for c in selection.chosen if c.method is not None}
    assert factorized
    assert factorized | set(selection.reasons) == {"conv0", "conv1", "conv2", "head"}
    assert not factorized & set(selection.reasons)
    assert selection.reasons["conv1"] == "kept by --keep conv1"
    assert "no rank is smaller" in selection.reasons["head"]
    assert all(selection.reasons.values())
    assert factorized == set(selection.factors)
    none = SelectRanks()(found).fact(Selection)
    assert none.reasons["conv0"] == none.reasons["conv2"] != ""


def test_with_every_layer_kept_there_is_no_candidate() -> None:
    found = explored(state_of(helpers.graph_of(helpers.dense_net())), keep=("*",))
    assert found.fact(DesignSpace).size == 0
    assert SelectRanks()(found).fact(Selection).chosen == ()
    with pytest.raises(UnreachableError) as caught:
        SelectRanks(max_macs=share(0.5))(found)
    assert caught.value.least == totals(found.original)["macs"]


def test_layers_of_every_kind_are_explored() -> None:
    import keras
    from keras import layers

    image = keras.Input((8, 8, 8), name="image")
    x = layers.SeparableConv2D(8, 3, name="separable")(image)
    x = layers.BatchNormalization(name="bn")(
        layers.Conv2DTranspose(8, 3, padding="same", name="transposed")(x)
    )
    x = layers.ReLU(name="relu")(layers.DepthwiseConv2D(3, name="depthwise")(x))
    x = layers.Reshape((16, 8), name="rows")(x)
    x = layers.EinsumDense("abc,cd->abd", (16, 10), name="einsum")(x)
    x = layers.LayerNormalization(name="norm")(x)
    model = helpers.random_weights(
        keras.Model(image, layers.Dense(6, name="head")(layers.Flatten(name="flat")(x)), name="zoo")
    )
    given = state_of(helpers.graph_of(model), samples=32)
    found = explored(given)
    design = found.fact(DesignSpace)
    assert {s.op.name for s in design.spaces} | set(design.skipped) == {
        "separable",
        "transposed",
        "depthwise",
        "einsum",
        "head",
    }
    assert {"transposed", "einsum", "head"} <= {s.op.name for s in design.spaces}
    after = rewritten(
        found, max_macs=share((reachable(found, "macs") / totals(found.graph)["macs"] + 1) / 2)
    )
    assert totals(after.graph)["macs"] < totals(found.graph)["macs"]


def test_the_seed_decides() -> None:
    given = state_of(helpers.graph_of(helpers.conv_net()))

    def chosen() -> list[tuple]:
        found = ExploreLayers(size=SIZE, sensitivity_images=32)(given)
        return [
            (c.layer, c.method, c.ranks, c.divergence)
            for c in SelectRanks(max_macs=share(0.6))(found).fact(Selection).chosen
        ]

    assert chosen() == chosen()
