"""Sensitivity: the divergence grows with the error, and perturbations are undone."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.ir.keras import io as keras_io
from lrfc.passes.factorize import _call
from lrfc.search import sensitivity
from lrfc.search.candidates import Candidate, LayerSpace, selected, space
from lrfc.search.segments import Segments
from lrfc.search.sensitivity import Sensitivity, divergence, is_distribution, telling
from lrfc.search.similarity import relative_l2
from lrfc.search.statistics import SampleSize, collect
from tests import helpers

SIZE = SampleSize(24, 8, 2000, 500)


def explored(graph, inputs):
    ops = [op for op, reason in selected(graph, (), ()) if reason is None]
    samples = collect(graph, ops, inputs, SIZE, seed=0)
    spaces = [
        space(graph, op, samples[op.name], ("channel_svd", "spatial_svd", "svd"), relative_l2, 8)
        for op in ops
    ]
    return [s for s in spaces if len(s.candidates) > 1], samples


def weights(graph, segments):
    """Copies of every Keras layer's weights in every part, by name."""
    names = {op.shared or op.name for op in graph if op.weights}
    return {
        name: [np.array(w) for layer in segments.layers(name) for w in layer.get_weights()]
        for name in names
    }


def same(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True)
    )


@pytest.fixture(scope="module")
def predicted():
    graph = helpers.graph_of(helpers.conv_net(filters=(10, 12, 14)))
    inputs = helpers.random_inputs(graph, 32)
    spaces, samples = explored(graph, inputs)
    return (
        graph,
        inputs,
        spaces,
        samples,
        [Sensitivity(graph, inputs)(space, samples[space.op.name]) for space in spaces],
    )


def test_every_candidate_has_a_divergence_that_grows_with_its_error(predicted) -> None:
    *_, spaces = predicted
    assert len(spaces) >= 2
    for layer in spaces:
        assert layer.candidates[0].divergence == 0
        ordered = sorted(layer.candidates[1:], key=lambda c: c.error)
        impacts = [c.divergence for c in ordered]
        assert impacts == sorted(impacts)
        assert impacts[0] > 0
        assert impacts[-1] > impacts[0]


@pytest.mark.parametrize(
    "build", [lambda: helpers.conv_net(filters=(10, 12)), helpers.shared_conv, helpers.dense_net]
)
def test_a_perturbed_layer_computes_as_the_rewritten_graph_and_is_restored(build) -> None:
    graph = helpers.graph_of(build())
    inputs = helpers.random_inputs(graph, 32)
    spaces, samples = explored(graph, inputs)
    segments = Segments(graph, 3)
    before, reference = weights(graph, segments), segments.hold(inputs)
    layer = spaces[-1] if build is helpers.dense_net else spaces[0]
    candidate = layer.candidates[1]
    source = graph.input_tensors(layer.op.name)[0]
    with sensitivity.holding(
        graph, segments, sensitivity._weights(layer, candidate, samples[layer.op.name], source)
    ) as names:
        perturbed = segments.outputs(names)
        changed = {
            name
            for name, values in weights(graph, segments).items()
            if any(map(np.any, map(np.not_equal, values, before[name])))
        }
    assert changed == set(names)
    assert helpers.difference(reference, perturbed) > 1e-3
    assert same(before, weights(graph, segments))
    assert helpers.difference(reference, segments.outputs(names)) == 0
    if samples[layer.op.name].chain.batchnorm is None:
        rewritten = graph.copy()
        stages = layer.factors[candidate.method].stages(candidate.ranks)
        for number, call in enumerate(layer.calls):
            rewritten.splice(call, stages if number == 0 else _call(stages, layer.op.name, call))
        rewritten.check()
        assert helpers.difference(keras_io.predict(rewritten, inputs), perturbed) < 1e-4


def test_the_perturbation_is_undone_after_a_failure(predicted) -> None:
    graph, inputs, spaces, samples, _ = predicted
    segments = Segments(graph, 2)
    segments.hold(inputs)
    before = weights(graph, segments)
    layer = spaces[0]
    with (
        pytest.raises(RuntimeError, match="stop"),
        sensitivity.holding(
            graph,
            segments,
            sensitivity._weights(
                layer,
                layer.candidates[1],
                samples[layer.op.name],
                graph.input_tensors(layer.op.name)[0],
            ),
        ),
    ):
        raise RuntimeError("stop")
    assert same(before, weights(graph, segments))


@pytest.mark.parametrize(
    "points", [{0.1: 1e-3, 0.3: 1e-2}, {0.1: 1e-3, 0.3: 9e-4}, {0.1: 1e-6, 0.3: 1.0}, {0.2: 1e-3}]
)
def test_the_fit_never_rewards_a_larger_error(points) -> None:
    errors = np.geomspace(1e-3, 1, 40)
    impacts = [
        sensitivity._with_divergence(Candidate("", "svd", (1,), 1, 1, e), points).divergence
        for e in errors
    ]
    assert all(np.diff(impacts) > 0)


def test_between_the_probes_the_fit_meets_them() -> None:
    points = {0.1: 1e-3, 0.3: 8e-3}
    for error, impact in points.items():
        assert sensitivity._with_divergence(
            Candidate("", "svd", (1,), 1, 1, error), points
        ).divergence == pytest.approx(impact)


def test_a_layer_without_choices_has_no_divergence(predicted) -> None:
    graph, inputs, spaces, samples, _ = predicted
    alone = LayerSpace(spaces[0].op, spaces[0].calls, spaces[0].candidates[:1])
    assert [
        c.divergence for c in Sensitivity(graph, inputs)(alone, samples[alone.op.name]).candidates
    ] == [0]


def test_divergence_by_hand() -> None:
    a, b = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence((a,), (b,)) == pytest.approx(kl / 2, abs=1e-6)
    c, d = np.array([[1.0], [3.0]]), np.array([[1.0], [4.0]])
    assert divergence((c,), (d,)) == pytest.approx(0.5)
    assert divergence((a, c), (b, d)) == pytest.approx((kl / 2 + 0.5) / 2, abs=1e-6)
    assert divergence((a, c), (a, c)) == 0


def test_probabilities_are_recognised() -> None:
    assert is_distribution(np.full((3, 4), 0.25))
    assert not is_distribution(np.ones((3, 1)))
    assert not is_distribution(np.array([[1.5, -0.5]]))
    assert not is_distribution(np.array([[0.5, 0.6]]))


def test_uncertain_samples_estimate_the_mean_with_fewer_images() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(512, 5)) * 8
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    q = np.exp(logits + 0.3 * rng.normal(size=p.shape))
    q /= q.sum(-1, keepdims=True)
    whole = divergence((p,), (q,))
    chosen, weights = telling((p,), 64)
    assert weights is not None
    assert len(chosen) == 64 == len(set(chosen))
    assert weights.sum() == pytest.approx(1, rel=0.3)
    drawn = divergence((p[chosen],), (q[chosen],), weights)
    assert drawn == pytest.approx(whole, rel=0.2)
    plain = [
        abs(divergence((p[at : at + 64],), (q[at : at + 64],)) / whole - 1)
        for at in range(0, 512, 64)
    ]
    assert abs(drawn / whole - 1) < np.median(plain)


def test_equally_uncertain_samples_have_equal_weights() -> None:
    chosen, weights = telling((np.full((40, 4), 0.25),), 10)
    assert len(chosen) == 10
    assert np.allclose(weights, 0.1)


@pytest.mark.parametrize(
    "sure", [np.eye(6)[:, :3] + np.eye(6)[:, 3:], np.tile([1.0, 0.0, 0.0], (6, 1))]
)
def test_without_uncertainty_or_classes_the_first_samples_are_used(sure) -> None:
    chosen, weights = telling((sure,), 3)
    assert len(chosen) == 3
    assert np.isfinite(weights).all()
    chosen, weights = telling((np.arange(12.0).reshape(6, 2),), 3)
    assert list(chosen) == [0, 1, 2]
    assert weights is None
    chosen, weights = telling((sure,), 9)
    assert list(chosen) == list(range(6))
    assert weights is None


def test_the_only_uncertain_sample_is_certainly_drawn() -> None:
    p = np.tile([1.0, 0.0], (50, 1))
    p[17] = 0.5
    chosen, weights = telling((p,), 5)
    assert 17 in chosen
    assert weights[list(chosen).index(17)] == pytest.approx(1 / 50)
