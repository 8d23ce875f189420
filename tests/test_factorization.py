"""Every method on every kind of layer: exactness at full rank, costs, bias and responses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lrfc.factorization import METHODS, chain_factors
from lrfc.factorization.layout import Layout
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.search.candidates import grid
from tests.factorized import (
    conv,
    convolutions,
    counted,
    dense,
    layer,
    outputs,
    parts,
    patches,
    products,
    relative,
    rewritten,
    statistics,
    with_kernel,
)

relaxed = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    derandomize=True,
)


def taken(graph: Graph) -> list[str]:
    return [name for name in METHODS if METHODS[name].refuses(*parts(graph)) is None]


def small(name: str) -> Graph:
    """A layer that the method takes."""
    return next(graph for graph in (conv((3, 3), 6, 5), dense(12, 8)) if name in taken(graph))


def check_exact(graph: Graph, *, aware: bool) -> None:
    op, source = parts(graph)
    wanted = outputs(graph)
    for name in taken(graph):
        stats = statistics(Layout.of(op, source)) if aware else None
        ranks = METHODS[name].full(op, source)
        result = rewritten(graph, name, ranks, stats=stats)
        assert relative(outputs(result), wanted) < 1e-5, f"{name} {ranks}"


def check_rank(graph: Graph, fraction: float, *, aware: bool) -> None:
    op, source = parts(graph)
    layout = Layout.of(op, source)
    rng = np.random.default_rng(1)
    rows = patches(layout, 5, rng).astype(np.float32)
    for name in taken(graph):
        method = METHODS[name]
        ranks = tuple(max(1, round(fraction * rank)) for rank in method.full(op, source))
        stats = statistics(layout) if aware else None
        factors = method.decompose(op, source, statistics=stats)
        result = graph.copy()
        stages = factors.stages(ranks)
        assert [shown(stage) for stage in method.outline(op, source, ranks)] == [
            shown(stage) for stage in stages
        ], f"{name} {ranks}"
        result.splice("layer", stages)
        result.check()
        assert counted(result) == method.cost(op, source, ranks), f"{name} {ranks}"
        *earlier, last = [stage for stage in stages if stage.weights]
        assert [stage for stage in stages if "bias" in stage.weights] == (
            [last] if "bias" in op.weights else []
        ), name
        assert all(stage["activation"] in (None, "linear") for stage in earlier), name
        # The stages, the multiplied-out kernel and the responses agree.
        kernel = factors.kernel(ranks)
        bias = absorbed_bias(layout, kernel, stats)
        assert relative(outputs(result), outputs(with_kernel(graph, kernel, bias))) < 2e-5, (
            f"{name} {ranks}"
        )
        flat = Layout.of(with_kernel(graph, kernel).op("layer"), source)
        response = np.einsum("ngd,gdt->ngt", rows, flat.matrix(flat.tensor())).reshape(
            len(rows), -1
        )
        if "bias" in op.weights and layout.bias is not None:
            response = response + flat_bias(layout, bias)
        assert relative(next(iter(factors.responses(rows, [ranks]))), response) < 2e-5, (
            f"{name} {ranks}"
        )


def shown(stage: Op) -> tuple[object, ...]:
    """All of an op but the values of its weights."""
    return (
        stage.name,
        stage.kind,
        dict(stage.attrs),
        stage.shared,
        {name: weight.shape for name, weight in stage.weights.items()},
    )


def absorbed_bias(layout: Layout, kernel: np.ndarray, stats: object) -> np.ndarray | None:
    """The layer's bias plus (W - W̃)ᵀμ, where its own bias can absorb it."""
    bias = layout.op.weights.get("bias")
    if bias is None or stats is None or layout.bias is None:
        return bias
    other = Layout.of(
        type(layout.op)(
            layout.op.name, layout.op.kind, layout.op.attrs, {**layout.op.weights, "kernel": kernel}
        ),
        layout.source,
    )
    missing = layout.matrix(layout.tensor()) - other.matrix(other.tensor())
    shift = np.einsum("gd,gdt->gt", stats.mean, missing).reshape(-1)  # type: ignore[attr-defined]
    return (bias + shift.reshape(bias.shape)).astype(np.float32)


def flat_bias(layout: Layout, bias: np.ndarray | None) -> np.ndarray:
    assert bias is not None
    return bias.reshape(-1)


@relaxed
@given(convolutions(), st.booleans())
def test_convolution_is_exact_at_full_rank(build, aware):
    check_exact(build(), aware=aware)


@relaxed
@given(convolutions(), st.floats(0.05, 0.9), st.booleans())
def test_convolution_at_lower_rank(build, fraction, aware):
    check_rank(build(), fraction, aware=aware)


@relaxed
@given(products(), st.booleans())
def test_product_is_exact_at_full_rank(build, aware):
    check_exact(build(), aware=aware)


@relaxed
@given(products(), st.floats(0.05, 0.9), st.booleans())
def test_product_at_lower_rank(build, fraction, aware):
    check_rank(build(), fraction, aware=aware)


@pytest.mark.parametrize("name", METHODS)
def test_responses_come_in_the_order_of_the_ranks(name):
    graph = small(name)
    op, source = parts(graph)
    layout = Layout.of(op, source)
    factors = METHODS[name].decompose(op, source, statistics=statistics(layout))
    full = METHODS[name].full(op, source)
    choices = [
        full,
        tuple(1 for _ in full),
        tuple(max(1, rank // 2) for rank in full),
        tuple(1 for _ in full),
        full,
    ]
    rows = patches(layout, 4, np.random.default_rng(0)).astype(np.float32)
    found = list(factors.responses(rows, choices))
    assert len(found) == 5
    np.testing.assert_allclose(found[0], found[4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], found[3], rtol=1e-4, atol=1e-4)
    for ranks, response in zip(choices, found, strict=True):
        alone = next(iter(factors.responses(rows, [ranks])))
        np.testing.assert_allclose(response, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_stages_of_a_shared_layer_are_shared_alike(name):
    graph = small(name)
    op, source = parts(graph)
    from dataclasses import replace

    stages = (
        METHODS[name]
        .decompose(replace(op, shared="layer"), source)
        .stages(tuple(1 for _ in METHODS[name].full(op, source)))
    )
    assert stages[-1].name == "layer"
    assert stages[-1].shared == "layer"
    assert [stage.shared for stage in stages[:-1]] == [stage.name for stage in stages[:-1]]
    assert all(stage.name.startswith("layer__") for stage in stages[:-1])


def test_strides_are_taken_as_early_as_the_form_allows():
    """Public CP code has the stride in the last stage: the others have four times the positions."""
    graph = conv((3, 3), 4, 4, (8, 8), strides=(2, 2))
    shapes = {
        name: [
            t.shape[1:3]
            for op in rewritten(graph, name, ranks)
            if op.weights
            for t in graph_tensors(rewritten(graph, name, ranks), op.name)
        ]
        for name, ranks in {
            "channel_svd": (2,),
            "spatial_svd": (2,),
            "spatial_svd_w": (2,),
            "cp": (2,),
            "tt": (2, 2, 2),
        }.items()
    }
    assert shapes == {
        "channel_svd": [(4, 4), (4, 4)],
        "spatial_svd": [(4, 8), (4, 4)],
        "spatial_svd_w": [(8, 4), (4, 4)],
        "cp": [(8, 8), (4, 4), (4, 4)],
        "tt": [(8, 8), (4, 8), (4, 4), (4, 4)],
    }
    point = rewritten(conv((1, 1), 4, 4, (8, 8), strides=(2, 2)), "channel_svd", (2,))
    assert point.tensors("layer__in")[0].shape[1:3] == (4, 4)


def graph_tensors(graph, name):
    return graph.tensors(name)


def test_each_axis_keeps_its_own_padding_stride_and_dilation():
    """Public code applies padding[0] to both axes, and drops the dilation."""
    graph = conv((5, 2), 3, 4, (9, 8), dilation_rate=(1, 3), bias=None)
    stages = {op.name: op for op in rewritten(graph, "spatial_svd", (2,))}
    assert stages["layer__axis0"]["dilation_rate"] == (1, 1)
    assert stages["layer"]["dilation_rate"] == (1, 3)
    assert stages["layer__axis0"]["kernel_size"] == (5, 1)
    cp = {op.name: op for op in rewritten(graph, "cp", (2,))}
    assert cp["layer__kernel"]["dilation_rate"] == (1, 3)
    assert not any("bias" in op.weights for op in cp.values())


def test_printed_form():
    graph = conv((3, 3), 4, 6, (8, 8), activation="relu")
    assert str(rewritten(graph, "tucker2", (2, 3))) == "\n".join(
        [
            "graph one",
            "  x = InputLayer() -> (?, 8, 8, 4)",
            "  layer__in = Conv2D(x) filters=2 kernel_size=1 use_bias=False -> (?, 8, 8, 2)",
            (
                "  layer__kernel = Conv2D(layer__in) filters=3 kernel_size=3 padding=same"
                " use_bias=False -> (?, 8, 8, 3)"
            ),
            (
                "  layer = Conv2D(layer__kernel) filters=6 kernel_size=1 activation=relu -> (?, 8,"
                " 8, 6)"
            ),
            "  return layer",
        ]
    )


def test_ranks_that_a_bond_does_not_support_still_have_their_cost():
    graph = conv((2, 2), 4, 9)
    op, source = parts(graph)
    ranks = (1, 9)  # one input channel of the core can feed four outputs
    assert counted(rewritten(graph, "tucker2", ranks)) == METHODS["tucker2"].cost(op, source, ranks)
    ranks = (1, 8, 9)
    assert counted(rewritten(graph, "tt", ranks)) == METHODS["tt"].cost(op, source, ranks)


def test_softmax_of_a_tensorised_layer_acts_on_the_whole_output():
    graph = dense(16, 8, activation="softmax")
    result = rewritten(graph, "tt_matrix", METHODS["tt_matrix"].full(*parts(graph)))
    np.testing.assert_allclose(outputs(result).sum(-1), 1, rtol=1e-5)
    assert next(iter(reversed(list(result)))).kind == "Activation"


def test_zero_kernel():
    graph = with_kernel(conv((3, 3), 4, 5), np.zeros((3, 3, 4, 5), np.float32))
    for name in taken(graph):
        ranks = tuple(max(1, r // 2) for r in METHODS[name].full(*parts(graph)))
        for stats in (None, statistics(Layout.of(*parts(graph)))):
            np.testing.assert_allclose(
                outputs(rewritten(graph, name, ranks, stats=stats)), outputs(graph), atol=1e-6
            )


def test_einsum_that_is_no_matrix_product_is_refused():
    graph = layer("EinsumDense", (4, 6), (4, 6, 5), equation="abc,bcd->abd", output_shape=(4, 5))
    reason = METHODS["svd"].refuses(*parts(graph))
    assert reason == "the equation abc,bcd->abd is not a matrix product"


def test_freed_nodes_of_large_layers_change_no_estimate(monkeypatch) -> None:
    op, source = parts(conv((3, 3), 8, 9))
    layout, method = Layout.of(op, source), METHODS["tucker2"]
    rows = patches(layout, 20, np.random.default_rng(1)).astype(np.float32)
    ranks = grid(method.full(op, source), 32)

    def estimates() -> list[NDArray[np.float32]]:
        factors = method.decompose(op, source, statistics=statistics(layout))
        found = list(factors.estimates(rows, ranks))
        held.append(max(len(unfolding._nodes) for unfolding in factors._unfoldings))
        return found

    held: list[int] = []
    kept = estimates()
    monkeypatch.setattr(chain_factors, "SMALL", 0)
    for one, other in zip(kept, estimates(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert held[0] > 5
    assert held[1] <= 3
