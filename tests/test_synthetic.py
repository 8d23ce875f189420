"""Synthetic calibration inputs.

They are reproducible, have the right shape and scale, and are nearer to the statistics of training
than noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lrfc.data.load import load_data
from lrfc.data.synthetic import _coloured, samples_for, scale_of, synthesise
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from tests import helpers


def before_norms(
    graph: Graph, batch: tuple[np.ndarray, ...]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Return (mean, variance, moving mean, moving variance) before each BatchNorm."""
    probe = graph.copy()
    norms = [op for op in graph if op.kind == "BatchNormalization"]
    probe.outputs, probe.structure = tuple(graph.operands(op.name)[0] for op in norms), (None, None)
    maps = keras_io.predict(probe, batch)
    return [
        (
            x.mean((0, 1, 2)),
            x.var((0, 1, 2)),
            op.weights["moving_mean"],
            op.weights["moving_variance"],
        )
        for op, x in zip(norms, maps, strict=True)
    ]


def trained_on(mean: float, std: float) -> Graph:
    """Return a net whose BatchNorm statistics are those of smooth images of that scale."""
    graph = helpers.graph_of(helpers.conv_net(size=8, filters=(6, 8)))
    rng = np.random.default_rng(5)
    images = _coloured(rng.standard_normal((64, 8, 8, 3)).astype(np.float32), (1, 2))
    images = images / images.std() * std + mean
    for number in range(2):
        m, v, _, _ = before_norms(graph, (images,))[number]
        bn = graph.op(f"bn{number}")
        graph = graph.with_weights(
            {bn.name: {**bn.weights, "moving_mean": m, "moving_variance": v}}
        )
    return graph


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (120.0, 50.0), (0.3, 0.3)])
def test_the_scale_of_the_training_images_is_found(mean: float, std: float) -> None:
    graph = trained_on(mean, std)
    (x,) = synthesise(graph, 40, 0)
    assert x.shape == (40, 8, 8, 3)
    assert x.dtype == np.float32
    assert abs(x.mean() - mean) < 0.5 * std
    assert 0.5 * std < x.std() < 2 * std
    for m, v, wanted_m, wanted_v in before_norms(graph, (x,)):
        assert (np.abs(m - wanted_m) < 0.3 * np.sqrt(wanted_v)).all()
        assert (np.abs(np.log(v / wanted_v)) < 0.7).all()


def test_the_same_seed_gives_the_same_samples_and_another_one_others() -> None:
    graph = trained_on(0.0, 1.0)
    first, again, other = (synthesise(graph, 33, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert np.abs(first - other).max() > 0.1


def test_a_model_without_batchnorm_gets_standardised_inputs() -> None:
    graph = helpers.graph_of(helpers.dense_net())
    (x,) = synthesise(graph, 500, 0)
    assert abs(x.mean()) < 0.1
    assert abs(x.std() - 1) < 0.15


def test_flat_inputs_lie_where_the_first_dense_layer_reads() -> None:
    graph = helpers.graph_of(helpers.dense_net(features=64, widths=(4,)))
    (x,) = synthesise(graph, 500, 0)
    white = np.random.default_rng(0).standard_normal(x.shape)
    q, _ = np.linalg.qr(graph.op("dense0").weights["kernel"])
    assert np.var(x @ q) * q.shape[1] / (np.var(x) * 64) > 4 * np.var(white @ q) * q.shape[1] / (
        np.var(white) * 64
    )


def test_several_inputs_each_get_theirs() -> None:
    graph = helpers.graph_of(helpers.two_inputs())
    batch = synthesise(graph, 5, 0)
    assert [x.shape[1:] for x in batch] == [
        graph.tensors(name)[0].shape[1:] for name in graph.inputs
    ]
    assert all(np.isfinite(y).all() for y in keras_io.predict(graph, batch))


def test_several_inputs_with_batchnorm() -> None:
    graph = helpers.graph_of(helpers.nested_twice())
    assert [x.shape for x in synthesise(graph, 4, 0)] == [(4, 6, 6, 3)] * 2


def test_token_inputs_stay_in_the_vocabulary() -> None:
    import keras

    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(11, 4)(tokens))
    graph = helpers.graph_of(keras.Model(tokens, keras.layers.Dense(2)(x)))
    (x,) = synthesise(graph, 200, 0)
    assert x.dtype == np.int32
    assert set(np.unique(x)) == set(range(11))


def test_a_normalization_layer_tells_the_scale() -> None:
    import keras

    inputs = keras.Input((6, 6, 3), name="image")
    layer = keras.layers.Normalization(mean=(10.0, 20.0, 30.0), variance=(4.0, 9.0, 16.0))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(layer(inputs)))
    (x,) = synthesise(helpers.graph_of(model), 300, 0)
    np.testing.assert_allclose(x.mean((0, 1, 2)), (10, 20, 30), atol=2)
    np.testing.assert_allclose(x.std((0, 1, 2)), (2, 3, 4), rtol=0.2)


@pytest.mark.parametrize(
    ("scale", "offset", "mean", "std"),
    [(1 / 255, 0.0, 127.5, 63.75), (1 / 127.5, -1.0, 127.5, 63.75)],
)
def test_a_rescaling_layer_tells_the_scale(
    scale: float, offset: float, mean: float, std: float
) -> None:
    import keras

    inputs = keras.Input((6, 6, 3), name="image")
    model = keras.Model(
        inputs, keras.layers.Conv2D(2, 3)(keras.layers.Rescaling(scale, offset)(inputs))
    )
    found = scale_of(helpers.graph_of(model), "image")
    assert found is not None
    assert float(found.mean) == pytest.approx(mean)
    assert float(found.std) == pytest.approx(std)


def test_a_fixed_batch_size_is_no_obstacle() -> None:
    import keras
    from keras import layers

    inputs = keras.Input(batch_shape=(1, 6, 6, 3), name="image")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, layers.Flatten()(x))))
    assert synthesise(graph, 6, 0)[0].shape == (6, 6, 6, 3)


def test_an_input_without_fixed_size_is_refused() -> None:
    import keras

    inputs = keras.Input((None, None, 3), name="image")
    graph = helpers.graph_of(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)))
    with pytest.raises(UsageError, match=r"'image'.*no fixed size.*--data"):
        synthesise(graph, 2, 0)


def test_natural_noise_is_smooth() -> None:
    white = np.random.default_rng(0).standard_normal((8, 32, 32, 1)).astype(np.float32)
    smooth = _coloured(white, (1, 2))

    def neighbours(x: np.ndarray) -> float:
        return float(np.corrcoef(x[:, 1:].ravel(), x[:, :-1].ravel())[0, 1])

    assert abs(neighbours(white)) < 0.05
    assert neighbours(smooth) > 0.6


def test_data_free_splits() -> None:
    graph = helpers.graph_of(helpers.dense_net())
    data = load_data(None, graph, seed=0)
    assert data.synthetic
    assert data.test_is_validation
    assert data.train.targets is None
    assert len(data.train) == samples_for(graph) == 256
    assert len(data.validation) == 64
    assert len(load_data(None, graph, seed=0, limit=8).train) == 8


def distance(graph: Graph, batch: tuple[np.ndarray, ...]) -> float:
    """The mean distance of the statistics before the BatchNorms from the moving ones.

    As in ``synthesise``, but for all samples together: log(1 + d²) + mean(log² r).
    """
    return float(
        np.mean(
            [
                np.log1p(np.mean((m - wanted_m) ** 2 / wanted_v))
                + np.mean(np.log(v / wanted_v) ** 2) / 4
                for m, v, wanted_m, wanted_v in before_norms(graph, batch)
            ]
        )
    )


def test_matched_statistics_are_nearly_those_of_training() -> None:
    """The bounds: a thousandth, and a tenth of what images of the right scale have."""
    graph = trained_on(0.0, 1.0)
    white = np.random.default_rng(3).standard_normal((64, 8, 8, 3)).astype(np.float32)
    images = _coloured(white, (1, 2))
    plain = distance(graph, (images / images.std(),))
    found = distance(graph, synthesise(graph, 64, 0))
    assert found < min(1e-3, 0.1 * plain)


def test_the_progress_of_each_chunk_is_reported() -> None:
    stages: list[tuple[str, int]] = []
    steps: list[int] = []

    def stage(title: str, total: int) -> Callable[[int], None]:
        stages.append((title, total))
        return steps.append

    synthesise(trained_on(0.0, 1.0), 70, 0, stage)
    assert stages == [("making up inputs", 3)]
    assert steps == [1, 1, 1]
