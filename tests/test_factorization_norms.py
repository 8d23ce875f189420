"""The norm of the inputs: optimality, few samples, the mean, the outputs' weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfc.errors import ModelError
from lrfc.factorization import METHODS, Statistics, linalg, norms
from lrfc.factorization.layout import Layout
from tests.factorized import (
    conv,
    dense,
    last_weighted,
    layer,
    parts,
    patches,
    relative,
    rewritten,
    statistics,
)

NESTED = ("channel_svd", "channel_svd_1x1", "spatial_svd", "spatial_svd_w", "svd", "tt_matrix")
LAYERS = {
    "conv": conv((3, 3), 6, 8),
    "grouped": conv((3, 2), 6, 8, groups=2),
    "conv1d": conv((5,), 4, 6),
    "conv3d": conv((2, 3, 2), 3, 4),
    "transposed": layer(
        "Conv2DTranspose", (5, 5, 6), (3, 3, 8, 6), bias=8, filters=8, kernel_size=(3, 3)
    ),
    "depthwise": layer(
        "DepthwiseConv2D", (7, 7, 4), (5, 5, 4, 2), bias=8, depth_multiplier=2, kernel_size=(5, 5)
    ),
    "dense": dense(12, 8),
}
PAIRS = [
    (name, kind)
    for name in METHODS
    for kind, graph in LAYERS.items()
    if METHODS[name].refuses(*parts(graph)) is None
]


def flat(graph, kernel=None):
    """The layer's matrix (G, D, T), with another kernel if given."""
    op, source = parts(graph)
    if kernel is not None:
        op = type(op)(op.name, op.kind, op.attrs, {**op.weights, "kernel": kernel})
    layout = Layout.of(op, source)
    return layout.matrix(layout.tensor())


def loss(graph, kernel, stats, scale=None) -> float:
    """tr(EᵀΣE) with the covariance that the statistics stand for."""
    layout = Layout.of(*parts(graph))
    missing = (flat(graph) - flat(graph, kernel)).reshape(layout.groups, layout.patch, -1)
    if scale is not None:
        missing = missing * scale.reshape(layout.groups, 1, -1)
    return float(np.einsum("gdt,gde,get->", missing, norms.input_grams(layout, stats), missing))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_statistics_never_make_the_measured_error_worse(name, kind):
    graph = LAYERS[kind]
    op, source = parts(graph)
    stats = statistics(Layout.of(op, source), seed=3)
    aware, free = (
        METHODS[name].decompose(op, source, statistics=stats),
        METHODS[name].decompose(op, source),
    )
    gains = []
    for fraction in (0.2, 0.4, 0.6, 0.8):
        ranks = tuple(max(1, int(fraction * rank)) for rank in METHODS[name].full(op, source))
        with_data, without = (
            loss(graph, aware.kernel(ranks), stats),
            loss(graph, free.kernel(ranks), stats),
        )
        assert with_data <= without * (1 + 1e-6) + 1e-9, ranks
        gains.append(with_data < 0.999 * without)
    assert any(gains)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in PAIRS if name in NESTED])
@pytest.mark.parametrize("aware", [False, True])
def test_error_of_nested_methods_falls_with_the_rank(name, kind, aware):
    graph = LAYERS[kind]
    op, source = parts(graph)
    stats = statistics(Layout.of(op, source))
    factors = METHODS[name].decompose(op, source, statistics=stats if aware else None)
    measured = (
        stats
        if aware
        else Statistics(
            np.stack([np.eye(n) for n in [stats.covariance.shape[1]] * len(stats.covariance)]),
            None,
            10**9,
        )
    )
    full = METHODS[name].full(op, source)
    if len(full) > 1:
        pytest.skip("more than one rank")
    errors = [loss(graph, factors.kernel((rank,)), measured) for rank in range(1, full[0] + 1)]
    assert all(after <= before * (1 + 1e-6) + 1e-9 for before, after in pairwise(errors))
    assert errors[-1] < 1e-6 * max(errors[0], 1e-9) + 1e-9


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_svd_with_statistics_is_the_optimum(inputs, outputs, seed):
    """Error² is the sum of the dropped σ² of L ᵀW (reference sheet §5.1), for every rank."""
    graph = dense(inputs, outputs, seed=seed)
    op, source = parts(graph)
    layout = Layout.of(op, source)
    stats = statistics(layout, seed)
    gram = norms.input_grams(layout, stats)[0]
    sigma = np.linalg.svd(
        np.linalg.cholesky(gram).T @ op.weights["kernel"].astype(np.float64), compute_uv=False
    )
    factors = METHODS["svd"].decompose(op, source, statistics=stats)
    for rank in range(1, min(inputs, outputs) + 1):
        assert loss(graph, factors.kernel((rank,)), stats) == pytest.approx(
            (sigma[rank:] ** 2).sum(), rel=1e-4, abs=1e-6 * (sigma**2).sum()
        )


def test_kernel_first_svd_is_the_pca_of_the_outputs():
    graph = conv((3, 3), 4, 6)
    op, source = parts(graph)
    layout = Layout.of(op, source)
    stats = statistics(layout)
    weights = flat(graph)[0]
    values, vectors = np.linalg.eigh(weights.T @ norms.input_grams(layout, stats)[0] @ weights)
    top = vectors[:, np.argsort(values)[::-1][:3]]
    found = METHODS["channel_svd"].decompose(op, source, statistics=stats).kernel((3,))
    np.testing.assert_allclose(flat(graph, found)[0], weights @ top @ top.T, atol=1e-5)


def test_spatial_svd_is_near_what_alternating_least_squares_reaches():
    """No closed form is the optimum here.

    On patches whose correlation falls with the distance, as in images, the refitted one has to be
    near it.
    """
    graph = conv((3, 3), 5, 6)
    op, source = parts(graph)
    rng = np.random.default_rng(5)
    near = np.exp(
        -np.linalg.norm(
            np.indices((3, 3)).reshape(2, 9, 1) - np.indices((3, 3)).reshape(2, 1, 9), axis=0
        )
    )
    mixing = np.kron(np.linalg.cholesky(near), rng.standard_normal((5, 5)))
    uneven = np.maximum(rng.standard_normal((400, 45)) @ mixing.T, -1)  # no longer separable
    stats = Statistics(np.cov(uneven.T)[None], uneven.mean(0)[None], 400)
    gram = norms.input_grams(Layout.of(op, source), stats)[0]
    weights = flat(graph)[0]
    closed = loss(
        graph, METHODS["spatial_svd"].decompose(op, source, statistics=stats).kernel((5,)), stats
    )
    best = np.inf
    for _ in range(3):
        first = rng.standard_normal((3, 5, 5))  # kh, S, R
        for _ in range(60):
            design = np.einsum("hsr,wv->hwsrv", first, np.eye(3)).reshape(45, 15)
            second = np.linalg.solve(
                design.T @ gram @ design + 1e-9 * np.eye(15), design.T @ gram @ weights
            ).reshape(5, 3, 6)
            normal = np.einsum(
                "hwsHWS,rwt,RWt->hsrHSR",
                gram.reshape(3, 3, 5, 3, 3, 5),
                second,
                second,
                optimize=True,
            ).reshape(75, 75)
            right = np.einsum(
                "hwst,rwt->hsr", (gram @ weights).reshape(3, 3, 5, 6), second
            ).reshape(75)
            first = np.linalg.solve(normal + 1e-9 * np.trace(normal) * np.eye(75), right).reshape(
                3, 5, 5
            )
        missing = weights - np.einsum("hsr,rwt->hwst", first, second).reshape(45, 6)
        best = min(best, float(np.einsum("dt,de,et->", missing, gram, missing)))
    assert best < closed < 1.15 * best  # squared errors


@pytest.mark.parametrize("name", METHODS)
def test_few_samples_give_finite_factors_that_are_exact_at_full_rank(name):
    graph = (
        dense(12, 8)
        if METHODS[name].refuses(*parts(LAYERS["dense"])) is None
        else conv((3, 3), 6, 8)
    )
    op, source = parts(graph)
    layout = Layout.of(op, source)
    full = METHODS[name].full(op, source)
    for stats in (
        statistics(layout, count=3),
        Statistics(np.zeros((1, layout.patch, layout.patch)), np.zeros((1, layout.patch)), 100),
    ):
        factors = METHODS[name].decompose(op, source, statistics=stats)
        assert relative(factors.kernel(full), op.weights["kernel"]) < 1e-5
        half = factors.kernel(tuple(max(1, rank // 2) for rank in full))
        assert np.isfinite(half).all()
        assert np.linalg.norm(half) < 10 * np.linalg.norm(op.weights["kernel"])


def test_shrinkage():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 20))
    sample = rows.T @ rows / 50
    trace, squared, p, n = np.trace(sample), np.trace(sample @ sample), 20, 50
    weight = ((1 - 2 / p) * squared + trace**2) / ((n + 1 - 2 / p) * (squared - trace**2 / p))
    np.testing.assert_allclose(
        linalg.shrink(sample, 50), (1 - weight) * sample + weight * trace / p * np.eye(p)
    )
    np.testing.assert_allclose(linalg.shrink(sample, 10**9), sample, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(linalg.shrink(np.zeros((3, 3)), 5), np.eye(3))
    one = linalg.shrink(np.ones((4, 4)), 1)
    assert np.linalg.eigvalsh(one).min() > 0


@pytest.mark.parametrize("kind", ["conv", "grouped", "dense"])
def test_bias_absorbs_the_mean_error(kind):
    graph = LAYERS[kind]
    op, source = parts(graph)
    layout = Layout.of(op, source)
    rows = patches(layout, 500, np.random.default_rng(0)).astype(np.float32)
    mean = rows.mean(0, dtype=np.float64)
    moved = rows - mean
    stats = Statistics(np.einsum("ngd,nge->gde", moved, moved) / 500, mean, 500)
    exact = np.einsum("ngd,gdt->ngt", rows, flat(graph)).reshape(500, -1) + op.weights["bias"]
    name = "svd" if kind == "dense" else "channel_svd"
    response = next(
        iter(METHODS[name].decompose(op, source, statistics=stats).responses(rows, [(1,)]))
    )
    np.testing.assert_allclose(response.mean(0), exact.mean(0), atol=1e-4)
    assert relative(response, exact) > 0.05  # the rank is low, the mean alone is met
    bias = last_weighted(rewritten(graph, name, (1,), stats=stats)).weights["bias"]
    assert np.abs(bias - op.weights["bias"]).max() > 0.01


def test_without_a_bias_the_mean_is_left_to_the_batchnorm():
    graph = conv((3, 3), 4, 6, bias=None)
    op, source = parts(graph)
    stats = statistics(Layout.of(op, source))
    layout = Layout.of(op, source)
    assert norms.centred(layout, stats)
    assert not norms.mean_absorbed(layout, stats)
    rows = patches(layout, 4, np.random.default_rng(0)).astype(np.float32)
    factors = METHODS["channel_svd"].decompose(op, source, statistics=stats)
    expected = np.einsum("ngd,gdt->ngt", rows, flat(graph, factors.kernel((2,)))).reshape(4, -1)
    np.testing.assert_allclose(
        next(iter(factors.responses(rows, [(2,)]))), expected, rtol=1e-4, atol=1e-4
    )


def test_a_transposed_convolution_counts_the_mean_in():
    """No constant absorbs its mean error, because border positions see fewer taps."""
    graph = LAYERS["transposed"]
    layout = Layout.of(*parts(graph))
    stats = statistics(layout)
    full = stats.covariance[0] + np.outer(stats.mean[0], stats.mean[0])
    np.testing.assert_allclose(
        norms.input_grams(layout, stats)[0], linalg.shrink(full, stats.count)
    )
    bias = last_weighted(rewritten(graph, "channel_svd", (2,), stats=stats)).weights["bias"]
    np.testing.assert_array_equal(bias, graph.op("layer").weights["bias"])


@pytest.mark.parametrize(
    "name", ["channel_svd", "channel_svd_1x1", "spatial_svd", "tucker2", "cp", "tt"]
)
def test_output_scale_moves_the_error_to_channels_that_count_less(name):
    graph = conv((3, 3), 6, 8)
    op, source = parts(graph)
    scale = np.array([10.0, -10, 1, 1, 1, 1, 0.1, 0])
    ranks = tuple(max(1, rank // 3) for rank in METHODS[name].full(op, source))
    eye = Statistics(np.eye(54)[None], None, 10**9)
    weighted = METHODS[name].decompose(op, source, scale=scale).kernel(ranks)
    plain = METHODS[name].decompose(op, source).kernel(ranks)
    assert loss(graph, weighted, eye, np.abs(scale)) < 0.9 * loss(graph, plain, eye, np.abs(scale))
    assert (
        relative(
            METHODS[name].decompose(op, source, scale=scale).kernel(METHODS[name].full(op, source)),
            op.weights["kernel"],
        )
        < 1e-5
    )


def test_factors_share_the_singular_values():
    stages = [op for op in rewritten(conv((3, 3), 6, 8), "channel_svd", (4,)) if op.weights]
    first, last = (
        op.weights["kernel"].reshape(-1, op.weights["kernel"].shape[-1]) for op in stages
    )
    np.testing.assert_allclose(
        np.linalg.norm(first, axis=0), np.linalg.norm(last, axis=1), rtol=1e-4
    )


def test_wrong_statistics_are_refused():
    op, source = parts(dense(6, 5))
    with pytest.raises(ModelError, match=r"statistics of shape \(1, 4, 4\), expected \(1, 6, 6\)"):
        METHODS["svd"].decompose(
            op, source, statistics=Statistics(np.eye(4)[None], None, 10)
        ).kernel((2,))
    with pytest.raises(ModelError, match="3 output scales for 5 output channels"):
        METHODS["svd"].decompose(op, source, scale=np.ones(3))


def test_memory_guard_names_the_figure(monkeypatch):
    monkeypatch.setattr(linalg, "MEMORY_LIMIT", 1000)
    op, source = parts(dense(12, 8))
    with pytest.raises(
        ModelError,
        match=(
            r"layer 'layer': its decomposition at 12 inputs and 8 outputs needs 3\.75 KiB,"
            r" above the limit of 1000 B"
        ),
    ):
        METHODS["svd"].decompose(op, source).kernel((2,))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["svd", "channel_svd", "channel_svd_1x1", "spatial_svd", "tucker2"]
)
def test_large_layers_decompose_at_all_ranks_within_the_memory_guard(name):
    """A 4096×4096 Dense layer, and a 3×3×512×512 convolution with statistics."""
    graph = dense(4096, 4096) if name == "svd" else conv((3, 3), 512, 512)
    op, source = parts(graph)
    rng = np.random.default_rng(0)
    stats = None
    if name != "svd":
        rows = rng.standard_normal((3000, 4608))
        stats = Statistics((rows.T @ rows / 3000)[None], np.zeros((1, 4608)), 3000)
    factors = METHODS[name].decompose(op, source, statistics=stats)
    full = METHODS[name].full(op, source)
    assert relative(factors.kernel(full), op.weights["kernel"]) < 1e-5
    rows = rng.standard_normal((50, 1, 4096 if stats is None else 4608)).astype(np.float32)
    choices = [tuple(rank // part for rank in full) for part in (16, 8, 4, 2, 1)]
    errors = [
        relative(found, rows[:, 0] @ flat(graph)[0] + op.weights["bias"])
        for found in factors.responses(rows, choices)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def test_a_covariance_that_is_nothing_but_rounding_has_a_factor() -> None:
    noise = np.random.default_rng(0).standard_normal((24, 24))
    gram = 1e-8 * (noise + noise.T) / 2  # as of inputs that are the same in all samples
    assert np.linalg.eigvalsh(gram)[0] < -1e-8
    lower = linalg.cholesky(gram)
    added = lower @ lower.T - gram
    np.testing.assert_allclose(added, added[0, 0] * np.eye(24), atol=1e-20)
    assert 0 < added[0, 0] <= 10 * np.abs(gram).sum(1).max()
    # A ridge that is larger than every eigenvalue suffices.
    assert np.isfinite(linalg.cholesky(np.array([[-1.0, 0.5], [0.5, -2.0]]))).all()
