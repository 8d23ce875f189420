"""Removal of units: the smaller graph computes what the original computes with zeros instead."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from lrfc.errors import UsageError
from lrfc.ir.keras import io as keras_io
from lrfc.passes.factorize import Factorize
from lrfc.pruning.cut import cut, without
from lrfc.pruning.facts import Selection
from lrfc.pruning.groups import groups
from lrfc.pruning.space import FilterSpace, Keep, labels
from lrfc.search.facts import DesignSpace
from tests.compression import explored, state_of
from tests.helpers import (
    branches,
    conv_net,
    difference,
    graph_of,
    nested_twice,
    random_inputs,
    random_weights,
    residual,
    same,
)
from tests.pruned import BLOCKS, checked, halves, random_net, zeroed


def check(model, share=0.5, seed=0, samples=2):
    """Prune every group of the model and compare; return the dependencies and the pruned graph."""
    return checked(graph_of(model), share, seed, samples)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4),
    st.lists(st.integers(3, 8), min_size=5, max_size=5),
    st.booleans(),
    st.booleans(),
    st.floats(0.2, 0.9),
    st.integers(0, 99),
)
def test_a_random_network_with_random_units_removed(blocks, widths, flat, two_outputs, share, seed):
    check(
        random_net(
            blocks, widths[: len(blocks) + 1], flat=flat, two_outputs=two_outputs, seed=seed
        ),
        share,
        seed,
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_alone(block):
    found, _ = check(random_net([block], [6, 4], flat=True, two_outputs=False, seed=1), seed=2)
    assert found.groups or block == "layer_norm"


@pytest.mark.parametrize("model", [conv_net, residual, branches, nested_twice])
def test_small_networks(model):
    check(model())


def functional(inputs, outputs):
    import keras

    return random_weights(keras.Model(inputs, outputs))


def test_one_and_three_dimensions():
    import keras
    from keras import layers

    sound, volume = keras.Input((12, 3), name="sound"), keras.Input((4, 4, 4, 2), name="volume")
    x = layers.Conv1D(6, 3, padding="causal", name="a")(
        layers.ZeroPadding1D(1)(layers.Conv1D(4, 3, strides=2, name="b")(sound))
    )
    x = layers.Conv1DTranspose(5, 3, strides=2, name="c")(
        layers.UpSampling1D(2)(layers.MaxPooling1D(2, padding="same")(x))
    )
    x = layers.Dense(2, name="d")(layers.Flatten()(x))
    y = layers.Conv3D(4, 2, name="e")(volume)
    y = layers.Conv3DTranspose(3, 2, name="f")(layers.AveragePooling3D(1)(y))
    y = layers.Dense(2, name="g")(layers.GlobalMaxPooling3D()(y))
    found, _ = check(functional([sound, volume], [x, y]))
    assert [group.name for group in found.groups] == ["b", "a", "e", "f", "c"]


def test_projections_to_heads_lose_whole_heads():
    import keras
    from keras import layers

    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="widen")(inputs)
    x = layers.EinsumDense("abc,cde->abde", (5, 4, 3), bias_axes="de", name="heads")(x)
    x = layers.EinsumDense("abde,dec->abc", (5, 7), bias_axes="c", activation="relu", name="join")(
        x
    )
    found, smaller = check(functional(inputs, layers.Dense(2, name="head")(x)))
    assert [(group.name, group.width) for group in found.groups] == [
        ("widen", 8),
        ("heads", 4),
        ("join", 7),
    ]
    assert smaller.tensors("heads")[0].shape == (None, 5, 2, 3)


def test_an_embedding_loses_columns():
    import keras
    from keras import layers

    words = keras.Input((7,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 6, name="words")(words))
    found, _ = check(functional(words, layers.Dense(2, name="head")(x)))
    assert [(group.name, group.width) for group in found.groups] == [("words", 6)]


def test_channels_first():
    """Only shapes and the rows behind a Flatten: TensorFlow does not run these on a CPU."""
    import keras
    from keras import layers

    inputs = keras.Input((3, 5, 5))
    x = layers.Conv2D(6, 3, data_format="channels_first", name="conv")(inputs)
    x = layers.BatchNormalization(axis=1, name="bn")(x)
    x = layers.MaxPooling2D(data_format="channels_first", name="pool")(
        layers.PReLU(name="prelu")(x)
    )
    x = layers.Conv2D(6, 1, groups=2, data_format="channels_first", name="pairs")(x)
    model = functional(
        inputs,
        layers.Dense(2, name="head")(layers.Flatten(data_format="channels_first", name="flat")(x)),
    )
    graph = graph_of(model)
    found = groups(graph)
    assert [(group.name, group.width) for group in found.groups] == [("conv", 3), ("pairs", 3)]
    smaller = cut(graph, {found.groups[-1].name: np.array([1])})
    smaller.check()
    assert smaller.tensors("flat")[0].shape == (None, 2)


def test_slices_of_a_saved_model_are_those_of_the_model(tmp_path):
    """Their index is a tuple in memory and a list in a file."""
    import keras
    from keras import layers

    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    model = functional(
        inputs,
        [layers.Conv2D(3, 3, name="a")(x[..., :6]), layers.Conv2D(3, 2, name="b")(x[:, 1:, :, 2:])],
    )
    model.save(tmp_path / "m.keras")
    found, _ = check(model)
    loaded, smaller = check(keras.models.load_model(tmp_path / "m.keras"))
    assert len(found.groups) == 3
    assert [(group.name, group.width) for group in loaded.groups] == [
        (group.name, group.width) for group in found.groups
    ]
    keras_io.save(smaller, tmp_path / "small.keras")
    same(smaller, keras.models.load_model(tmp_path / "small.keras"))


def test_unread_outputs_and_unknown_units_are_refused():
    graph = graph_of(conv_net())
    with pytest.raises(UsageError, match="no group of filters 'head'"):
        cut(graph, {"head": np.array([0])})
    for units in ([], [0, 8], [1, 0], [-1]):
        with pytest.raises(UsageError, match="ascending indices below 8"):
            cut(graph, {"conv0": np.array(units, np.intp)})


def test_groups_that_are_not_named_keep_all_units():
    graph = graph_of(conv_net())
    smaller = cut(graph, {"conv0": np.array([1, 5])})
    assert smaller.tensors("conv1")[0] == graph.tensors("conv1")[0]
    assert smaller.op("conv1").weights["kernel"].shape == (3, 3, 2, 12)
    np.testing.assert_array_equal(
        smaller.op("bn0").weights["gamma"], graph.op("bn0").weights["gamma"][[1, 5]]
    )


def test_the_original_is_not_changed():
    graph = graph_of(residual())
    before = str(graph)
    cut(graph, halves(groups(graph)))
    assert str(graph) == before


def test_a_pruned_network_is_saved_and_loaded_by_keras_alone(tmp_path):
    import keras

    graph = graph_of(branches())
    smaller = cut(graph, halves(groups(graph)))
    keras_io.save(smaller, tmp_path / "small.keras")
    batch = random_inputs(graph)
    assert (
        difference(
            keras_io.predict(smaller, batch),
            keras_io.predict(keras.saving.load_model(tmp_path / "small.keras"), batch),
        )
        < 1e-6
    )


@pytest.mark.parametrize("method", ["channel_svd", "tucker2", "cp"])
@pytest.mark.parametrize("blocks", [2, 8])
def test_a_factorized_grouped_convolution_loses_the_same_filters(method, blocks):
    """Factor layers have other widths than the layer, but the dependency groups are the same."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.Conv2D(16, 3, padding="same", groups=blocks, activation="relu", name="wide")(x)
    graph = graph_of(keras.Model(image, layers.Conv2D(4, 1, name="head")(x)))
    state = explored(state_of(graph), methods=(method,))
    chosen = [
        next(c for c in space.candidates if c.method == method)
        for space in state.fact(DesignSpace).spaces
        if space.op.name == "wide"
    ]
    if not chosen:
        pytest.skip(f"{method} makes nothing smaller of {blocks} groups")
    factors = {
        space.op.name: space.factors[method]
        for space in state.fact(DesignSpace).spaces
        if space.op.name == "wide"
    }
    whole, before = (
        Factorize()(state.with_fact(Selection(tuple(chosen), {}, factors))).graph,
        groups(graph),
    )
    kept = halves(before)
    gone = labels(
        groups(whole, like=graph),
        FilterSpace(before, {}, {}).removed({g.name: Keep(g, kept[g.name]) for g in before.groups}),
    )
    smaller = without(whole, groups(whole, like=graph), gone)
    smaller.check()
    assert {name: smaller.op(name)["filters"] for name in ("stem", "wide")} == {
        name: cut(graph, kept).op(name)["filters"] for name in ("stem", "wide")
    }
    found = groups(whole, like=graph)
    units = {group.name: np.flatnonzero(~np.isin(group.classes, gone)) for group in found.groups}
    batch = random_inputs(graph, 2)
    assert (
        difference(
            keras_io.predict(zeroed(whole, found, units), batch), keras_io.predict(smaller, batch)
        )
        < 1e-5
    )
