"""The rewrite: printed graph, same function at full rank, one set of factors for shared layers."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.config.build import Budget
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import plan, run
from lrfc.pruning.facts import Selection
from lrfc.search.candidates import Candidate
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from tests import helpers
from tests.compression import explored, state_of


def choose(graph: Graph, name: str, method: str, ranks: tuple[int, ...] | None = None) -> State:
    """A state with a selection of one layer, at full rank by default."""
    op, source = graph.op(name), graph.input_tensors(name)[0]
    candidate = Candidate(name, method, ranks or METHODS[method].full(op, source), 0, 0)
    return state_of(graph, samples=2).with_fact(
        Selection((candidate,), {}, {name: METHODS[method].decompose(op, source)})
    )


def factorized(state: State) -> Graph:
    return run(state, plan([Factorize()], known=(Selection,))).graph


def test_prints_as_documented() -> None:
    rng = np.random.default_rng(0)
    graph = Graph("one")
    source = graph.add(Op("x", "InputLayer", {"batch_shape": (None, 16, 16, 16)}))
    weights = {
        "kernel": rng.standard_normal((3, 3, 16, 32)).astype(np.float32),
        "bias": np.zeros(32, np.float32),
    }
    graph.outputs = (
        graph.add(
            Op("conv", "Conv2D", {"filters": 32, "kernel_size": 3}, weights),
            (source,),
        ),
    )
    given, result = str(graph), str(factorized(choose(graph, "conv", "channel_svd", (8,))))
    documented = [line.strip() for line in (Factorize.__doc__ or "").splitlines() if " = " in line]
    assert documented[0] in given
    assert documented[1:] == [
        line.strip() for line in result.splitlines() if line.strip().startswith("conv")
    ]
    assert len(documented) == 3


@pytest.mark.parametrize(
    ("build", "name", "method"),
    [
        (helpers.conv_net, "conv1", "channel_svd"),
        (helpers.conv_net, "conv0", "spatial_svd"),
        (helpers.residual, "conv", "tucker2"),
        (helpers.dense_net, "dense0", "svd"),
        (helpers.shared_conv, "conv", "spatial_svd"),
        (helpers.two_inputs, "conv", "channel_svd"),
        (helpers.nested_twice, "backbone__conv1", "tucker2"),
    ],
)
def test_at_full_rank_the_function_is_the_same(build, name, method) -> None:
    graph = helpers.graph_of(build())
    result = factorized(choose(graph, name, method))
    assert len(result) > len(graph)
    helpers.same(graph, result, 1e-4)


def test_a_shared_layer_is_factorized_once_and_every_call_reads_the_same_factors() -> None:
    graph = helpers.graph_of(helpers.shared_conv())
    state = choose(graph, "conv", "channel_svd", (2,))
    result = factorized(state)
    calls = [op for op in result if op.kind == "Conv2D"]
    assert {op.name for op in calls} == {
        f"conv{call}{stage}" for call in ("", "@1", "@2") for stage in ("", "__kernel")
    }
    assert {op.shared for op in calls} == {"conv", "conv__kernel"}
    for key in ("conv", "conv__kernel"):
        first, *others = [op for op in calls if op.shared == key]
        assert all(op.weights["kernel"] is first.weights["kernel"] for op in others)
    model = keras_io.to_keras(result)
    assert model.count_params() == result.params == 27 * 2 + 2 * 3 + 3
    dense = graph.with_weights(
        {
            "conv": {
                **graph.op("conv").weights,
                "kernel": state.fact(Selection).factors["conv"].kernel((2,)),
            }
        }
    )
    helpers.same(dense, result, 1e-4)


def test_layers_left_alone_are_the_same_ops() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    result = factorized(choose(graph, "conv1", "channel_svd", (3,)))
    assert all(result.op(op.name) is op for op in graph if op.name != "conv1")
    assert result.operands("bn1") == (Ref("conv1"),)
    assert str(graph) == str(helpers.graph_of(helpers.conv_net()))


def test_the_choices_of_a_budget_give_a_network_that_is_near_the_original() -> None:
    state = explored(state_of(helpers.graph_of(helpers.residual(filters=12))))
    after = run(
        state,
        plan(
            [SelectRanks(max_macs=Budget(value=0.8, relative=True)), Factorize()],
            known=(DesignSpace,),
        ),
    )
    assert len(after.graph) > len(state.graph)
    batch = state.data.validation.inputs
    assert (
        0
        < helpers.difference(
            keras_io.predict(state.graph, batch), keras_io.predict(after.graph, batch)
        )
        < 0.5
    )
    assert after.known(DesignSpace) is None
    assert after.known(Selection) is not None
