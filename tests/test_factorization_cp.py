"""CP does not degenerate: exact starts, bounded norms, and fits as good as a reference's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrfc.factorization import METHODS, als
from lrfc.factorization.cp_fit import RANDOM_STARTS, Problem, best_fit, decompositions
from lrfc.factorization.layout import Layout
from lrfc.ir.op import Op, Tensor
from tests.factorized import (
    conv,
    layer,
    one_thread,  # noqa: F401  the fixture applies to this file
    parts,
    relative,
    rewritten,
    statistics,
)


def degenerate(size: int = 5) -> np.ndarray:
    """a∘a∘b + a∘b∘a + b∘a∘a, of rank 3.

    Two terms come arbitrarily near, with norms that grow without bound.
    """
    a, b = np.eye(size)[:2]
    return (
        np.einsum("i,j,k->ijk", a, a, b)
        + np.einsum("i,j,k->ijk", a, b, a)
        + np.einsum("i,j,k->ijk", b, a, a)
    )


def multiplied(factors) -> np.ndarray:
    shape = tuple(len(factor) for factor in factors)
    return als.khatri_rao(factors).sum(1).reshape(shape)


def cancelling(size: int = 5, n: float = 100) -> list[np.ndarray]:
    """Terms n·(a + b/n)∘(a + b/n)∘(a + b/n) - n·a∘a∘a, near that tensor for large n."""
    a, b = np.eye(size)[:2]
    near = a + b / n
    return [np.stack([n * near, -n * a], 1), np.stack([near, a], 1), np.stack([near, a], 1)]


def test_norms_stay_bounded_where_terms_would_cancel():
    tensor, start = degenerate(), cancelling()
    norm = np.linalg.norm(tensor)
    assert relative(multiplied(start), tensor) < 0.02
    free = als.als(tensor, start, ridge=1e-14, sweeps=50, tolerance=0)
    held = als.als(tensor, start, sweeps=50, tolerance=0)
    assert als.norm_ratio(free, norm) > als.NORM_LIMIT  # the trouble is real
    assert als.norm_ratio(held, norm) <= als.NORM_LIMIT
    assert relative(multiplied(held), tensor) < 0.5


def test_factors_whose_terms_cancel_are_rejected(monkeypatch, caplog):
    """A fit with exploding norms is rejected, although its error is the least, and logged."""
    tensor, exploding = degenerate(), cancelling()
    sound = als.slices_start(tensor, 2)
    assert relative(multiplied(exploding), tensor) < relative(multiplied(sound), tensor)
    monkeypatch.setattr(
        "lrfc.factorization.cp_fit.decompositions", lambda target, rank, starts: [exploding, sound]
    )
    with caplog.at_level("INFO", "lrfc.factorization"):
        assert best_fit(Problem(tensor, None), 2) is sound
    ratio = als.norm_ratio(exploding, float(np.linalg.norm(tensor)))
    reason = (
        f"its terms cancel each other: their joint norm is {ratio:.3g} times the kernel's, above 10"
    )
    assert caplog.messages == [f"a CP fit of rank 2 is rejected: {reason}"]
    assert als.cancelling(sound, float(np.linalg.norm(tensor))) is None


def test_the_guard_holds_with_statistics(monkeypatch):
    """Neither the fits nor their improvements in the norm of the inputs may explode."""
    tensor, exploding = degenerate(), cancelling()
    sound = als.slices_start(tensor, 2)
    monkeypatch.setattr(
        "lrfc.factorization.cp_fit.decompositions", lambda target, rank, starts: [exploding, sound]
    )
    moment = np.random.default_rng(0).standard_normal((25, 200))
    found = best_fit(Problem(tensor, moment @ moment.T / 200), 2)
    assert als.norm_ratio(found, float(np.linalg.norm(tensor))) <= als.NORM_LIMIT


def test_the_best_of_several_starts_is_taken():
    """Each start alone wins on some tensor, and the result is never worse than from any start."""
    winners = set()
    for seed in range(8):
        tensor = np.random.default_rng(seed).standard_normal((5, 4, 5))
        starts = [
            als.slices_start(tensor, 4),
            *(als.random_start(tensor, 4, number) for number in range(RANDOM_STARTS)),
        ]
        errors = [relative(multiplied(als.als(tensor, start)), tensor) for start in starts]
        winners.add(int(np.argmin(errors)))
        assert (
            relative(multiplied(best_fit(Problem(tensor, None), 4)), tensor) <= min(errors) + 1e-9
        )
    assert winners == set(range(1 + RANDOM_STARTS))


def test_separate_axes_start_from_the_merged_form(monkeypatch):
    """The 4-way fit starts from the merged form, its kernels split by rank-one approximations."""
    tensor = np.random.default_rng(0).standard_normal((5, 3, 3, 6))
    begun = []

    def spy(target, start, **options):
        begun.append([np.asarray(factor) for factor in start])
        return als.als(target, start, **options)

    monkeypatch.setattr("lrfc.factorization.cp_fit.als", spy)
    decompositions(tensor, 4, (als.slices_start,))
    joined, separate = begun
    assert [len(factor) for factor in joined] == [5, 9, 6]
    assert [len(factor) for factor in separate] == [5, 3, 3, 6]
    merged = als.als(tensor.reshape(5, 9, 6), joined)
    for term in range(4):
        u, s, vt = np.linalg.svd(merged[1][:, term].reshape(3, 3))
        np.testing.assert_allclose(
            np.outer(separate[1][:, term], separate[2][:, term]),
            s[0] * np.outer(u[:, 0], vt[0]),
            atol=1e-9,
        )


@pytest.mark.parametrize("shape", [(4, 9, 6), (6, 9, 4), (3, 2, 3, 5)])
def test_start_is_exact_at_full_rank_and_orthogonal_below(shape):
    tensor = np.random.default_rng(0).standard_normal(shape)
    rank = int(np.prod(shape[1:-1])) * min(shape[0], shape[-1])
    np.testing.assert_allclose(multiplied(als.slices_start(tensor, rank)), tensor, atol=1e-12)
    np.testing.assert_allclose(multiplied(als.slices_start(tensor, rank + 2)), tensor, atol=1e-12)
    half = als.slices_start(tensor, rank // 2)
    kept = np.linalg.norm(multiplied(half)) ** 2
    assert kept == pytest.approx(
        sum(np.prod([np.linalg.norm(f[:, r]) ** 2 for f in half]) for r in range(rank // 2))
    )
    assert np.linalg.norm(multiplied(half) - tensor) ** 2 == pytest.approx(
        np.linalg.norm(tensor) ** 2 - kept
    )


def test_als_lowers_the_error_of_its_start():
    tensor = np.random.default_rng(0).standard_normal((6, 9, 7))
    start = als.slices_start(tensor, 8)
    assert relative(multiplied(als.als(tensor, start)), tensor) < 0.95 * relative(
        multiplied(start), tensor
    )


@pytest.mark.parametrize("name", ["cp", "cp4"])
@pytest.mark.parametrize("aware", [False, True])
def test_terms_of_a_layer_are_balanced_and_bounded(name, aware):
    graph = conv((3, 3), 6, 8)
    op, source = parts(graph)
    stats = statistics(Layout.of(op, source)) if aware else None
    for rank in (2, 6, 12, 30):
        factors = METHODS[name].decompose(op, source, statistics=stats)._factors(rank)
        norms = np.stack([np.linalg.norm(factor[0], axis=0) for factor in factors])
        np.testing.assert_allclose(norms / norms.mean(0), 1, rtol=1e-6)
        ratio = als.norm_ratio(
            [factor[0] for factor in factors], float(np.linalg.norm(op.weights["kernel"]))
        )
        assert ratio <= als.NORM_LIMIT


def test_same_factors_at_every_call():
    op, source = parts(conv((3, 3), 6, 8))
    kernels = [METHODS["cp"].decompose(op, source).kernel((7,)) for _ in range(2)]
    np.testing.assert_array_equal(*kernels)


def test_causal_padding_stands_before_the_depthwise_stage():
    graph = conv((3,), 4, 5, (8,), padding="causal", dilation_rate=2)
    assert str(rewritten(graph, "cp", (3,))) == "\n".join(
        [
            "graph one",
            "  x = InputLayer() -> (?, 8, 4)",
            "  layer__in = Conv1D(x) filters=3 kernel_size=1 use_bias=False -> (?, 8, 3)",
            "  layer__kernel_padding = ZeroPadding1D(layer__in) padding=4x0 -> (?, 12, 3)",
            (
                "  layer__kernel = DepthwiseConv1D(layer__kernel_padding) kernel_size=3"
                " dilation_rate=2 use_bias=False -> (?, 8, 3)"
            ),
            "  layer = Conv1D(layer__kernel) filters=5 kernel_size=1 -> (?, 8, 5)",
            "  return layer",
        ]
    )


def test_refusals_say_why():
    reasons = {
        "strided cp4": METHODS["cp4"].refuses(*parts(conv((3, 3), 4, 5, strides=(2, 2)))),
        "unequal strides": METHODS["cp"].refuses(*parts(conv((3, 3), 4, 5, strides=(2, 1)))),
        "3-D": METHODS["cp"].refuses(*parts(conv((2, 2, 2), 4, 5))),
        "transposed": (
            METHODS["cp"].refuses(
                *parts(layer("Conv1DTranspose", (5, 4), (3, 6, 4), filters=6, kernel_size=(3,)))
            )
        ),
        "one axis": METHODS["cp4"].refuses(*parts(conv((3, 1), 4, 5))),
    }
    assert reasons == {
        "strided cp4": (
            "its stage would be a depthwise convolution with strides 2x1, which TensorFlow does"
            " not run"
        ),
        "unequal strides": (
            "its stage would be a depthwise convolution with strides 2x1, which TensorFlow does"
            " not run"
        ),
        "3-D": "Keras has no depthwise convolution with three spatial axes",
        "transposed": "Keras has no depthwise transposed convolution",
        "one axis": "with a kernel along one axis it is cp",
    }


def test_a_wide_layer_is_fitted_in_single_precision_as_well_as_in_double():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 144, 12)).astype(np.float32)
    attrs = {"filters": 12, "kernel_size": (3, 3), "padding": "same"}
    op, source = Op("wide", "Conv2D", attrs, {"kernel": kernel}), Tensor((None, 4, 4, 144))
    single = METHODS["cp"].decompose(op, source)
    double = replace(single, dtype=np.float64)
    errors = [float(np.linalg.norm(kernel - factors.kernel((9,)))) for factors in (single, double)]
    assert single.dtype == np.float32
    assert errors[0] <= 1.001 * errors[1] < float(np.linalg.norm(kernel))
