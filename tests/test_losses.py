"""The losses of the fine-tune by kind of output, and the augmentation and mixing of its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrfc.data.dataset import Split
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.training import losses
from lrfc.training.augment import Augmentation, augmentation, changed
from lrfc.training.features import block_ends, tapped
from lrfc.training.mixup import mixed
from lrfc.training.recipe import Recipe
from lrfc.training.teacher import Teacher
from lrfc.training.trainer import Trainer
from tests import helpers

# -- losses ----------------------------------------------------------------------------------------


def outputs_of(
    graph: Graph, batch: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...] | None = None
) -> tuple[losses.Output, ...]:
    return losses.describe(graph, keras_io.predict(graph, batch), targets)


def head(units: int, activation: str | None) -> Graph:
    import keras
    from keras import layers

    inputs = keras.Input((5,), name="x")
    return helpers.graph_of(
        helpers.random_weights(
            keras.Model(
                inputs, layers.Dense(units, activation=activation, name="head")(inputs), name="one"
            )
        )
    )


def test_the_kinds_of_outputs() -> None:
    rng = np.random.default_rng(0)
    indices, values = (
        rng.integers(0, 3, 32).astype(np.int32),
        rng.standard_normal((32, 3)).astype(np.float32),
    )
    one = (indices > 1).astype(np.int32)
    cases = [
        (head(3, "softmax"), None, "softmax"),
        (head(3, "softmax"), indices, "softmax"),
        (head(3, None), indices, "logits"),
        (head(3, None), None, "values"),
        (head(3, None), values, "values"),
        (head(1, "sigmoid"), one, "sigmoid"),
        (head(1, None), one, "logit"),
        (head(3, "sigmoid"), None, "sigmoid"),
        (head(3, "sigmoid"), values, "values"),
        (head(3, "sigmoid"), (values > 0).astype(np.float32), "sigmoid"),
    ]
    for graph, target, kind in cases:
        (found,) = outputs_of(
            graph, helpers.random_inputs(graph, 32), None if target is None else (target,)
        )
        assert found.kind == kind


@pytest.mark.parametrize(
    ("units", "activation", "labelled"),
    [
        (3, "softmax", True),
        (3, None, True),
        (1, "sigmoid", True),
        (1, None, True),
        (2, None, False),
    ],
)
def test_distillation_is_least_at_the_original(units, activation, labelled) -> None:
    graph = head(units, activation)
    batch = helpers.random_inputs(graph, 32)
    taught = keras_io.predict(graph, batch)
    described = outputs_of(graph, batch, (np.arange(32, dtype=np.int32) % 2,) if labelled else None)
    same = float(losses.distillation(described, taught, taught, 2.0))
    other = float(
        losses.distillation(described, tuple(np.roll(a, 1, 0) for a in taught), taught, 2.0)
    )
    assert same == pytest.approx(0, abs=1e-6)
    assert other > 1e-3


def test_softened_distillation_is_the_formula() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    p, q = (np.exp(x / 3) / np.exp(x / 3).sum(-1, keepdims=True) for x in (a, b))
    expected = 9 * np.mean(np.sum(p * (np.log(p) - np.log(q)), -1))
    assert float(
        losses.distillation((losses.Output("logits", 1.0),), (b,), (a,), 3.0)
    ) == pytest.approx(expected, rel=1e-4)


def test_feature_maps_are_compared_in_units_of_their_spread() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((16, 4, 4, 3)).astype(np.float32)
    b = a + 0.1 * rng.standard_normal(a.shape).astype(np.float32)
    one = float(losses.features((b,), (a,), [a.var()]))
    assert one == pytest.approx(0.01, rel=0.2)
    hundred = float(losses.features((100 * b,), (100 * a,), [1e4 * a.var()]))
    assert hundred == pytest.approx(one, rel=1e-3)
    assert float(losses.features((b + 5,), (a + 5,), [a.var()])) == pytest.approx(one, rel=1e-3)


def test_variances_of_feature_maps_are_those_of_their_channels() -> None:
    graph = helpers.graph_of(helpers.conv_net(filters=(4, 6)))
    taps = block_ends(graph, graph)
    teacher = Teacher(graph, taps)
    shape = graph.tensors(graph.inputs[0])[0].shape[1:]
    images = np.random.default_rng(0).standard_normal((40, *shape)).astype(np.float32)
    maps = keras_io.predict(tapped(graph, taps), (images,))[len(graph.outputs) :]
    expected = [values.var(tuple(range(values.ndim - 1))).mean() for values in maps]
    assert len(expected) == 2
    assert teacher.variances((images,)) == pytest.approx(expected, rel=1e-3)
    assert Teacher(graph, ()).variances((images,)) == []


def test_the_teacher_keeps_what_is_small_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helpers.graph_of(helpers.conv_net(filters=(4, 6)))
    taps = block_ends(graph, graph)
    shape = graph.tensors(graph.inputs[0])[0].shape[1:]
    images = np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32)
    teacher, rows = Teacher(graph, taps), np.array([3, 7])
    assert teacher.known(rows) == ()
    fresh = [np.asarray(x) for x in teacher([images[rows]], ())]
    teacher.keep((images,))
    known = teacher.known(rows)
    assert len(known) == 3
    for kept, run, passed in zip(known, fresh, teacher([images[rows]], known), strict=True):
        assert np.allclose(kept, run, atol=1e-5)
        assert passed is kept
    monkeypatch.setattr("lrfc.training.teacher.KEPT", 1_000)
    large = Teacher(graph, taps)
    large.keep((images,))
    assert large.known(rows) == ()


def test_the_task_loss_by_kind() -> None:
    rng = np.random.default_rng(0)
    logits, indices = (
        rng.standard_normal((8, 3)).astype(np.float32),
        rng.integers(0, 3, 8).astype(np.int32),
    )
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.mean(np.log(p[np.arange(8), indices]))
    usual = losses._usual
    assert float(usual((losses.Output("logits", 1),), (logits,), (indices,))) == pytest.approx(
        expected, rel=1e-4
    )
    assert float(usual((losses.Output("softmax", 1),), (p,), (indices,))) == pytest.approx(
        expected, rel=1e-4
    )
    q, truth = p[:, :1], (indices[:, None] > 0).astype(np.float32)
    binary = -np.mean(truth * np.log(q) + (1 - truth) * np.log(1 - q))
    assert float(
        usual((losses.Output("sigmoid", 1),), (q,), (truth[:, 0].astype(np.int32),))
    ) == pytest.approx(binary, rel=1e-4)
    assert float(
        usual((losses.Output("values", 1, 4.0),), (logits,), (logits + 2,))
    ) == pytest.approx(1.0, rel=1e-5)


def test_the_models_own_loss_survives_its_file(tmp_path: Path) -> None:
    model = helpers.two_inputs()
    model.compile(
        "adam",
        {"label": "categorical_crossentropy", "value": "mae"},
        loss_weights={"label": 1.0, "value": 3.0},
    )
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        graph = helpers.graph_of(keras_load.load(tmp_path / name))
        batch = helpers.random_inputs(graph, 8)
        taught = keras_io.predict(graph, batch)
        targets = (np.arange(8, dtype=np.int32) % 3, np.zeros((8, 1), np.float32))
        own = losses.task_loss(graph, outputs_of(graph, batch, targets), (taught, targets))
        expected = -np.mean(np.log(taught[0][np.arange(8), targets[0]])) + 3 * np.mean(
            np.abs(taught[1])
        )
        assert float(own(taught, targets)) == pytest.approx(expected, rel=1e-4)


def test_without_a_compiled_loss_the_usual_one_is_taken(tmp_path: Path) -> None:
    model = helpers.dense_net()
    model.save(tmp_path / "m.keras")
    graph = helpers.graph_of(keras_load.load(tmp_path / "m.keras"))
    assert graph.compiled is None
    assert losses.own_losses(graph) is None


def test_a_loss_that_cannot_be_deserialized_is_left_out(tmp_path: Path) -> None:
    import keras

    def own(a, b):
        return keras.ops.mean(a - b)

    model = helpers.dense_net()
    model.compile("sgd", own)
    model.save(tmp_path / "m.keras")
    assert helpers.graph_of(keras_load.load(tmp_path / "m.keras")).compiled is None


def test_a_loss_that_does_not_take_the_labels_is_named() -> None:
    model = helpers.dense_net(classes=4)
    model.compile("adam", "mse")
    graph = helpers.graph_of(model)
    batch = helpers.random_inputs(graph, 8)
    wrong = (np.zeros((8, 3), np.float32),)
    with pytest.raises(UsageError, match=r"mean_squared_error.*does not take these labels"):
        losses.task_loss(
            graph, (losses.Output("values", 1.0),), (keras_io.predict(graph, batch), wrong)
        )


# -- augmentation ----------------------------------------------------------------------------------


def picture_net(size: int = 24, channels: int = 3, seed: int = 0) -> Graph:
    return helpers.graph_of(helpers.conv_net(size, channels, filters=(4,), classes=3, seed=seed))


def test_flips_and_shifts_move_whole_images() -> None:
    images = np.random.default_rng(0).standard_normal((64, 24, 24, 3)).astype(np.float32)
    flipped = np.asarray(changed(images, np.array([1, 2], np.int32), flip=True, shift=False))
    which = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)]
    assert all(
        same or np.array_equal(a, b) for same, a, b in zip(which, flipped, images, strict=True)
    )
    assert 10 < sum(which) < 54
    shifted = np.asarray(changed(images, np.array([1, 2], np.int32), flip=False, shift=True))
    offsets = set()
    for a, b in zip(shifted, images, strict=True):
        found = [
            (i, j)
            for i in range(-3, 4)
            for j in range(-3, 4)
            if np.array_equal(a[3:-3, 3:-3], b[3 + i : 21 + i, 3 + j : 21 + j])
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 20
    again = np.asarray(changed(images, np.array([1, 2], np.int32), flip=False, shift=True))
    np.testing.assert_array_equal(shifted, again)


def chosen(graph: Graph, wanted: bool | None = None) -> Augmentation:
    return augmentation(
        graph,
        helpers.random_inputs(graph, 64),
        None,
        lambda batch: keras_io.predict(graph, batch),
        wanted=wanted,
    )


def test_only_natural_images_are_changed() -> None:
    assert not chosen(picture_net(20))
    assert not chosen(picture_net(28, channels=1))
    assert not chosen(helpers.graph_of(helpers.dense_net()))
    assert str(chosen(picture_net(28, channels=1), wanted=True)) == "flips and shifts"
    assert not chosen(picture_net(), wanted=False)
    with pytest.raises(UsageError, match="takes no images"):
        chosen(helpers.graph_of(helpers.dense_net()), wanted=True)


def test_a_change_under_which_the_class_changes_is_not_made() -> None:
    graph = picture_net()
    batch = helpers.random_inputs(graph, 64)

    def left(images):  # the class is where the mean is larger: left or right
        half = images[0].shape[2] // 2
        return (
            np.stack(
                [
                    images[0][:, :, :half].mean((1, 2, 3)),
                    images[0][:, :, half:].mean((1, 2, 3)),
                    np.full(64, -9.0),
                ],
                -1,
            ),
        )

    ramp = (
        np.linspace(-1, 1, 24, dtype=np.float32)[None, None, :, None]
        * np.where(np.arange(64) % 2, 1, -1)[:, None, None, None]
    )
    assert str(augmentation(graph, (batch[0] * 0 + ramp,), None, left)) == "shifts"
    total = augmentation(graph, batch, None, lambda images: (np.tile([1.0, 0.0, 0.0], (64, 1)),))
    assert str(total) == "flips and shifts"


def test_maps_do_not_move_with_their_images() -> None:
    import keras
    from keras import layers

    inputs = keras.Input((24, 24, 3))
    graph = helpers.graph_of(
        keras.Model(inputs, layers.Conv2D(2, 3, padding="same", name="map")(inputs))
    )
    assert not chosen(graph)
    with pytest.raises(UsageError, match=r"outputs.*are maps"):
        chosen(graph, wanted=True)


# -- mixtures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_mixtures_have_the_labels_of_both_in_their_shares(weighted: bool) -> None:
    import tensorflow as tf

    images = np.eye(6, dtype=np.float32) + 10 * np.arange(6, dtype=np.float32)[:, None]
    labels, weights = np.arange(6), np.arange(1, 7, dtype=np.float32)
    goal = ((tf.constant(labels),), (tf.constant(weights),) if weighted else ())
    seen = []
    for number in range(4):
        seed = tf.constant([0, number], tf.int32)
        (mixture,), ((own, own_shares), (other, other_shares)) = mixed(
            (tf.constant(images),), goal, seed
        )
        each = weights if weighted else np.ones(6)
        order = np.array(other[0])
        np.testing.assert_array_equal(own[0], labels)
        assert sorted(order) == list(labels)
        share = float(own_shares[0][0] / each[0])
        np.testing.assert_allclose(own_shares[0], share * each, rtol=1e-5)
        np.testing.assert_allclose(other_shares[0], (1 - share) * each[order], rtol=1e-4)
        expected = share * images + (1 - share) * images[order]
        np.testing.assert_allclose(mixture, expected, rtol=1e-5, atol=1e-5)
        seen.append(share)
    assert len(set(seen)) == 4
    assert all(0 <= share <= 1 for share in seen)


@pytest.mark.parametrize(
    ("recipe", "mixes"),
    [
        (Recipe(augment=True), True),
        (Recipe(augment=True, mixup=False), False),
        (Recipe(augment=False), False),
    ],
)
def test_only_augmented_images_are_mixed(recipe: Recipe, mixes: bool) -> None:
    graph = helpers.graph_of(helpers.conv_net(size=24))
    rng = np.random.default_rng(0)
    images, labels = rng.random((32, 24, 24, 3), np.float32), rng.integers(0, 5, 32)
    trainer = Trainer(graph, graph, Split((images,), (labels.astype(np.int32),)), recipe, 0)
    assert trainer.mixes is mixes
    first, again, other = (trainer.step(np.arange(16), 0.0, number) for number in (1, 1, 2))
    assert first == again
    assert (first != other) is (mixes or trainer.augmentation.flip)
