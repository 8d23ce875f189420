"""Which units matter: every criterion finds the ones made not to."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.errors import ModelError
from lrfc.ir.keras import io as keras_io
from lrfc.pruning.compensate import refitted
from lrfc.pruning.criteria import CRITERIA, Context, keep_best
from lrfc.pruning.groups import groups
from lrfc.search.statistics import Sampler, SampleSize
from tests.helpers import (
    branches,
    conv_net,
    dense_net,
    graph_of,
    random_inputs,
    random_weights,
    residual,
    two_inputs,
)
from tests.pruned import zeroed


def context(graph, samples=128, seed=0):
    found = groups(graph)
    inputs = random_inputs(graph, samples, seed)
    names = dict.fromkeys(part.layer for group in found.groups for part in group.consumers)
    sampler = Sampler(graph, [graph.op(name) for name in names], inputs, SampleSize(), seed)
    return Context(graph, found, inputs, lambda name: sampler[name].statistics)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("model", [residual, branches])
def test_each_criterion_scores_each_unit(name, model):
    graph = graph_of(model())
    given = context(graph)
    for group in given.dependencies.groups:
        if name == "batchnorm_scale" and not any(
            part.layer.startswith("bn") for part in group.members
        ):
            with pytest.raises(ModelError, match="have no BatchNorm with a scale"):
                CRITERIA[name](graph, group, given)
            continue
        scores = CRITERIA[name](graph, group, given)
        assert scores.shape == (group.width,)
        assert scores.dtype == np.float64
        assert (scores >= 0).all()
        assert len(set(scores.tolist())) == group.width


def dead(graph, units):
    """The graph in which these units of 'conv0' are always zero."""
    weights = {}
    for name in ("conv0", "bn0"):
        weights[name] = {k: np.array(w) for k, w in graph.op(name).weights.items()}
        for key in ("kernel", "bias", "gamma", "beta"):
            if key in weights[name]:
                weights[name][key][..., units] = 0
    return graph.with_weights(weights)


@pytest.mark.parametrize(
    "name", ["l1", "l2", "batchnorm_scale", "taylor", "feature_rank", "reconstruction"]
)
def test_dead_units_come_last(name):
    graph = dead(graph_of(conv_net()), [2, 5])
    given = context(graph)
    group = given.dependencies["conv0"]
    assert set(np.argsort(CRITERIA[name](graph, group, given))[:2].tolist()) == {2, 5}


def test_the_geometric_median_finds_the_filter_in_the_middle():
    graph = graph_of(conv_net())
    conv = dict(graph.op("conv0").weights)
    kernel = np.array(conv["kernel"])
    kernel[..., 3] = np.delete(kernel, 3, axis=-1).mean(-1)
    graph = graph.with_weights({"conv0": {**conv, "kernel": kernel}})
    given = Context(graph, groups(graph))
    assert np.argmin(CRITERIA["geometric_median"](graph, given.dependencies["conv0"], given)) == 3


def test_reconstruction_detects_redundant_units():
    """A copied unit costs nothing, however large it is; but only one of two copies is removed."""
    graph = graph_of(conv_net())
    weights = {
        name: {k: np.array(w) for k, w in graph.op(name).weights.items()}
        for name in ("conv0", "bn0")
    }
    for arrays in weights.values():
        for array in arrays.values():
            array[..., 6] = array[..., 1]
    graph = graph.with_weights(weights)
    given = context(graph)
    scores = CRITERIA["reconstruction"](graph, given.dependencies["conv0"], given)
    low, high = sorted((scores[1], scores[6]))
    assert low == scores.min()
    assert 20 * low < high  # the shrinkage of the covariance makes copies differ a little


@pytest.mark.parametrize("model", [conv_net, dense_net, residual, branches, two_inputs])
def test_the_scores_of_reconstruction_are_the_errors_of_the_refit(model):
    graph = graph_of(model())
    given = context(graph)
    for group in given.dependencies.groups:
        scores = CRITERIA["reconstruction"](graph, group, given)
        for count in {1, group.width // 2}:
            gone = np.setdiff1d(np.arange(group.width), keep_best(scores, group.width - count))
            errors = [
                refitted(
                    graph.op(part.layer),
                    graph.input_tensors(part.layer)[0],
                    given.statistics(part.layer),
                    part.where(gone),
                ).error
                for part in group.consumers
            ]
            assert np.sort(scores)[count - 1] == pytest.approx(sum(errors), rel=1e-5, abs=1e-9)


def test_taylor_predicts_small_effects():
    """The mean square change of the log-probabilities when a unit is cut."""
    graph = graph_of(conv_net(classes=4))
    head = graph.op("head").weights
    graph = graph.with_weights({"head": {"kernel": head["kernel"] * 0.3, "bias": head["bias"]}})
    given = context(graph, samples=256)
    group = given.dependencies["conv1"]
    predicted = CRITERIA["taylor"](graph, group, given)
    some = tuple(x[:64] for x in given.inputs)
    (reference,) = keras_io.predict(graph, some)
    found = []
    for unit in range(group.width):
        (values,) = keras_io.predict(
            zeroed(graph, given.dependencies, {"conv1": np.delete(np.arange(group.width), unit)}),
            some,
        )
        found.append(float(np.square(np.log(values) - np.log(reference)).mean()))
    assert np.corrcoef(predicted, found)[0, 1] > 0.9
    assert 0.6 < predicted.sum() / sum(found) < 1.6


def test_criteria_name_the_data_that_they_miss():
    graph = graph_of(conv_net())
    given = Context(graph, groups(graph))
    for name, message in (
        ("taylor", "needs calibration data"),
        ("feature_rank", "needs calibration data"),
        ("reconstruction", "needs input statistics"),
    ):
        with pytest.raises(ModelError, match=message):
            CRITERIA[name](graph, given.dependencies["conv0"], given)


def test_wide_layers_are_scored_from_their_samples():
    """Few samples of many inputs give the same costs as the full covariance."""
    from lrfc.factorization.base import Statistics
    from lrfc.factorization.layout import Layout
    from lrfc.factorization.linalg import LowRank
    from lrfc.pruning.reconstruct import blocks, wide_costs

    graph = graph_of(random_weights(dense_net(features=40, widths=(6,))))
    op = graph.op("dense0")
    layout = Layout.of(op, graph.input_tensors("dense0")[0])
    rows = np.random.default_rng(0).standard_normal((12, 40))
    low = LowRank(rows / np.sqrt(12))
    units = np.arange(40) % 10
    few, whole = (
        Statistics(low, np.zeros((1, 40)), 12),
        Statistics(low.dense()[None], np.zeros((1, 40)), 12),
    )
    (block,) = blocks(layout, whole, units, 10)
    np.testing.assert_allclose(
        wide_costs(layout, few, units, 10), block.costs(np.arange(10)), rtol=1e-6
    )
    source, gone = graph.input_tensors("dense0")[0], np.flatnonzero(units < 3)
    a, b = refitted(op, source, few, gone), refitted(op, source, whole, gone)
    np.testing.assert_allclose(a.kernel, b.kernel, atol=1e-6)
    assert a.error == pytest.approx(b.error)
