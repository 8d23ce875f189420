"""Errors and divergences of candidates in integer precision, and their agreement with files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from lrfc.engine.passes import weighing
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.passes import weigh_rounding
from lrfc.passes.equalize_stages import EqualizeStages
from lrfc.passes.weigh_rounding import Rounding, WeighRounding
from lrfc.search.epilogue import epilogue_of
from lrfc.search.facts import DesignSpace
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.compression import explored, learnt, state_of


@cache
def known():
    """A trained network with its DesignSpace."""
    return explored(learnt())


def chain(spread, seed=0):
    """Two factor layers, their input, and ranges between them that differ by e^spread."""
    rng = np.random.default_rng(seed)
    wild = np.exp(spread * rng.standard_normal(8)).astype(np.float32)
    first = rng.standard_normal((1, 1, 6, 8)).astype(np.float32) * wild
    second = rng.standard_normal((3, 3, 8, 5)).astype(np.float32) / wild[:, None]
    common = {
        "strides": (1, 1),
        "dilation_rate": (1, 1),
        "data_format": "channels_last",
        "groups": 1,
        "use_bias": False,
        "activation": "linear",
    }
    stages = [
        Op(
            "layer__in",
            "Conv2D",
            {**common, "filters": 8, "kernel_size": (1, 1), "padding": "valid"},
            {"kernel": first},
        ),
        Op(
            "layer",
            "Conv2D",
            {**common, "filters": 5, "kernel_size": (3, 3), "padding": "same"},
            {"kernel": second},
        ),
    ]
    graph = Graph("chain")
    ref = graph.add(Op("x", "InputLayer", {"batch_shape": (None, 8, 8, 6), "dtype": "float32"}))
    for stage in stages:
        ref = graph.add(stage, (ref,))
    graph.outputs = (ref,)
    return graph, stages, rng.standard_normal((32, 8, 8, 6)).astype(np.float32)


def rounding(graph, read, *, bits=8, equalised=True):
    (before,) = keras_io.predict(graph, (read,))
    return Rounding(
        graph.tensor(Ref("x")),
        read,
        before,
        np.ones((1, 1, 1, 1), np.float32),
        3,
        lambda x: x,
        bits,
        equalised,
    )


@pytest.mark.parametrize("seed", range(3))
def test_uneven_ranges_cost_more_unless_they_are_equalised(seed):
    even, wild = chain(0.0, seed), chain(1.0, seed)
    plain = [
        rounding(graph, read, equalised=False).noise(stages) for graph, stages, read in (even, wild)
    ]
    equalised = [rounding(graph, read).noise(stages) for graph, stages, read in (even, wild)]
    assert plain[1] > 2 * plain[0]
    assert equalised[1] < 1.5 * equalised[0]


def test_sixteen_bits_leave_the_noise_of_the_weights():
    graph, stages, read = chain(0.0)
    eight, sixteen, of_weights = (
        rounding(graph, read, bits=bits).noise(stages) for bits in (8, 16, 30)
    )
    assert sixteen == pytest.approx(of_weights, rel=1e-3)
    assert 0.002 < sixteen < 0.9 * eight


@pytest.mark.parametrize("equalised", [False, True])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_noise_is_that_of_the_file(equalised, spread, tmp_path):
    """The error of an int8 file is the noise and the rounding of its input and output."""
    graph, stages, read = chain(spread)
    state = state_of(graph)
    state = replace(
        state, data=replace(state.data, train=replace(state.data.train, inputs=(read,)))
    )
    shipped = EqualizeStages()(state).graph if equalised else graph
    target = TFLite("int8")
    (found,) = target.load(target.emit(shipped, tmp_path / "chain.tflite", (read,)))((read,))
    (exact,) = keras_io.predict(graph, (read,))
    (of_input,) = keras_io.predict(graph, (_rounded(read),))
    norm = np.linalg.norm(exact)
    others = [
        np.linalg.norm(of_input - exact) / norm,
        np.linalg.norm(_rounded(exact) - exact) / norm,
    ]
    lost = found - exact
    lost -= lost.mean((0, 1, 2))  # bias correction removes the mean
    predicted = rounding(graph, read, equalised=equalised).noise(stages)
    measured = np.sqrt(max((np.linalg.norm(lost) / norm) ** 2 - sum(np.square(others)), 0))
    assert predicted / 2 < measured < 2 * predicted


def _rounded(values):
    low, high = min(values.min(), 0), max(values.max(), 0)
    return (np.rint(values / ((high - low) / 255)) * ((high - low) / 255)).astype(np.float32)


def test_errors_and_divergences_never_shrink():
    before, after = (
        state.fact(DesignSpace).spaces for state in (known(), WeighRounding()(known()))
    )
    for old, new in zip(before, after, strict=True):
        assert [(c.method, c.ranks, c.params, c.macs) for c in old.candidates] == [
            (c.method, c.ranks, c.params, c.macs) for c in new.candidates
        ]
        assert new.whole.error > 0
        assert new.whole.divergence > 0
        for a, b in zip(old.candidates, new.candidates, strict=True):
            assert b.error > a.error
            assert b.divergence >= a.divergence * (1 - 1e-6)
            assert b.error < a.error + 0.1  # 8 bits are not that bad


def test_results_are_cached(monkeypatch, tmp_path):
    """A second build uses the cache; another precision or another exploration does not."""
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path))
    weighed = []
    weigh = weigh_rounding._with_noise
    monkeypatch.setattr(
        weigh_rounding,
        "_with_noise",
        lambda space, rounding: weighed.append(space.op.name) or weigh(space, rounding),
    )
    first = WeighRounding(cached=True)(known()).fact(DesignSpace)
    layers = list(weighed)
    again = WeighRounding(cached=True)(known()).fact(DesignSpace)
    assert weighed == layers == [space.op.name for space in first.spaces]
    for one, two in zip(first.spaces, again.spaces, strict=True):
        assert [vars(c) for c in one.candidates] == [vars(c) for c in two.candidates]
        assert two.factors is one.factors
    WeighRounding("int16x8", cached=True)(known())
    assert len(weighed) == 2 * len(layers)
    design = known().fact(DesignSpace)
    less = replace(design, spaces=design.spaces[:1])
    WeighRounding(cached=True)(known().with_fact(less))
    assert len(weighed) == 2 * len(layers) + 1


def test_the_divergence_grows_with_the_square_of_the_noise():
    """The factor between them is one number for each layer."""
    before, after = (
        state.fact(DesignSpace).spaces for state in (known(), WeighRounding()(known()))
    )
    for old, new in zip(before, after, strict=True):
        noise = np.array(
            [b.error**2 - a.error**2 for a, b in zip(old.candidates, new.candidates, strict=True)]
        )
        added = np.array(
            [
                b.divergence - a.divergence
                for a, b in zip(old.candidates, new.candidates, strict=True)
            ]
        )
        scale = added[0] / noise[0]
        np.testing.assert_allclose(added, scale * noise, rtol=1e-3, atol=1e-9)
        near = min(old.candidates[1:], key=lambda c: abs(c.error - 0.1))
        assert scale * 0.1**2 == pytest.approx(near.divergence * (0.1 / near.error) ** 2, rel=1.0)


def test_a_method_with_uneven_ranges_has_a_larger_divergence(monkeypatch):
    """Of two methods with the same float error, the one with uneven channels comes second."""
    state = known()
    design = state.fact(DesignSpace)
    space = next(s for s in design.spaces if s.op.name == "conv1")
    plain = next(c for c in space.candidates if c.method == "channel_svd")
    twin = next(c for c in space.candidates if c.method == "spatial_svd")
    one = replace(
        space,
        candidates=(
            space.whole,
            replace(plain, error=0.1, divergence=0.01),
            replace(twin, error=0.1, divergence=0.01),
        ),
    )

    class Wild:
        def __init__(self, factors):
            self._factors = factors

        def stages(self, ranks):
            first, second = self._factors.stages(ranks)
            wild = np.geomspace(1, 200, first.weights["kernel"].shape[-1], dtype=np.float32)
            return [
                replace(first, weights={"kernel": first.weights["kernel"] * wild}),
                replace(
                    second,
                    weights={**second.weights, "kernel": second.weights["kernel"] / wild[:, None]},
                ),
            ]

    wild = replace(
        one,
        factors={
            "channel_svd": one.factors["channel_svd"],
            "spatial_svd": Wild(one.factors["spatial_svd"]),
        },
    )
    monkeypatch.setattr("lrfc.passes.weigh_rounding.equalize", lambda *arguments: {})
    (found,) = (
        WeighRounding()(state.with_fact(replace(design, spaces=(wild,)))).fact(DesignSpace).spaces
    )
    assert (
        found.candidates[2].divergence
        > 1.01 * found.candidates[1].divergence
        > 1.01 * found.candidates[0].divergence
    )


@given(st.sampled_from(["fp32", "fp16", "dynamic"]))
def test_float_precisions_change_nothing(precision):
    assert weighing(precision) == ()
    assert WeighRounding(precision)(known()) is known()


@pytest.mark.parametrize("activation", ["relu", "relu6", "softmax", "tanh", None])
def test_noise_that_an_activation_suppresses_does_not_count(activation):
    """The noise, like the error, is measured behind the layer's BatchNorm and activation."""
    x = inputs = keras.Input((8, 8, 6), name="x")
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(5, 3, name="conv")(x))
    if activation is not None:
        x = layers.Activation(activation, name="activation")(x)
    graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, x)))
    (read,) = helpers.random_inputs(graph, 16)
    probe = graph.copy()
    probe.outputs, probe.structure = (Ref("bn"),), (graph.structure[0], None)
    (before,) = keras_io.predict(probe, (read,))
    stages = (
        METHODS["channel_svd"]
        .decompose(graph.op("conv"), graph.input_tensors("conv")[0])
        .stages((3,))
    )
    found = Rounding.of(graph, "conv", read, before, 8).noise(stages)
    assert epilogue_of(graph, "conv").end == ("bn" if activation is None else "activation")
    assert 0.001 < found < 0.05


def test_every_kind_of_layer_has_a_noise():
    """Shared, transposed, depthwise, grouped, causal, dense and tensorised layers."""
    for graph in _nets():
        state = explored(state_of(graph))
        for space in WeighRounding()(state).fact(DesignSpace).spaces:
            assert all(c.error > 0 and np.isfinite(c.divergence) for c in space.candidates), (
                graph.name,
                space.op.name,
            )


def _nets():
    image, sequence = keras.Input((8, 8, 8), name="image"), keras.Input((16, 8), name="sequence")
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="transposed")(image)
    x = layers.ReLU()(layers.Conv2D(16, 3, groups=2, name="grouped")(x))
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="strided")(x)
    x = layers.Dense(8, name="pixels")(x)
    y = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, name="causal")(sequence)
    both = layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(y)])
    outputs = layers.Dense(4, activation="softmax", name="head")(
        layers.Dense(32, name="wide")(both)
    )
    yield helpers.graph_of(
        helpers.random_weights(keras.Model([image, sequence], outputs, name="kinds"))
    )
    yield helpers.graph_of(helpers.shared_conv())
    yield helpers.graph_of(helpers.residual(filters=8))
