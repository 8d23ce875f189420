"""Mistakes of public code, a test for each (reference sheet §10).

Every method is run on a layer that code with the mistake gets wrong.
"""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from lrfc.factorization import METHODS, Cost, cost_of
from lrfc.factorization.layout import Layout
from lrfc.ir.graph import Graph
from tests.factorized import (
    conv,
    counted,
    layer,
    outputs,
    parts,
    relative,
    rewritten,
    statistics,
    with_kernel,
)


def check(graph: Graph, *, least: int = 3) -> None:
    """Check every method that takes the layer.

    At full rank the outputs are the layer's, at half of it those of the method's own kernel.
    """
    op, source = parts(graph)
    taken = [name for name in METHODS if METHODS[name].refuses(op, source) is None]
    assert len(taken) >= least
    for name in taken:
        full = METHODS[name].full(op, source)
        assert relative(outputs(rewritten(graph, name, full)), outputs(graph)) < 1e-5, name
        half = tuple(max(1, rank // 2) for rank in full)
        kernel = METHODS[name].decompose(op, source).kernel(half)
        assert (
            relative(outputs(rewritten(graph, name, half)), outputs(with_kernel(graph, kernel)))
            < 2e-5
        ), name


def test_1_padding_of_the_first_axis_on_both():
    check(conv((5, 2), 3, 4, (9, 8)))
    check(conv((2, 5), 3, 4, (9, 8), strides=(2, 2)))


def test_1_layers_without_a_bias():
    check(conv((3, 3), 3, 4, bias=None))
    for name in ("channel_svd", "spatial_svd", "tucker2", "cp", "cp4", "tt"):
        graph = conv((3, 3), 3, 4, bias=None)
        stats = statistics(Layout.of(*parts(graph)))
        assert not any(
            "bias" in op.weights
            for op in rewritten(graph, name, METHODS[name].full(*parts(graph)), stats=stats)
        ), name


@pytest.mark.parametrize("strides", [(2, 2), (2, 1), (1, 3)])
def test_1_strides_of_each_axis(strides):
    check(conv((3, 3), 3, 4, (9, 8), strides=strides))


def test_2_dilation_is_kept():
    check(conv((3, 3), 3, 4, (9, 9), dilation_rate=(2, 2)), least=7)
    check(conv((3, 3), 3, 4, (9, 9), dilation_rate=(1, 3)), least=7)


def test_2_groups_are_kept():
    check(conv((3, 3), 6, 4, groups=2), least=7)
    graph = conv((3, 3), 6, 4, groups=2)
    assert all(
        op["groups"] == 2 for op in rewritten(graph, "tucker2", (2, 1)) if op.kind == "Conv2D"
    )


def test_3_ranks_in_their_order():
    """An asymmetric layer, whose cost with the ranks swapped is another one."""
    graph = conv((3, 3), 4, 10, (5, 5), bias=None)
    for ranks in ((1, 6), (3, 2)):
        first, second = ranks
        wanted = 4 * first + first * second * 9 + second * 10
        assert (
            METHODS["tucker2"].cost(*parts(graph), ranks)
            == Cost(wanted, 25 * wanted)
            == counted(rewritten(graph, "tucker2", ranks))
        )


@pytest.mark.parametrize("name", ["cp", "cp4"])
def test_4_depthwise_stages_have_the_dilation_and_no_bias(name):
    graph = conv((3, 3), 4, 5, (9, 9), dilation_rate=(2, 3))
    stages = [op for op in rewritten(graph, name, (3,)) if op.kind == "DepthwiseConv2D"]
    assert len(stages) == (1 if name == "cp" else 2)
    for op in stages:
        assert set(op.weights) == {"kernel"}
        assert op["use_bias"] is False
    assert [op["dilation_rate"] for op in stages] == (
        [(2, 3)] if name == "cp" else [(2, 1), (1, 3)]
    )


def test_5_the_rank_is_summed_last():
    """A 1-D CP whose terms are summed before the output stage would have one map there."""
    graph = conv((3,), 4, 5, (9,))
    check(graph, least=4)
    stages = [op.weights["kernel"].shape for op in rewritten(graph, "cp", (3,)) if op.weights]
    assert stages == [(1, 4, 3), (3, 3, 1), (1, 3, 5)]


def test_5_pointwise_stages_have_no_dilation():
    graph = conv((3, 3), 4, 5, (9, 9), dilation_rate=(2, 2))
    for name, ranks in (
        ("channel_svd", (3,)),
        ("channel_svd_1x1", (3,)),
        ("tucker2", (2, 3)),
        ("cp", (3,)),
        ("tt", (2, 3, 3)),
    ):
        points = [
            op
            for op in rewritten(graph, name, ranks)
            if op.weights and prod(op.weights["kernel"].shape[:2]) == 1
        ]
        assert points, name
        assert all(op["dilation_rate"] in (1, (1, 1)) for op in points), name


@pytest.mark.parametrize("name", ["spatial_svd", "spatial_svd_w"])
def test_6_spatial_svd_of_a_dilated_layer(name):
    graph = conv((3, 3), 4, 5, (11, 11), dilation_rate=(2, 3))
    op, source = parts(graph)
    assert METHODS[name].refuses(op, source) is None
    assert (
        relative(outputs(rewritten(graph, name, METHODS[name].full(op, source))), outputs(graph))
        < 1e-5
    )


def test_7_the_bias_is_no_part_of_the_mean_that_is_projected():
    """b' = mean(y) - U·Uᵀ·(mean(y) - b).

    With a bias much larger than the outputs, the other form is far off.
    """
    graph = conv((3, 3), 4, 6, (9, 9), padding="valid")
    graph = with_kernel(
        graph, graph.op("layer").weights["kernel"], np.linspace(-50, 50, 6).astype(np.float32)
    )
    op, source = parts(graph)
    layout = Layout.of(op, source)
    stats = statistics(layout)
    for name in ("channel_svd", "channel_svd_1x1", "spatial_svd", "tucker2", "cp", "tt"):
        ranks = tuple(max(1, rank // 3) for rank in METHODS[name].full(op, source))
        factors = METHODS[name].decompose(op, source, statistics=stats)
        bias = factors.stages(ranks)[-1].weights["bias"]
        mean = np.einsum("gd,gdt->gt", stats.mean, layout.matrix(layout.tensor()))[0]
        other = Layout.of(with_kernel(graph, factors.kernel(ranks)).op("layer"), source)
        reached = np.einsum("gd,gdt->gt", stats.mean, other.matrix(other.tensor()))[0] + bias
        np.testing.assert_allclose(reached, mean + op.weights["bias"], atol=1e-3, err_msg=name)


def test_7_8_9_paddings_and_oblong_layers():
    check(conv((3, 2), 3, 4, (6, 9), padding="valid"))
    check(conv((4,), 4, 5, (9,), padding="causal"), least=4)
    check(conv((4,), 4, 5, (9,), padding="causal", dilation_rate=2), least=4)
    check(
        layer(
            "Conv2DTranspose",
            (4, 6, 3),
            (3, 2, 5, 3),
            bias=5,
            filters=5,
            kernel_size=(3, 2),
            strides=(2, 3),
            padding="valid",
        )
    )
    check(conv((1, 3), 2, 9, (4, 7)))
    check(conv((3, 3), 9, 2, (4, 7)))


def test_10_a_multiply_accumulate_is_one():
    """9·16·32 weights at 8×8 positions; FLOPs would be twice that.

    Params and MACs of a method are in the same units as the layer's.
    """
    op, source = parts(conv((3, 3), 16, 32, (8, 8), bias=None))
    assert cost_of(op, source) == Cost(9 * 16 * 32, 64 * 9 * 16 * 32)
    assert METHODS["channel_svd"].cost(op, source, (5,)) == Cost(
        5 * (9 * 16 + 32), 64 * 5 * (9 * 16 + 32)
    )


def test_10_the_widths_of_the_stages_are_the_ranks():
    graph = conv((3, 3), 8, 8, (8, 8))
    result = rewritten(graph, "tucker2", (3, 5))
    assert counted(result) == METHODS["tucker2"].cost(*parts(graph), (3, 5))
    assert [op.weights["kernel"].shape[-2:] for op in result if op.weights] == [
        (8, 3),
        (3, 5),
        (5, 8),
    ]
