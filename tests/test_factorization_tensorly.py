"""Data-free errors compared with tensorly's at equal ranks."""

from __future__ import annotations

import numpy as np
import pytest
from tensorly import cp_to_tensor, tt_to_tensor, tucker_to_tensor
from tensorly.decomposition import parafac, partial_tucker, tensor_train, tucker

from lrfc.factorization import METHODS, tt_matrix, tucker_matrix
from lrfc.factorization.layout import Layout
from lrfc.factorization.unfold import Unfolding
from lrfc.ir.graph import Graph
from tests.factorized import (
    conv,
    dense,
    one_thread,  # noqa: F401  the fixture applies to this file
    parts,
    relative,
    with_kernel,
)

#: How much larger than tensorly's an error may be.
SLACK = 1.01


def falling(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A kernel whose singular values decay along both channel axes, as in trained layers."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape)
    return (
        kernel
        * (np.arange(1, shape[-2] + 1) ** -0.5)[:, None]
        * np.arange(1, shape[-1] + 1) ** -0.5
    ).astype(np.float32)


LAYERS = {
    "normal": conv((3, 3), 6, 8),
    "falling": with_kernel(conv((3, 3), 16, 12), falling((3, 3, 16, 12))),
    "few inputs": with_kernel(conv((3, 3), 3, 16), falling((3, 3, 3, 16))),
    "wide": with_kernel(conv((3, 3), 32, 32), falling((3, 3, 32, 32))),
}


def tensor(graph: Graph) -> np.ndarray:
    """The kernel as (S, k, T)."""
    layout = Layout.of(*parts(graph))
    return np.moveaxis(layout.tensor()[0].reshape(-1, layout.inputs, layout.outputs), 0, 1)


def error(graph: Graph, method: str, ranks: tuple[int, ...]) -> float:
    op, source = parts(graph)
    return relative(METHODS[method].decompose(op, source).kernel(ranks), op.weights["kernel"])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_tucker2(kind, share):
    kernel = tensor(LAYERS[kind])
    ranks = tuple(max(1, int(share * n)) for n in (kernel.shape[0], kernel.shape[2]))
    reference = tucker_to_tensor_of_two(
        partial_tucker(kernel, rank=list(ranks), modes=[0, 2], n_iter_max=200, tol=1e-8)[0]
    )
    assert error(LAYERS[kind], "tucker2", ranks) <= SLACK * relative(reference, kernel)


def tucker_to_tensor_of_two(decomposed) -> np.ndarray:
    core, (left, right) = decomposed
    return np.einsum("sa,akb,tb->skt", left, core, right)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_cp(kind, share):
    """The best of three starts.

    tensorly recommends the first where the rank is not above the sizes.
    """
    kernel = tensor(LAYERS[kind])
    rank = max(2, int(share * kernel.size / sum(kernel.shape)))
    starts = [("svd", 0), ("random", 0), ("random", 1)]
    found = [
        cp_to_tensor(parafac(kernel, rank, n_iter_max=100, init=init, tol=1e-6, random_state=seed))
        for init, seed in starts
    ]
    assert error(LAYERS[kind], "cp", (rank,)) <= SLACK * min(
        relative(each, kernel) for each in found
    )


@pytest.mark.parametrize("rank", [4, 10, 20])
def test_cp_with_a_mode_per_axis(rank):
    graph = LAYERS["falling"]
    kernel = np.moveaxis(Layout.of(*parts(graph)).tensor()[0], 2, 0)
    found = [
        cp_to_tensor(
            parafac(kernel, rank, n_iter_max=100, init="random", tol=1e-6, random_state=seed)
        )
        for seed in range(2)
    ]
    assert error(graph, "cp4", (rank,)) <= SLACK * min(relative(each, kernel) for each in found)


@pytest.mark.parametrize("ranks", [(12, 20, 10), (8, 12, 6), (2, 3, 2), (1, 1, 1)])
def test_tensor_train(ranks):
    graph = LAYERS["falling"]
    kernel = np.moveaxis(Layout.of(*parts(graph)).tensor()[0], 2, 0)
    reference = tt_to_tensor(tensor_train(kernel, [1, *ranks, 1]))
    assert error(graph, "tt", ranks) <= SLACK * relative(reference, kernel)


def test_unfolding_is_the_tensor_train():
    """The nested cores, truncated, multiply out to tensorly's own."""
    tensor = np.random.default_rng(0).standard_normal((5, 1, 3, 3, 1, 6))
    ours = Unfolding(tensor[None])
    for ranks in ((5, 8, 4), (2, 3, 2), (1, 1, 1)):
        product = ours.cores(ranks)[0][0]
        for core in ours.cores(ranks)[1:]:
            product = np.tensordot(product, core[0], 1)
        reference = tt_to_tensor(tensor_train(tensor[:, 0, :, :, 0], [1, *ranks, 1]))
        np.testing.assert_allclose(product.reshape(5, 3, 3, 6), reference, atol=1e-8)
        assert ours.loss(ranks)[0] == pytest.approx(
            np.linalg.norm(reference - tensor[:, 0, :, :, 0]) ** 2, rel=1e-6, abs=1e-9
        )


@pytest.mark.parametrize("rank", [2, 5])
def test_tt_matrix(rank):
    graph = with_kernel(dense(24, 36), falling((24, 36)))
    kernel = graph.op("layer").weights["kernel"].astype(np.float64)
    inputs, outputs = tt_matrix.shapes(24, 36)
    pairs = [axis for k in range(len(inputs)) for axis in (k, len(inputs) + k)]
    folded = (
        kernel.reshape(*inputs, *outputs)
        .transpose(pairs)
        .reshape([i * o for i, o in zip(inputs, outputs, strict=True)])
    )
    ranks = (rank,) * (len(inputs) - 1)
    reference = tt_to_tensor(tensor_train(folded, [1, *ranks, 1]))
    assert error(graph, "tt_matrix", ranks) <= SLACK * relative(reference, folded)


@pytest.mark.parametrize("ranks", [(3, 3), (4, 5)])
def test_tucker_matrix(ranks):
    graph = with_kernel(dense(25, 36), falling((25, 36)))
    folded = (
        graph.op("layer").weights["kernel"].astype(np.float64).reshape(tucker_matrix.shape(25, 36))
    )
    each = [min(ranks[mode // 2], size) for mode, size in enumerate(folded.shape)]
    reference = tucker_to_tensor(tucker(folded, rank=each, n_iter_max=200, tol=1e-8))
    assert error(graph, "tucker_matrix", ranks) <= SLACK * relative(reference, folded)
