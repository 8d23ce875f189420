"""The fine-tune with the optimizer and the loss that the model was compiled with."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.data.dataset import Data, Split
from lrfc.errors import ModelError, UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import allowed
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.state import Progress, State
from lrfc.training import own, sample_weights
from lrfc.training.recipe import Recipe
from lrfc.training.trainer import Trainer

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((96, 6, 6, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 96).astype(np.int32)
TRAIN, OTHERS = (Split((IMAGES[rows],), (LABELS[rows],)) for rows in (slice(64), slice(64, 96)))
DATA = Data("made", TRAIN, OTHERS, OTHERS)


def compiled(optimizer: Any = "adam", loss: Any = "sparse_categorical_crossentropy") -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.1), name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    model = keras.Model(image, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))
    if optimizer is not None:
        model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def graph_of(model: Any) -> Graph:
    return keras_io.from_keras(model)


def optimizers() -> list[Any]:
    import keras

    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5)
    return [
        "adam",
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipnorm=1.0),
        keras.optimizers.AdamW(rate, weight_decay=0.1),
    ]


@pytest.mark.parametrize("number", range(3))
def test_steps_are_those_of_fit(number: int) -> None:
    model = compiled(optimizers()[number])
    graph = graph_of(model)
    recipe = Recipe(
        32,
        distillation=0,
        features=0,
        decay=0,
        clip=None,
        batchnorm="trained",
        training="compiled",
    )
    trainer = Trainer(graph, graph, DATA.train, replace(recipe, augment=False), 0)
    for start in (0, 32, 0):
        rows = np.arange(start, start + 32)
        loss = trainer.step(rows, 0.0, start)
        expected = model.train_on_batch(IMAGES[rows], LABELS[rows])[0]
        assert loss == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(trainer.weights(), model.get_weights(), strict=True):
        assert np.allclose(ours, theirs, atol=2e-5)


def test_the_rate_is_that_of_the_optimizer() -> None:
    import keras

    lines: list[str] = []
    graph = graph_of(compiled(keras.optimizers.SGD(0.0123)))
    state = State(graph, graph, DATA, 0, Progress(log=lines.append))
    tuning = FineTune(epochs=2, training="compiled")(state).fact(Tuning)
    assert tuning.learning_rate == pytest.approx(0.0123)
    assert tuning.losses[1] != tuning.losses[2]
    text = "\n".join(lines)
    assert "learning rate 0.012 (of the model's own optimizer), 0 feature maps" in text
    assert "augmentation: none" in text


def test_it_has_to_be_possible() -> None:
    import keras

    graph = graph_of(compiled())
    own.check(graph, DATA)
    with pytest.raises(UsageError, match="has no loss that can be restored"):
        own.check(graph_of(compiled(None)), DATA)
    without = graph_of(compiled())
    without.compiled = {**(without.compiled or {}), "optimizer": None}
    with pytest.raises(UsageError, match="has no optimizer that can be restored"):
        own.check(without, DATA)
    with pytest.raises(UsageError, match="no labels"):
        own.check(graph, replace(DATA, train=Split(DATA.train.inputs)))
    with pytest.raises(UsageError, match="averages the weights"):
        own.check(graph_of(compiled(keras.optimizers.Adam(use_ema=True))), DATA)


def test_a_build_says_so_before_it_explores(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(UsageError, match="has no loss that can be restored"):
        lrfc.build(
            compiled(None),
            data={"x": IMAGES, "y": LABELS},
            training="compiled",
            max_macs="50%",
            out=tmp_path / "out",
            progress=Progress(log=lines.append),
        )
    assert not [line for line in lines if line.startswith("ExploreLayers")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_optimizer_is_read_from_the_file(suffix: str, tmp_path: Path) -> None:
    import keras

    path = tmp_path / f"model{suffix}"
    compiled(keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)).save(path)
    graph = graph_of(keras_load.load(path))
    optimizer = own.Optimizer(graph, ())
    assert optimizer.learning_rate == pytest.approx(0.05)
    assert graph.compiled is not None
    assert graph.compiled["optimizer"]["config"]["nesterov"] is True
    assert graph.compiled["loss"] == "sparse_categorical_crossentropy"


def test_an_optimizer_that_is_not_registered_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import keras

    class Mine(keras.optimizers.SGD):
        """An optimizer of a user, which the file names and nothing registers."""

    path = tmp_path / "model.keras"
    compiled(Mine(0.1)).save(path)
    with caplog.at_level(logging.INFO, "lrfc.keras"):
        graph = graph_of(keras_load.load(path))
    assert graph.compiled is not None
    assert graph.compiled["optimizer"] is None
    assert graph.compiled["loss"] == "sparse_categorical_crossentropy"
    assert "the optimizer that the model was compiled with cannot be restored" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        "os.system",
        {"class_name": "system", "module": "os", "config": {}},
        {"class_name": "Adam", "module": "evil.optimizers", "config": {}},
        {"class_name": "LossScaleOptimizer", "module": "keras.optimizers", "config": {}},
        {
            "class_name": "Adam",
            "config": {"learning_rate": {"class_name": "Run", "module": "evil", "config": {}}},
        },
        {
            "class_name": "Adam",
            "config": {
                "learning_rate": {"class_name": "function", "module": "os", "config": "system"}
            },
        },
    ],
)
def test_a_file_names_no_code_as_its_optimizer(config: Any) -> None:
    with pytest.raises(ModelError):
        allowed.optimizer(config, "model.keras")


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "object", None])
def test_classes_that_weigh_the_same(loss: str | None) -> None:
    import keras

    rows = np.concatenate([np.flatnonzero(LABELS == 0), np.flatnonzero(LABELS == 1)[:5]])
    few = Split((IMAGES[rows],), (LABELS[rows],))
    crossentropy = keras.losses.SparseCategoricalCrossentropy() if loss == "object" else loss
    graph = graph_of(compiled(None if loss is None else "sgd", crossentropy))
    weights = sample_weights.balanced(few.targets)
    assert weights.mean() == pytest.approx(1)
    assert weights[LABELS[rows] == 0].sum() == pytest.approx(weights[LABELS[rows] == 1].sum())
    recipe = Recipe(
        64, distillation=0, features=0, decay=0, class_weights="balanced", augment=False
    )
    trainer = Trainer(graph, graph, few, recipe, 0)
    outputs = keras_io.predict(graph, few.inputs)[0]
    each = -np.log(outputs[np.arange(len(rows)), LABELS[rows]])
    loss_of_batch = trainer.step(np.arange(len(rows)), 0.0, 0)
    assert loss_of_batch == pytest.approx(float(np.mean(weights * each)), rel=1e-5)
    assert loss_of_batch != pytest.approx(float(np.mean(each)), rel=1e-2)


def test_class_weights_need_one_class_for_each_sample() -> None:
    for targets in (None, (LABELS, LABELS), (LABELS[:, None],), (LABELS.astype(np.float32),)):
        with pytest.raises(UsageError, match="one class number for each sample"):
            sample_weights.balanced(targets)


def test_weights_of_samples_count_in_the_loss_of_the_task() -> None:
    weights = np.linspace(0, 3, len(TRAIN)).astype(np.float32)
    weighted = replace(TRAIN, weights=weights)
    graph = graph_of(compiled())
    outputs = keras_io.predict(graph, TRAIN.inputs)[0]
    each = -np.log(outputs[np.arange(len(TRAIN)), LABELS[: len(TRAIN)]])
    plain = Recipe(64, distillation=0, features=0, decay=0, augment=False)
    for recipe, factor in (
        (plain, 1),
        (replace(plain, class_weights="balanced"), sample_weights.balanced(TRAIN.targets)),
    ):
        expected = weights * factor
        loss = Trainer(graph, graph, weighted, recipe, 0).step(np.arange(64), 0.0, 0)
        assert loss == pytest.approx(float(np.mean(expected * each)), rel=1e-5)


def test_weights_follow_their_samples() -> None:
    weights = np.arange(64, dtype=np.float32)
    split = replace(TRAIN, weights=weights)
    assert list(split.head(3).weights) == [0, 1, 2]
    assert list(split.take(np.array([5, 1])).weights) == [5, 1]
    assert split.take(np.array([5])).head(1).weights[0] == 5
