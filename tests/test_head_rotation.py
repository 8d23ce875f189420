"""Dimensions of attention heads: turned without a change, and cut where they matter least."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from lrfc.ir.attention import without_attention
from lrfc.ir.head_pairs import pairs
from lrfc.ir.head_rotation import rotation
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras.run import outputs_at
from lrfc.ir.op import Ref
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.rotate_heads import RotateHeads
from lrfc.pruning.cut import cut
from lrfc.pruning.groups import groups
from lrfc.pruning.space import FilterSpace
from lrfc.targets.catalog import target
from tests.compression import state_of
from tests.helpers import difference, graph_of, random_inputs, random_weights, same
from tests.pruned import checked


def lowered(layer, *, call=None, steps=7, memory=False):
    """A network around an attention layer, with the layer lowered."""
    inputs = keras.Input((steps, 6))
    x = layers.Dense(8, name="wide")(inputs)
    other = layers.Dense(5, name="memory")(inputs) if memory else x
    x = layer(x, other, **(call or {}))
    outputs = layers.Dense(2, name="head")(x)
    return without_attention(graph_of(random_weights(keras.Model(inputs, outputs))))[0]


def turned(graph, **options):
    """The graph with its heads turned."""
    return RotateHeads(**options)(state_of(graph, samples=40)).graph


NETWORKS = {
    "heads": lambda: lowered(layers.MultiHeadAttention(3, 4, name="a")),
    "values of another size": lambda: lowered(
        layers.MultiHeadAttention(2, 4, value_dim=3, use_bias=False, name="a"), memory=True
    ),
    "mask": lambda: lowered(
        layers.MultiHeadAttention(2, 4, name="a"), call={"use_causal_mask": True}
    ),
    "shared keys": lambda: lowered(layers.GroupQueryAttention(4, 6, 2, name="a")),
    "one head": lambda: lowered(layers.MultiHeadAttention(1, 6, name="a")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_turned_heads_compute_the_same(name):
    graph = NETWORKS[name]()
    after = turned(graph)
    assert len(list(pairs(graph))) == 2
    for pair in pairs(graph):
        for layer in (pair.first, pair.second):
            old, new = (g.op(layer).weights["kernel"] for g in (graph, after))
            assert not np.allclose(old, new, atol=1e-3)
    same(graph, after, 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_dimensions_of_the_heads_is_cut(name):
    found, smaller = checked(turned(NETWORKS[name]()))
    graph = NETWORKS[name]()
    widths = {part.layer: group.width for group in found.groups for part in group.producers}
    for pair in pairs(graph):
        assert widths[pair.first] == pair.size
        assert smaller.op(pair.first)["units"] == pair.heads[0] * round(pair.size / 2)


def test_the_first_dimensions_are_the_best_approximation_of_the_scores():
    graph = NETWORKS["heads"]()
    state = state_of(graph, samples=40)
    after = RotateHeads()(state).graph
    refs = [Ref("a__query"), Ref("a__key")]
    for g in (graph, after):
        query, key = (
            x.reshape(-1, 3, 4).transpose(1, 0, 2).astype(np.float64)
            for x in outputs_at(g, refs)(state.data.train.inputs)
        )
        whole = query @ key.transpose(0, 2, 1)
        best = np.linalg.svd(whole, compute_uv=False)
        errors = [
            np.linalg.norm(whole - query[..., :rank] @ key[..., :rank].transpose(0, 2, 1))
            for rank in range(1, 4)
        ]
        bounds = [np.sqrt(np.square(best[:, rank:]).sum()) for rank in range(1, 4)]
        assert np.allclose(errors, bounds, rtol=1e-3) == (g is after)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 9999))
def test_a_rotation_leaves_every_product_as_it_is(size, lacking, seed):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(20, size)), rng.normal(size=(30, size))
    one[:, : min(lacking, size - 1)] = 0  # dimensions that hold nothing
    a, b = rotation(one.T @ one, other.T @ other)
    assert np.allclose(a @ b.T, np.eye(size), atol=1e-6)
    assert np.allclose((one @ a) @ (other @ b).T, one @ other.T, atol=1e-6)
    energies = np.square(one @ a).sum(0)
    assert (np.diff(energies) <= 1e-6 * energies[0]).all()


def test_exploration_cuts_the_dimensions_that_hold_least():
    graph = NETWORKS["heads"]()
    state = ExploreFilters()(RotateHeads()(state_of(graph, samples=40)))
    space = state.fact(FilterSpace)
    assert {"a__query", "a__value"} <= set(space.choices)
    assert not {"a__query", "a__key", "a__value"} & set(space.refused)
    keeps = space.choices["a__query"]
    assert [keep.units.tolist() for keep in keeps] == [list(range(n)) for n in (4, 3, 2, 1)]
    divergences = [keep.divergence for keep in keeps]
    assert divergences[0] == 0
    assert divergences == sorted(divergences)


def test_whole_heads_are_explored_on_request():
    state = ExploreFilters(whole_heads=True)(state_of(NETWORKS["heads"](), samples=40))
    space = state.fact(FilterSpace)
    assert space.dependencies["a__query"].width == 3
    assert "a__value" not in space.choices


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_narrow_heads_are_emitted(name, tmp_path):
    graph = turned(NETWORKS["mask"]())
    kept = {"a__query": np.arange(2), "a__value": np.arange(3)}
    smaller = cut(graph, kept)
    batch, form = random_inputs(graph, 3, 0), target(name)
    made = form.load(form.emit(smaller, tmp_path / f"cut{form.suffix}"))(batch)
    assert difference(keras_io.predict(smaller, batch), made) < 1e-5


def test_a_gate_keeps_the_values_as_they_are():
    graph = lowered(layers.MultiHeadAttention(2, 4, use_gate=True, name="a"))
    assert [pair.scores for pair in pairs(graph)] == [True]
    found, _ = checked(graph)
    assert {part.layer for part in found["a__value"].producers} == {"a__value", "a__gate"}


def test_layers_that_are_read_elsewhere_are_not_turned():
    inputs = keras.Input((5, 6))
    layer = layers.MultiHeadAttention(2, 4, name="a")
    twice = layers.Dense(2)(layer(layer(inputs, inputs), inputs))
    graph, _ = without_attention(graph_of(random_weights(keras.Model(inputs, twice))))
    assert not list(pairs(graph))
    assert turned(graph) is graph


def test_too_few_samples_leave_the_heads_as_they_are():
    state = state_of(NETWORKS["heads"](), samples=8)
    assert RotateHeads()(state).graph is state.graph


def test_dimensions_stay_where_their_layers_are_kept():
    found = groups(NETWORKS["heads"](), keep=["a__key"])
    assert "a__query" not in {group.name for group in found.groups}
    assert "kept by --keep" in found.refused["a__query"]
