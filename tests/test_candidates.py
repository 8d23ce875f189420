"""The design space: costs and errors are those of the rewritten graph, and gaps have reasons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.search import candidates
from lrfc.search.candidates import (
    Candidate,
    LayerSpace,
    grid,
    nearest_to_probes,
    pareto,
    selected,
    space,
)
from lrfc.search.epilogue import FeatureMap
from lrfc.search.similarity import relative_l2
from lrfc.search.statistics import SampleSize, collect
from tests import helpers
from tests.factorized import conv, dense, layer, rewritten

SMALL = ("channel_svd", "spatial_svd", "tucker2", "svd")


def explored(graph: Graph, name: str = "layer", methods=SMALL, levels: int = 4) -> LayerSpace:
    op = graph.op(name)
    samples = collect(
        graph, [op], helpers.random_inputs(graph, 16), SampleSize(12, 4, 200, 100), seed=0
    )
    return space(graph, op, samples[name], methods, relative_l2, levels)


def test_of_a_large_layer_only_what_the_sensitivity_needs_stays_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = conv((3, 3), 12, 16, (6, 6))
    usual = explored(graph)
    monkeypatch.setattr(candidates, "SMALL", 0)
    large = explored(graph)
    assert [c.error for c in large.candidates] == [c.error for c in usual.candidates]
    held = {m for m, factors in large.factors._factors.items() if factors is not None}
    errors = [(c.method, c.error) for c in large.candidates if c.method is not None]
    assert held == {method for method, _ in nearest_to_probes(errors)}
    for method, factors in usual.factors.items():  # the others are computed again when needed
        ranks = next(c.ranks for c in usual.candidates if c.method == method)
        np.testing.assert_array_equal(large.factors[method].kernel(ranks), factors.kernel(ranks))


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        (
            [("svd", 0.09), ("svd", 0.2), ("spatial_svd", 0.31)],
            [("svd", 0.09), ("spatial_svd", 0.31)],
        ),
        ([("cp", 0.1), ("svd", 0.5)], [("svd", 0.5)]),  # cp needs a fit for each rank
        ([("cp", 0.1), ("tucker2", 0.3)], [("cp", 0.1), ("tucker2", 0.3)]),
        ([("svd", 0.0)], []),
    ],
)
def test_sensitivities_are_measured_at_errors_near_the_probes(
    errors: list[tuple[str, float]], chosen: list[tuple[str, float]]
) -> None:
    assert nearest_to_probes(errors) == chosen


def costs(graph: Graph) -> tuple[int, int]:
    return graph.params, sum(
        ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph
    )


LAYERS = {
    "conv": lambda: conv((3, 3), 12, 16, (6, 6), strides=2),
    "conv without bias": lambda: conv((3, 3), 12, 16, (6, 6), bias=None),
    "grouped": lambda: conv((3, 3), 16, 16, (6, 6), groups=2),
    "1-D causal": lambda: conv((5,), 12, 16, (9,), padding="causal"),
    "transposed": lambda: layer(
        "Conv2DTranspose",
        (4, 4, 12),
        (3, 3, 10, 12),
        filters=10,
        kernel_size=(3, 3),
        strides=(2, 2),
        padding="same",
        bias=10,
    ),
    "channels_first": lambda: layer(
        "Conv2D",
        (12, 6, 6),
        (3, 3, 12, 16),
        filters=16,
        kernel_size=(3, 3),
        data_format="channels_first",
        bias=16,
    ),
    "dense": lambda: dense(20, 16),
    "einsum": lambda: layer(
        "EinsumDense", (4, 20), (20, 4, 4), equation="abc,cde->abde", output_shape=(4, 4, 4)
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_costs_are_those_of_the_rewritten_graph(kind) -> None:
    graph = LAYERS[kind]()
    layers = explored(graph)
    whole, *others = layers.candidates
    assert (whole.method, whole.params, whole.macs, whole.error) == (None, *costs(graph), 0)
    assert len(others) >= 2
    for candidate in others:
        assert (candidate.params, candidate.macs) == costs(
            rewritten(graph, candidate.method, candidate.ranks)
        )
        assert candidate.params <= whole.params
        assert candidate.macs <= whole.macs
        assert (candidate.params, candidate.macs) != (whole.params, whole.macs)
        assert candidate.error > 0


def test_the_error_is_that_of_the_rewritten_network() -> None:
    graph = helpers.graph_of(helpers.conv_net(size=8, filters=(10, 12), batch_norm=False))
    inputs = helpers.random_inputs(graph, 16)
    everything = SampleSize(12, 4, 10**6, 10**6)
    samples = collect(graph, [graph.op("conv1")], inputs, everything, seed=0)["conv1"]
    layers = space(graph, graph.op("conv1"), samples, SMALL, relative_l2, levels=4)
    outputs = []
    for candidate in (layers.candidates[0], layers.candidates[1], layers.candidates[-1]):
        changed = graph.copy()
        if candidate.method is not None:
            changed.splice("conv1", layers.factors[candidate.method].stages(candidate.ranks))
        changed.outputs = (Ref("relu1"),)
        outputs.append(keras_io.predict(changed, (inputs[0][12:],))[0])
    for output, candidate in zip(
        outputs[1:], (layers.candidates[1], layers.candidates[-1]), strict=True
    ):
        assert candidate.error == pytest.approx(relative_l2(outputs[0], output), rel=1e-3)


def test_a_shared_layer_counts_weights_once_and_macs_for_each_call() -> None:
    import keras

    dense_layer = keras.layers.Dense(16, name="dense")
    left, right = keras.Input((16,), name="left"), keras.Input((16,), name="right")
    graph = helpers.graph_of(
        keras.Model(
            [left, right], keras.layers.Add(name="add")([dense_layer(left), dense_layer(right)])
        )
    )
    layers = explored(graph, "dense")
    assert layers.calls == ("dense", "dense@1")
    whole, one, *_ = layers.candidates
    assert (whole.params, whole.macs) == (16 * 17, 2 * 256)
    assert (one.params, one.macs) == (one.ranks[0] * 32 + 16, 2 * one.ranks[0] * 32)


def test_refusals_by_method() -> None:
    layers = explored(dense(20, 16))
    assert set(layers.refusals) == {"channel_svd", "spatial_svd", "tucker2"}
    assert "matrix product" in layers.reason
    tiny = explored(dense(2, 2))
    assert len(tiny.candidates) == 1
    assert tiny.refusals["svd"] == "no rank is smaller than the layer itself"
    assert "; no rank is smaller than the layer itself" in tiny.reason


def reasons(graph: Graph, keep=(), only=()) -> dict[str, str | None]:
    return {op.name: reason for op, reason in selected(graph, keep, only)}


def test_patterns_give_their_reasons() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    assert reasons(graph) == dict.fromkeys(("conv0", "conv1", "head"))
    assert reasons(graph, keep=["head", "c*0"]) == {
        "conv0": "kept by --keep c*0",
        "conv1": None,
        "head": "kept by --keep head",
    }
    assert reasons(graph, only=["conv*"]) == {
        "conv0": None,
        "conv1": None,
        "head": "not named by --only",
    }
    assert reasons(graph, keep=["conv0"], only=["conv?"])["conv0"] == "kept by --keep conv0"
    shared = helpers.graph_of(helpers.shared_conv())
    assert reasons(shared, keep=["conv@2"]) == {"conv": "kept by --keep conv@2"}
    assert reasons(shared, only=["conv@2"]) == {"conv": None}


def test_layers_that_the_graph_rules_out() -> None:
    import keras
    from keras import layers

    image = keras.Input((8, 8, 4), name="image")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = layers.Concatenate(name="all")(
        [
            layers.Flatten(name="f0")(shared(image)),
            layers.Flatten(name="f1")(shared(layers.MaxPooling2D(name="max")(image))),
        ]
    )
    y = layers.Flatten(name="f2")(layers.SeparableConv2D(4, 3, name="separable")(image))
    graph = helpers.graph_of(keras.Model(image, [x, y]))
    by_layer = reasons(graph)
    assert by_layer["shared"] == "the calls of this shared layer read different shapes"
    assert "separable" in by_layer["separable"]


@pytest.mark.parametrize("full", [(5,), (100,), (64, 48), (1,), (7, 9, 11)])
def test_the_grid_holds_the_full_ranks_and_few_others(full) -> None:
    tuples = grid(full, 32)
    assert full in tuples
    assert len(set(tuples)) == len(tuples)
    assert all(1 <= rank <= top for ranks in tuples for rank, top in zip(ranks, full, strict=True))
    assert len(tuples) <= 200
    if full == (5,):
        assert tuples == [(1,), (2,), (3,), (4,), (5,)]


CANDIDATES = st.builds(
    lambda m, p, i: Candidate("", "svd", (), p, m, 0.0, i),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 5).map(float),
)


@given(st.lists(CANDIDATES, min_size=1, max_size=20))
def test_pareto_drops_the_dominated_and_nothing_else(candidates) -> None:
    def at(c: Candidate) -> tuple[float, int, int]:
        return c.divergence, c.macs, c.params

    points = {at(c) for c in candidates}
    undominated = {
        p
        for p in points
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)
    }
    front = [at(c) for c in pareto(candidates)]
    assert set(front) == undominated
    assert len(front) == len(undominated)


def test_all_methods_give_finite_errors_that_fall_with_the_rank() -> None:
    graph = conv((3, 3), 12, 16, (6, 6))
    layers = explored(graph, methods=("channel_svd", "spatial_svd"), levels=8)
    for method in ("channel_svd", "spatial_svd"):
        errors = [c.error for c in layers.candidates if c.method == method]
        assert np.isfinite(errors).all()
        assert errors == sorted(errors, reverse=True)
    assert set(layers.factors) <= set(METHODS)


def test_the_error_is_that_of_the_feature_map() -> None:
    """A channel that the BatchNorm switches off does not count."""
    graph = helpers.graph_of(helpers.residual())
    samples = collect(
        graph,
        [graph.op("conv")],
        helpers.random_inputs(graph, 16),
        SampleSize(12, 4, 200, 100),
        seed=0,
    )["conv"]
    assert samples.chain.batchnorm is not None
    gamma = np.ones(6, np.float32)
    gamma[2] = 0
    norm = graph.op("bn1")
    silent = graph.with_weights({"bn1": {**norm.weights, "gamma": gamma}})
    chain = collect(
        silent,
        [silent.op("conv")],
        helpers.random_inputs(graph, 16),
        SampleSize(12, 4, 200, 100),
        seed=0,
    )["conv"].chain
    base = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    other = base.copy()
    other[:, 2] = other[::-1, 2]
    addend = np.zeros_like(base)
    at = FeatureMap(chain, base, addend)
    assert relative_l2(at.reference, at(other)) == pytest.approx(0, abs=1e-6)
    at = FeatureMap(samples.chain, base, addend)
    assert relative_l2(at.reference, at(other)) > 0.1
