"""Workloads of graphs and of factor layers, by their text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.costs.totals import totals
from lrfc.costs.workload import Workload, chain, parse, workloads
from lrfc.errors import ModelError
from lrfc.factorization import METHODS
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from tests import helpers


def text(graph: Graph) -> list[str]:
    return [f"{name}: {op}" for name, op in workloads(graph)]


def test_a_relu_is_fused_and_an_add_is_not_free() -> None:
    graph = fold_batchnorm(helpers.graph_of(helpers.residual()))
    assert text(graph) == [
        "stem: conv 8x8x3 -> 8x8x6 k3x3 s1x1 d1x1 params=162 macs=10368",
        # Two ops read the tensor in front of it, so it cannot be folded.
        "bn0: batchnormalization 8x8x6 -> 8x8x6 relu params=24 macs=0",
        "conv: conv 8x8x6 -> 8x8x6 k3x3 s1x1 d1x1 params=330 macs=20736",
        "add: add 8x8x6+8x8x6 -> 8x8x6 relu params=0 macs=0",
        "pool: reduce 8x8x6 -> 6 params=0 macs=0",
        "head: dense 6 -> 3 params=21 macs=18",
    ]


def test_an_activation_that_is_not_fused_runs_as_an_op_of_its_own() -> None:
    graph = fold_batchnorm(helpers.graph_of(helpers.branches()))
    lines = text(graph)
    assert (
        "depthwise: depthwise 8x8x6 -> 8x8x6 k3x3 s1x1 d1x1 groups=6 relu6 params=60 macs=3456"
        in lines
    )
    assert "joined: concatenate 8x8x6+8x8x4 -> 8x8x10 params=0 macs=0" in lines
    assert "max: pool 8x8x10 -> 4x4x10 k2x2 s2x2 params=0 macs=0" in lines
    assert [line for line in lines if line.startswith("embed")] == [
        "embed: dense 5 -> 6 params=36 macs=30",
        "embed: tanh 6 -> 6 params=0 macs=0",
    ]
    assert not any(line.startswith(("relu", "flat")) for line in lines)


def test_a_separable_convolution_is_two_ops() -> None:
    import keras

    model = keras.Sequential(
        [keras.Input((8, 8, 4)), keras.layers.SeparableConv2D(6, 3, activation="relu", name="s")]
    )
    assert text(helpers.graph_of(model)) == [
        "s: depthwise 8x8x4 -> 6x6x4 k3x3 s1x1 d1x1 groups=4 params=36 macs=1296",
        "s: conv 6x6x4 -> 6x6x6 k1x1 s1x1 d1x1 relu params=30 macs=864",
    ]


def test_the_macs_and_params_are_those_of_the_graph() -> None:
    graph = fold_batchnorm(helpers.graph_of(helpers.conv_net()))
    assert sum(op.params for _, op in workloads(graph)) == graph.params


@pytest.mark.parametrize("method", ["channel_svd", "spatial_svd", "tucker2", "cp"])
def test_factor_layers_have_the_workloads_of_the_rewritten_graph(method: str) -> None:
    graph = fold_batchnorm(helpers.graph_of(helpers.conv_net()))
    op = graph.op("conv1")
    source = graph.input_tensors("conv1")[0]
    decomposition = METHODS[method]
    ranks = tuple(max(1, full // 2) for full in decomposition.full(op, source))
    stages = decomposition.decompose(op, source).stages(ranks)
    before = [name for name, _ in workloads(graph)]
    rewritten = graph.copy()
    rewritten.splice("conv1", stages)
    expected = [op for name, op in workloads(rewritten) if name not in before or name == "conv1"]
    assert list(chain(graph, "conv1", stages)) == expected
    assert expected[-1].activation == "relu"
    assert expected[0].activation is None


def test_the_tensorised_form_of_a_dense_layer_has_no_op_for_its_reshapes() -> None:
    graph = helpers.graph_of(helpers.dense_net())
    op, source = graph.op("dense0"), graph.input_tensors("dense0")[0]
    method = METHODS["tt_matrix"]
    stages = method.decompose(op, source).stages(method.full(op, source))
    rewritten = graph.copy()
    rewritten.splice("dense0", stages)
    after = [op for name, op in workloads(rewritten) if not name.startswith(("dense1", "head"))]
    assert list(chain(graph, "dense0", stages)) == after


def test_a_recurrent_layer_multiplies_by_its_matrices_at_every_step() -> None:
    import keras
    from keras import layers

    inputs = keras.Input((6, 5), name="x")
    memory = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="memory")
    graph = helpers.graph_of(keras.Model(inputs, memory(inputs), name="net"))
    found = [workload for _, workload in workloads(graph)]
    assert [(w.kind, w.inputs, w.output) for w in found] == [
        *2 * [("dense", ((6, 5),), (6, 16)), ("dense", ((6, 4),), (6, 16))],
        ("bidirectional", ((6, 5),), (6, 8)),
    ]
    assert sum(w.macs for w in found) == totals(graph)["macs"]
    assert sum(w.params for w in found) == graph.params


def test_a_shape_that_is_not_fixed_is_refused() -> None:
    graph = Graph()
    source = graph.add(
        Op("image", "InputLayer", {"batch_shape": (None, None, 4), "dtype": "float32"})
    )
    weights = {"kernel": np.zeros((4, 2), np.float32)}
    graph.outputs = (
        graph.add(Op("head", "Dense", {"units": 2, "use_bias": False}, weights), (source,)),
    )
    with pytest.raises(ModelError, match="not fixed"):
        list(workloads(graph))


sizes = st.lists(st.integers(1, 600), min_size=1, max_size=4).map(tuple)
pairs = st.one_of(st.just(()), st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple))


@given(
    st.builds(
        Workload,
        kind=st.sampled_from(["conv", "add", "my_layer", "ops.Erf"]),
        inputs=st.lists(sizes, max_size=3).map(tuple),
        output=sizes,
        kernel=pairs,
        strides=pairs,
        dilation=pairs,
        groups=st.integers(1, 8),
        activation=st.sampled_from([None, "relu", "relu6"]),
        params=st.integers(0, 10**7),
        macs=st.integers(0, 10**9),
    )
)
def test_the_text_is_parsed(workload: Workload) -> None:
    again = parse(str(workload))
    assert again == workload
    assert hash(again) == hash(workload)


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no workload of an op: 'conv 3'"):
        parse("conv 3")
