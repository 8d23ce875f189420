"""BatchNorm statistics: corrected behind a changed layer, and unchanged elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.metric import accuracy
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.pipeline import plan, run
from lrfc.state import State
from tests import helpers
from tests.compression import learnt, state_of


def recalibrated(state: State) -> Graph:
    return run(state, plan([RecalibrateBatchNorm()])).graph


def weights(graph: Graph, name: str) -> dict[str, np.ndarray]:
    return dict(graph.op(name).weights)


def disturbed(graph: Graph, name: str, norm: str) -> Graph:
    """The graph with one layer's channels scaled and, if it has a bias, shifted."""
    op = graph.op(name)
    factor = np.geomspace(0.2, 8.0, op.weights["kernel"].shape[-1]).astype(np.float32)
    changed = {"kernel": op.weights["kernel"] * factor}
    if "bias" in op.weights:
        changed["bias"] = op.weights["bias"] * factor + np.linspace(-2, 2, len(factor)).astype(
            np.float32
        )
    # Without the epsilon that BatchNorm adds to the variance, a scale can be undone exactly.
    exact = graph.copy()
    exact.replace(graph.op(norm).with_attrs(epsilon=1e-7))
    return exact.with_weights({name: {**op.weights, **changed}})


def test_an_uncompressed_network_stays_as_it_is() -> None:
    for state in (state_of(helpers.graph_of(helpers.residual())), learnt()):
        result = recalibrated(state)
        for op in state.graph:
            for key, value in op.weights.items():
                np.testing.assert_allclose(
                    result.op(op.name).weights[key], value, rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batchnorm_behind_a_shifted_and_scaled_layer_is_repaired(frozen) -> None:
    graph = helpers.graph_of(helpers.conv_net())  # its statistics are random: not those of the data
    graph.replace(graph.op("bn0").with_attrs(epsilon=1e-7, trainable=not frozen))
    state = state_of(graph)
    broken = disturbed(graph, "conv0", "bn0")
    batch = state.data.validation.inputs
    wanted = keras_io.predict(graph, batch)
    assert helpers.difference(wanted, keras_io.predict(broken, batch)) > 0.05
    result = recalibrated(state.with_graph(broken))
    assert helpers.difference(wanted, keras_io.predict(result, batch)) < 1e-3
    for name in ("conv0", "conv1", "head"):
        assert all(
            np.array_equal(value, weights(broken, name)[key])
            for key, value in weights(result, name).items()
        )
    for key in ("gamma", "beta"):
        assert np.array_equal(weights(result, "bn0")[key], weights(broken, "bn0")[key])


def test_means_alone_are_bias_correction() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    state = state_of(graph)
    op = graph.op("conv0")
    shifted = graph.with_weights(
        {
            "conv0": {
                **op.weights,
                "bias": (
                    op.weights["bias"]
                    + np.linspace(-2, 2, op.weights["bias"].size).astype(np.float32)
                ),
            }
        }
    )
    batch = state.data.validation.inputs
    wanted = keras_io.predict(graph, batch)
    assert helpers.difference(wanted, keras_io.predict(shifted, batch)) > 0.05
    result = RecalibrateBatchNorm(variances=False)(state.with_graph(shifted)).graph
    assert helpers.difference(wanted, keras_io.predict(result, batch)) < 1e-3
    assert np.array_equal(
        weights(result, "bn0")["moving_variance"], weights(graph, "bn0")["moving_variance"]
    )


def test_a_second_batchnorm_is_computed_behind_the_corrected_first_one() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    state = state_of(graph)
    graph.replace(graph.op("bn0").with_attrs(epsilon=1e-7))
    result = recalibrated(state.with_graph(disturbed(graph, "conv0", "bn0")))
    for key in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            weights(result, "bn1")[key], weights(graph, "bn1")[key], rtol=1e-3, atol=1e-3
        )


def test_a_broken_classifier_works_again() -> None:
    state = learnt()
    split = state.data.validation
    broken = disturbed(state.graph, "conv1", "bn1")
    whole, before, after = (
        accuracy(keras_io.predict(g, split.inputs), split)
        for g in (state.graph, broken, recalibrated(state.with_graph(broken)))
    )
    assert before < whole - 0.05
    assert after >= whole - 0.01


def test_a_constant_channel_keeps_its_variance() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    kernel = np.array(graph.op("conv0").weights["kernel"])
    kernel[..., 2] = 0
    dead = graph.with_weights({"conv0": {**graph.op("conv0").weights, "kernel": kernel}})
    state = state_of(dead)
    noisy = kernel.copy()
    noisy[..., 2] = 1e-3
    result = recalibrated(
        state.with_graph(
            dead.with_weights({"conv0": {**graph.op("conv0").weights, "kernel": noisy}})
        )
    )
    assert weights(result, "bn0")["moving_variance"][2] == pytest.approx(
        weights(dead, "bn0")["moving_variance"][2]
    )
    assert weights(result, "bn0")["moving_mean"][2] == pytest.approx(
        weights(dead, "bn0")["moving_mean"][2], abs=1e-2
    )
    assert np.isfinite(weights(result, "bn1")["moving_variance"]).all()


def test_cases_in_which_the_graph_is_not_changed() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    broken = disturbed(graph, "conv0", "bn0")
    state = state_of(graph).with_graph(broken)
    few = replace(state.data, train=state.data.train.take(np.arange(15)))
    assert recalibrated(replace(state, data=few)) is broken
    assert recalibrated(state) is not broken
    without = state_of(helpers.graph_of(helpers.dense_net()))
    assert recalibrated(without) is without.graph


def test_dropout_does_not_disturb_the_statistics() -> None:
    import keras
    from keras import layers

    x = features = keras.Input((6,), name="features")
    x = layers.Dropout(0.5, name="drop")(layers.Dense(8, name="dense")(x))
    x = layers.BatchNormalization(name="bn")(x)
    graph = helpers.graph_of(helpers.random_weights(keras.Model(features, x)))
    result = recalibrated(state_of(graph))
    np.testing.assert_allclose(
        weights(result, "bn")["moving_variance"], weights(graph, "bn")["moving_variance"], rtol=1e-5
    )
    assert "drop" in result


def test_the_original_runs_once_for_all_plans_and_again_for_other_data_or_options(
    monkeypatch,
) -> None:
    from lrfc.passes import recalibrate

    passed: list[Graph] = []
    statistics = recalibrate._statistics

    def counted(graph, *rest):
        passed.append(graph)
        return statistics(graph, *rest)

    monkeypatch.setattr(recalibrate, "_statistics", counted)
    graph = helpers.graph_of(helpers.conv_net())
    state = state_of(graph)
    broken = state.with_graph(disturbed(graph, "conv0", "bn0"))
    first, second = recalibrated(broken), recalibrated(broken)
    assert passed.count(state.original) == 1
    assert len(passed) == 3
    for op in first:
        for key, value in op.weights.items():
            np.testing.assert_array_equal(second.op(op.name).weights[key], value)
    other = replace(
        state.data,
        train=replace(state.data.train, inputs=tuple(0.5 * x for x in state.data.train.inputs)),
    )
    recalibrated(replace(broken, data=other))
    assert passed.count(state.original) == 2
    RecalibrateBatchNorm(samples=32)(replace(broken, data=other))
    assert passed.count(state.original) == 3
