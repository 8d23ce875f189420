"""Break-even ranks, eligibility, support matrix, separable convolutions, tensor shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfc.factorization import (
    METHODS,
    Cost,
    break_even,
    cost_of,
    eligible,
    split_separable,
    support_matrix,
    support_table,
    tt_matrix,
    tucker_matrix,
)
from lrfc.factorization.support import EXAMPLES
from lrfc.factorization.tensorized import factorizations
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.search.candidates import space
from lrfc.search.similarity import relative_l2
from lrfc.search.statistics import SampleSize, collect
from tests.factorized import (
    conv,
    convolutions,
    counted,
    dense,
    layer,
    outputs,
    parts,
    products,
    relative,
    rewritten,
)
from tests.helpers import random_inputs


def test_break_even_of_the_literature():
    """Reference sheet §4.1.

    Channel SVD R < T·S·k²/(S·k²+T), spatial 1.5·T, CP 9n²/(2n+9); 1×1 and FC TS/(T+S).
    """
    op, source = parts(conv((3, 3), 64, 64, bias=None))
    wanted = {"channel_svd": 57, "channel_svd_1x1": 57, "spatial_svd": 95, "cp": 269}
    for name, rank in wanted.items():
        assert break_even(METHODS[name], op, source, "macs") == (rank,), name
        assert break_even(METHODS[name], op, source, "params") == (rank,), name
    assert break_even(METHODS["svd"], *parts(dense(256, 64)), "params") == (51,)
    assert break_even(METHODS["channel_svd"], *parts(conv((1, 1), 64, 64, bias=None)), "macs") == (
        31,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.one_of(convolutions(), products()), st.sampled_from(["params", "macs"]))
def test_break_even_saves_and_the_next_does_not(build, quantity):
    op, source = parts(build())
    limit = getattr(cost_of(op, source), quantity)
    for method in METHODS.values():
        if method.refuses(op, source) is not None:
            continue
        ranks = break_even(method, op, source, quantity)
        full = method.full(op, source)
        if ranks is None:
            assert getattr(method.cost(op, source, tuple(1 for _ in full)), quantity) >= limit
            continue
        assert getattr(method.cost(op, source, ranks), quantity) < limit
        if ranks != full and len(full) == 1:
            assert getattr(method.cost(op, source, (ranks[0] + 1,)), quantity) >= limit


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.one_of(convolutions(), products()),
    st.sampled_from(["params", "macs"]),
    st.floats(0.1, 1),
    st.data(),
)
def test_no_ranks_within_break_even_enlarge_the_cost(build, quantity, kept, data):
    """At all ranks up to the break-even ones the rewritten layer costs less than the share."""
    op, source = parts(build())
    limit = kept * getattr(cost_of(op, source), quantity)
    for name in [name for name, reason in eligible(METHODS, op, source).items() if reason is None]:
        highest = break_even(METHODS[name], op, source, quantity, kept)
        if highest is not None:
            ranks = tuple(data.draw(st.integers(1, rank)) for rank in highest)
            assert getattr(METHODS[name].cost(op, source, ranks), quantity) < limit, (
                f"{name} {ranks}"
            )


@pytest.mark.parametrize(
    "graph",
    [
        conv((3, 3), 8, 8, (6, 6), strides=(2, 2)),
        conv((3, 3), 3, 8, (6, 6)),
        dense(12, 16),
        dense(4, 4),
    ],
)
def test_no_candidate_is_offered_that_enlarges_the_cost(graph):
    """The search sees ranks with at most the layer's parameters and MACs, and less of one.

    A method without such ranks has a reason.
    """
    op = graph.op("layer")
    samples = collect(graph, [op], random_inputs(graph, 8), SampleSize(6, 2, 100, 50), seed=0)[
        "layer"
    ]
    offered = space(graph, op, samples, tuple(METHODS), relative_l2)
    whole = cost_of(*parts(graph))
    assert {candidate.method for candidate in offered.candidates if candidate.method} | set(
        offered.refusals
    ) == set(METHODS)
    for candidate in offered.candidates[1:]:
        assert candidate.params <= whole.params
        assert candidate.macs <= whole.macs
        assert (candidate.params, candidate.macs) != (whole.params, whole.macs)
        assert Cost(candidate.params, candidate.macs) == counted(
            rewritten(graph, candidate.method, candidate.ranks)
        )


def test_strided_layers_pay_for_stages_before_the_stride():
    """A stage at the input's resolution costs four times as much before a stride of 2.

    MACs and parameters break even at different ranks.
    """
    op, source = parts(conv((3, 3), 16, 32, (32, 32), strides=(2, 2)))
    assert break_even(METHODS["channel_svd"], op, source, "macs") == break_even(
        METHODS["channel_svd"], op, source, "params"
    )
    macs, params = (
        break_even(METHODS["channel_svd_1x1"], op, source, quantity)
        for quantity in ("macs", "params")
    )
    assert macs is not None
    assert params is not None
    assert macs < params


def test_eligible_names_why_not():
    found = eligible(METHODS, *parts(conv((3, 3), 2, 2)))
    assert found["svd"] == "a convolution has a kernel: use channel_svd"
    assert found["cp"] is None
    found = eligible(METHODS, *parts(dense(2, 2)))
    assert found["svd"] == "no rank saves parameters or MACs"


def test_two_ranks_are_counted_in_their_order():
    """Public code counts Tucker-2 with its ranks swapped."""
    op, source = parts(conv((3, 3), 4, 10, (5, 5), bias=None))
    assert METHODS["tucker2"].cost(op, source, (2, 5)) == Cost(
        4 * 2 + 2 * 5 * 9 + 5 * 10, 25 * (4 * 2 + 2 * 5 * 9 + 5 * 10)
    )


def test_support_matrix_covers_every_kind_and_method():
    matrix = support_matrix(METHODS)
    assert set(matrix) == set(EXAMPLES)
    assert all(set(row) == set(METHODS) for row in matrix.values())
    taken = {
        (kind, name)
        for kind, row in matrix.items()
        for name, reason in row.items()
        if reason is None
    }
    assert {("Conv2D", name) for name in METHODS if "matrix" not in name and name != "svd"} <= taken
    assert {
        ("Dense", "svd"),
        ("Dense", "tt_matrix"),
        ("EinsumDense", "svd"),
        ("Conv2D 1×1", "channel_svd"),
        ("Conv3DTranspose", "tucker2"),
    } <= taken
    for row in matrix.values():
        assert all(
            reason is None
            or ((reason and reason[0].islower()) or reason.startswith(("Keras", "MultiHead")))
            for reason in row.values()
        )


def test_support_table_is_markdown_with_every_reason():
    table = support_table(METHODS)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == len(EXAMPLES) + 2
    assert len({row.count("|") for row in rows}) == 1
    assert "\n1. " in table


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_separable_convolution_as_two_layers(rank, padding):
    rng = np.random.default_rng(0)
    weights = {
        "depthwise_kernel": rng.standard_normal((3,) * rank + (4, 2)).astype(np.float32),
        "pointwise_kernel": rng.standard_normal((1,) * rank + (8, 5)).astype(np.float32),
        "bias": rng.standard_normal(5).astype(np.float32),
    }
    attrs = {
        "filters": 5,
        "kernel_size": (3,) * rank,
        "depth_multiplier": 2,
        "strides": (2,) * rank,
        "padding": padding,
        "activation": "relu",
    }
    graph = Graph("one")
    source = graph.add(Op("x", "InputLayer", {"batch_shape": (None, *(9,) * rank, 4)}))
    graph.outputs = (graph.add(Op("layer", f"SeparableConv{rank}D", attrs, weights), (source,)),)
    split = graph.copy()
    split.splice("layer", split_separable(graph.op("layer")))
    split.check()
    assert relative(outputs(split), outputs(graph)) < 1e-6
    assert counted(split) == counted(graph)
    assert (
        METHODS["channel_svd"].refuses(split.op("layer"), split.input_tensors("layer")[0]) is None
    )
    assert (
        METHODS["channel_svd"].refuses(*parts(graph))
        == "a separable convolution is two layers: split it first"
    )


def test_factorizations():
    assert sorted(factorizations(12, 2)) == [(2, 6), (3, 4), (4, 3), (6, 2)]
    assert list(factorizations(7, 2)) == []
    assert sorted(factorizations(8, 3)) == [(2, 2, 2)]


def test_shapes_of_tensorised_layers_have_the_fewest_weights():
    inputs, chosen = tt_matrix.shapes(4096, 4096)
    assert len(inputs) == 3
    weights = tt_matrix._weights((inputs, chosen), (8, 8))[0]
    assert weights < 0.01 * 4096 * 4096
    assert all(
        weights <= tt_matrix._weights((i, o), (8,) * (len(i) - 1))[0]
        for d in (2, 3)
        for i in list(factorizations(4096, d))[::5]
        for o in list(factorizations(4096, d))[::5]
    )
    assert len(tt_matrix.shapes(16, 10)[0]) == 2
    assert tucker_matrix.shape(784, 128) == (28, 28, 8, 16)


def test_tensorised_layers_need_factors_and_a_fixed_shape():
    assert (
        METHODS["tt_matrix"].refuses(*parts(dense(7, 8)))
        == "its 7 inputs have no factors to form a tensor of"
    )
    assert (
        METHODS["tucker_matrix"].refuses(*parts(dense(8, 11)))
        == "its 11 outputs have no factors to form a tensor of"
    )
    assert (
        METHODS["tt_matrix"].refuses(*parts(dense(8, 8, (None,))))
        == "the shape (?, ?, 8) of its input is not fixed, so it cannot be reshaped"
    )


@pytest.mark.parametrize("name", ["tt_matrix", "tucker_matrix"])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_macs_are_those_of_the_cheaper_order(name, leading):
    graph = dense(24, 6, leading)
    op, source = parts(graph)
    for ranks in ((2, 3), (4, 1)) if name == "tucker_matrix" else ((1,), (3,)):
        assert counted(rewritten(graph, name, ranks)) == METHODS[name].cost(op, source, ranks)


def test_kinds_that_are_no_layer_of_weights_are_refused():
    graph = Graph("one")
    graph.outputs = (
        graph.add(
            Op("layer", "ReLU"), (graph.add(Op("x", "InputLayer", {"batch_shape": (None, 4)})),)
        ),
    )
    assert (
        METHODS["svd"].refuses(*parts(graph))
        == "ReLU is neither a convolution nor a matrix product"
    )


def test_depthwise_kernels_split_channel_by_channel():
    graph = layer(
        "DepthwiseConv2D", (9, 9, 6), (5, 5, 6, 1), depth_multiplier=1, kernel_size=(5, 5)
    )
    op, source = parts(graph)
    assert break_even(METHODS["spatial_svd"], op, source, "params") == (2,)  # 2·k·q against k²
    result = rewritten(graph, "spatial_svd", (1,))
    assert [op.kind for op in result] == ["InputLayer", "DepthwiseConv2D", "DepthwiseConv2D"]
