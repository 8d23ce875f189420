"""The fine-tune: better or as it was, with and without labels, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lrfc.config import Budget
from lrfc.data import Data, Split
from lrfc.ir import keras_io
from lrfc.ir.graph import Graph
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning, scorer
from lrfc.passes.select_ranks import DesignSpace, SelectRanks
from lrfc.pipeline import plan, run
from lrfc.search.sensitivity import divergence
from lrfc.state import State
from tests import helpers
from tests.compression import explored, learnt, state_of


def smaller(state: State, kept: float) -> State:
    return run(explored(state), plan([SelectRanks(max_macs=Budget(value=kept, relative=True)), Factorize()], known=(DesignSpace,)))


@cache
def compressed() -> State:
    """A classifier that compression has hurt."""
    return smaller(learnt(), 0.25)


def score(state: State) -> float:
    return scorer(state.original, keras_io.compiled(state.original), state.data.validation)(keras_io.compiled(state.graph))


def noisy(graph: Graph, seed: int = 0) -> Graph:
    """The graph with every kernel disturbed."""
    rng = np.random.default_rng(seed)
    changed = {}
    for op in graph.layers():
        if "kernel" in op.weights:
            kernel = op.weights["kernel"]
            changed[op.name] = {**op.weights, "kernel": (kernel + 0.3 * kernel.std() * rng.standard_normal(kernel.shape)).astype(np.float32)}
    return graph.with_weights(changed)


def test_accuracy_comes_back_and_the_report_is_true() -> None:
    before = compressed()
    after = FineTune(epochs=3, batch=64)(before)
    tuning = after.fact(Tuning)
    assert len(tuning.scores) == len(tuning.losses) == 4
    assert tuning.losses[0] is None
    assert tuning.scores[0] == pytest.approx(score(before))
    assert tuning.scores[tuning.best] == max(tuning.scores) == pytest.approx(score(after))
    assert score(after) > score(before)
    assert tuning.best == tuning.scores.index(max(tuning.scores))
    after.graph.check()
    assert str(after.graph) == str(before.graph)
    changed = [
        op.name
        for op in before.graph.layers()
        if op.weights
        for k, w in op.weights.items()
        if not np.array_equal(w, after.graph.op(op.name).weights[k])
    ]
    assert {"conv0", "bn0", "head"} <= {name.partition("__")[0] for name in changed}


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_an_absurd_learning_rate_leaves_the_network_as_it_was(rate) -> None:
    before = compressed()
    after = FineTune(epochs=2, batch=64, learning_rate=rate)(before)
    assert score(after) >= score(before)
    assert all(np.isfinite(w).all() for op in after.graph for w in op.weights.values())
    if after.fact(Tuning).best == 0:
        for op in before.graph:
            assert all(np.array_equal(w, after.graph.op(op.name).weights[k]) for k, w in op.weights.items())


def test_broken_weights_never_win() -> None:
    """Outputs full of NaN are read as class 0: with nothing but class 0 that would be perfect."""
    before = compressed()
    data = before.data
    zero = np.zeros(len(data.validation), np.int32)
    wrong = before.graph.op("head")
    bias = wrong.weights["bias"] + np.array([-100, 0, 0, 0], np.float32)
    state = replace(before, data=replace(data, validation=Split(data.validation.inputs, (zero,)))).with_graph(
        before.graph.with_weights({"head": {**wrong.weights, "bias": bias}})
    )
    after = FineTune(epochs=1, batch=64, learning_rate=1e38)(state)
    assert all(np.isfinite(w).all() for op in after.graph for w in op.weights.values())


def test_without_labels_a_regression_learns_from_the_original() -> None:
    import keras
    from keras import layers

    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = layers.Dense(2, name="head")(layers.Flatten(name="flat")(x))
    state = state_of(helpers.graph_of(helpers.random_weights(keras.Model(image, x, name="regression"))), samples=256)
    assert state.data.train.targets is None
    before = state.with_graph(noisy(state.graph))
    after = FineTune(epochs=3, batch=32)(before)
    assert score(before) < 0
    assert score(after) > 0.7 * score(before)
    wanted, found = (keras_io.predict(g, state.data.validation.inputs) for g in (state.graph, after.graph))
    assert max(after.fact(Tuning).scores) == pytest.approx(-divergence(wanted, found), rel=1e-3)


def test_two_outputs_in_dicts() -> None:
    state = state_of(helpers.graph_of(helpers.two_inputs()), samples=128)
    before = state.with_graph(noisy(state.graph))
    after = FineTune(epochs=3, batch=32)(before)
    assert score(after) > score(before)


def test_a_shared_layer_stays_shared() -> None:
    state = smaller(state_of(helpers.graph_of(helpers.shared_conv())), 0.75)
    after = FineTune(epochs=1, batch=32)(state)
    after.graph.check()
    assert after.fact(Tuning).best == 1
    calls = [op for op in after.graph if op.kind == "Conv2D"]
    assert len(calls) > 3
    for op in calls:
        assert op.weights["kernel"] is next(other for other in calls if other.shared == op.shared).weights["kernel"]
        assert not np.array_equal(op.weights["kernel"], state.graph.op(op.name).weights["kernel"])
    assert keras_io.to_keras(after.graph).count_params() == after.graph.params


def test_the_seed_decides() -> None:
    before = replace(compressed(), data=replace(compressed().data, train=compressed().data.train.take(np.arange(64))))
    one, same, other = (FineTune(epochs=1, batch=16)(replace(before, seed=seed)) for seed in (0, 0, 1))
    assert one.fact(Tuning).losses[1] == pytest.approx(same.fact(Tuning).losses[1], rel=1e-4)
    assert one.fact(Tuning).losses[1] != pytest.approx(other.fact(Tuning).losses[1], rel=1e-3)
    np.testing.assert_allclose(*(state.graph.op("head").weights["kernel"] for state in (one, same)), atol=1e-5)


def test_frozen_layers_stay_and_a_frozen_network_is_left_alone() -> None:
    before = compressed()
    frozen = before.graph.copy()
    for op in before.graph:
        if op.weights and op.name != "head":
            frozen.replace(op.with_attrs(trainable=False))
    after = FineTune(epochs=1, batch=64)(before.with_graph(frozen)).graph
    assert all(np.array_equal(w, after.op(op.name).weights[k]) for op in frozen if op.name != "head" for k, w in op.weights.items())
    frozen.replace(frozen.op("head").with_attrs(trainable=False))
    state = FineTune(epochs=1, batch=64)(before.with_graph(frozen))
    assert state.fact(Tuning).best == 0
    assert score(state) == state.fact(Tuning).scores[0]


def test_the_score_of_data_with_labels_is_the_accuracy() -> None:
    state = learnt()
    assert score(state) > 0.8
    unlabelled = replace(state.data, validation=Split(state.data.validation.inputs))
    assert score(replace(state, data=unlabelled)) == pytest.approx(0, abs=1e-6)
    assert score(replace(compressed(), data=unlabelled)) < -1e-3


def test_a_few_samples_are_enough_to_run() -> None:
    state = compressed()
    few = Data("few", state.data.train.take(np.arange(5)), state.data.validation, state.data.validation)
    assert len(FineTune(epochs=1, batch=128)(replace(state, data=few)).fact(Tuning).scores) == 2
