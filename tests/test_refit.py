"""The closed-form refit: errors of earlier layers and of the other branch are corrected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lrfc.data.dataset import Data, Split
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.metric import accuracy
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.factorize import Factorize
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.pipeline import plan, run
from lrfc.pruning.facts import Selection
from lrfc.search.candidates import Candidate, space
from lrfc.search.statistics import collect
from lrfc.state import State
from tests import helpers
from tests.compression import SIZE, learnt, state_of


def compressed(
    graph: Graph,
    choices: dict[str, tuple[str, tuple[int, ...]]],
    state: State | None = None,
    samples: int = 256,
) -> State:
    """The graph with these layers factorized on their samples, and BatchNorm re-estimated."""
    state = state or state_of(graph, samples=samples)
    graph = run(state, plan([Canonicalise()])).graph
    layers = [graph.op(name) for name in choices]
    drawn = collect(graph, layers, state.data.train.inputs, SIZE, 0) if layers else {}
    factors = {
        op.name: (
            space(graph, op, drawn[op.name], (choices[op.name][0],), lambda a, b: 0.0).factors[
                choices[op.name][0]
            ]
        )
        for op in layers
    }
    chosen = tuple(
        Candidate(name, method, ranks, 0, 0) for name, (method, ranks) in choices.items()
    )
    known = State(graph, graph, state.data).with_fact(Selection(chosen, {}, factors))
    return run(known, plan([Factorize(), RecalibrateBatchNorm()], known=(Selection,)))


def refitted(state: State) -> Graph:
    return run(state, plan([Refit()], known=(Selection,))).graph


def distance(state: State, graph: Graph) -> float:
    """Relative distance of the outputs from the original's, on validation inputs."""
    batch = state.data.validation.inputs
    wanted, got = keras_io.predict(state.original, batch), keras_io.predict(graph, batch)
    return float(
        np.sqrt(
            sum(np.sum(np.square(a - b)) for a, b in zip(wanted, got, strict=True))
            / sum(np.sum(np.square(a)) for a in wanted)
        )
    )


@pytest.mark.parametrize(
    "build",
    [
        helpers.conv_net,
        helpers.residual,
        helpers.branches,
        helpers.shared_conv,
        helpers.nested_twice,
        helpers.dense_net,
    ],
)
def test_an_uncompressed_network_stays_as_it_is(build: Any) -> None:
    state = compressed(helpers.graph_of(build()), {}, samples=32)
    assert refitted(state) is state.graph  # discarded, because it does not help


@pytest.mark.parametrize(
    ("build", "choices"),
    [
        (helpers.conv_net, {"conv0": ("spatial_svd", (2,)), "conv1": ("tucker2", (4, 5))}),
        (helpers.conv_net, {"conv0": ("channel_svd", (4,))}),
        (helpers.dense_net, {"dense0": ("svd", (6,)), "dense1": ("svd", (5,))}),
        (helpers.dense_net, {"dense0": ("tt_matrix", (8,))}),
        (helpers.residual, {"stem": ("channel_svd", (3,)), "conv": ("spatial_svd", (4,))}),
    ],
)
def test_the_graph_keeps_its_form_and_comes_nearer_to_the_original(
    build: Any, choices: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    state = compressed(helpers.graph_of(build()), choices, samples=512)
    result = refitted(state)
    assert str(result) == str(state.graph)
    assert distance(state, result) < 0.97 * distance(state, state.graph)


def test_the_error_of_the_other_branch_is_corrected() -> None:
    graph = helpers.graph_of(helpers.residual())
    state = compressed(graph, {"stem": ("channel_svd", (2,))}, samples=512)
    result = refitted(state)

    def sums(graph: Graph) -> np.ndarray:
        probe = graph.copy()
        probe.outputs, probe.structure = probe.operands("relu1"), (probe.structure[0], None)
        return keras_io.predict(probe, state.data.validation.inputs)[0]

    wanted = sums(state.original)
    before, after = (float(np.linalg.norm(sums(g) - wanted)) for g in (state.graph, result))
    assert after < 0.95 * before
    assert not np.allclose(
        result.op("conv").weights["kernel"], state.graph.op("conv").weights["kernel"], rtol=1e-2
    )


def test_a_compressed_classifier_gets_more_right() -> None:
    state = compressed(
        learnt().graph, {"conv0": ("channel_svd", (3,)), "conv1": ("spatial_svd", (5,))}, learnt()
    )
    split = state.data.validation
    before, after = (
        accuracy(keras_io.predict(graph, split.inputs), split)
        for graph in (state.graph, refitted(state))
    )
    assert after > before


def test_layers_called_more_than_once_keep_their_factors() -> None:
    state = compressed(helpers.graph_of(helpers.shared_conv()), {"conv": ("channel_svd", (2,))})
    result = refitted(state)
    for op in state.graph:
        assert all(
            np.array_equal(result.op(op.name).weights[key], value)
            for key, value in op.weights.items()
        )


def test_nothing_is_fitted_on_noise_or_on_too_few_inputs() -> None:
    state = compressed(helpers.graph_of(helpers.conv_net()), {"conv0": ("channel_svd", (3,))})
    few = Split(tuple(x[:8] for x in state.data.train.inputs), None)
    assert refitted(replace(state, data=Data("few", few, few, few))) is state.graph
    plain = compressed(helpers.graph_of(helpers.dense_net()), {"dense0": ("svd", (3,))})
    assert refitted(replace(plain, data=replace(plain.data, synthetic=True))) is plain.graph
    assert refitted(replace(state, data=replace(state.data, synthetic=True))) is not state.graph
    assert refitted(state) is not state.graph


def test_sixteen_inputs_do_no_harm() -> None:
    state = compressed(
        helpers.graph_of(helpers.conv_net()),
        {"conv0": ("channel_svd", (5,)), "conv1": ("spatial_svd", (8,))},
    )
    few = Split(tuple(x[:16] for x in state.data.train.inputs), None)
    assert distance(
        state, refitted(replace(state, data=replace(state.data, train=few)))
    ) < 1.05 * distance(state, state.graph)
