"""Validation samples that the original was trained on, and the score that is taken instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lrfc.data.dataset import Data, Split
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.state import Progress, State
from lrfc.training.augment import Augmentation
from lrfc.training.scoring import DIVERGENCE, UNSEEN, scorer
from lrfc.training.seen import seen
from tests import helpers
from tests.compression import explored, learnt

IMAGES = np.random.default_rng(0).integers(0, 256, (400, 24, 24, 3)).astype(np.uint8)
LABELS = np.random.default_rng(1).integers(0, 4, 400).astype(np.int32)
FLIPS = Augmentation((0,), flip=True)


@cache
def classifier() -> Graph:
    import keras
    from keras import layers

    image = keras.Input((24, 24, 3), name="image")
    x = layers.Dense(4, activation="softmax")(layers.Flatten()(image))
    return helpers.graph_of(keras.Model(image, x, name="classifier"))


def knowing(known: np.ndarray, elsewhere: float = 0.6) -> Callable[[Batch], Batch]:
    """A classifier that is sure of the labels of the images that it knows, and of no others."""
    by_image = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    learnt_by_heart = {IMAGES[row].tobytes() for row in known}

    def run(inputs: Batch) -> Batch:
        outputs = np.full((len(inputs[0]), 4), (1 - elsewhere) / 3, np.float32)
        for row, image in enumerate(np.asarray(inputs[0]).astype(np.uint8)):
            plain = image.tobytes()
            label = by_image.get(plain, by_image.get(image[:, ::-1].tobytes()))
            sure = 0.99 if plain in learnt_by_heart else elsewhere
            outputs[row] = (1 - sure) / 3
            outputs[row, label] = sure
        return (outputs,)

    return run


def data(test: slice | None = slice(300, 400)) -> Data:
    train, validation = (
        Split((IMAGES[rows],), (LABELS[rows],)) for rows in (slice(200), slice(200, 300))
    )
    last = validation if test is None else Split((IMAGES[test],), (LABELS[test],))
    return Data("made", train, validation, last)


def test_samples_that_the_original_knows_better_than_the_test_samples_were_seen() -> None:
    evidence = seen(classifier(), knowing(np.arange(300)), data(), Augmentation())
    assert evidence == "its loss on them is 0.01, on the test samples 0.51"


def test_samples_that_are_no_better_known_than_the_test_samples_were_not() -> None:
    for known in (np.arange(200), np.arange(400), np.arange(0)):
        assert seen(classifier(), knowing(known), data(), FLIPS) is None


def test_without_test_samples_the_augmentation_tells() -> None:
    by_heart = knowing(np.arange(300))
    evidence = seen(classifier(), by_heart, data(None), FLIPS)
    assert evidence is not None
    assert evidence.startswith("its loss on them is 0.01, when they are augmented 0.")
    assert seen(classifier(), knowing(np.arange(200)), data(None), FLIPS) is None
    assert seen(classifier(), by_heart, data(None), Augmentation()) is None


def test_no_claim_without_labels_or_on_made_up_inputs() -> None:
    known, by_heart = data(), knowing(np.arange(300))
    unlabelled = replace(known, validation=Split(known.validation.inputs))
    untested = replace(known, test=Split(known.test.inputs))
    for given in (unlabelled, untested, replace(known, synthetic=True)):
        assert seen(classifier(), by_heart, given, FLIPS) is None


def test_a_few_samples_prove_nothing() -> None:
    few = data()
    few = replace(few, validation=few.validation.head(2), test=few.test.head(2))
    probabilities = iter([[0.9, 0.2], [0.1, 0.9]])

    def run(inputs: Batch) -> Batch:
        labels = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
        outputs = np.zeros((2, 4), np.float32)
        for row, sure in enumerate(next(probabilities)):
            outputs[row] = (1 - sure) / 3
            outputs[row, labels[inputs[0][row].tobytes()]] = sure
        return (outputs,)

    assert seen(classifier(), run, few, Augmentation()) is None


@pytest.mark.parametrize("change", [FLIPS, Augmentation()])
def test_seen_samples_are_changed_and_compared_with_the_original(change: Augmentation) -> None:
    graph, by_heart = classifier(), knowing(np.arange(300))
    score = scorer(graph, by_heart, data(), None, change)
    assert score.measure == UNSEEN
    assert score.seen is not None
    read: list[np.ndarray] = []

    def run(inputs: Batch) -> Batch:
        read.append(np.asarray(inputs[0]))
        return (np.full((len(inputs[0]), 4), 0.25, np.float32),)

    assert score(run) == score(run) < 0
    assert np.array_equal(*read)
    assert not (read[0] == data().validation.inputs[0]).all((1, 2, 3)).all()
    assert score.text(-0.125) == "divergence 0.125 on changed samples"


def test_samples_that_were_not_seen_are_scored_by_the_metric() -> None:
    score = scorer(classifier(), knowing(np.arange(200)), data(), None, FLIPS)
    assert (score.measure, score.seen) == ("accuracy", None)
    assert score(knowing(np.arange(200))) == 1
    unlabelled = replace(data(), validation=Split(data().validation.inputs))
    assert scorer(classifier(), knowing(np.arange(200)), unlabelled).measure == DIVERGENCE


def test_indices_cannot_be_mixed() -> None:
    import keras
    from keras import layers

    words = keras.Input((5,), dtype="int32", name="words")
    x = layers.Dense(4, activation="softmax")(layers.Flatten()(layers.Embedding(9, 3)(words)))
    graph = helpers.graph_of(keras.Model(words, x, name="words"))
    tokens = np.random.default_rng(0).integers(0, 9, (200, 5)).astype(np.int32)
    splits = [
        Split((tokens[rows],), (LABELS[rows],))
        for rows in (slice(50), slice(50, 100), slice(100, 200))
    ]

    def run(inputs: Batch) -> Batch:
        sure = 0.97 if len(inputs[0]) == 50 else 0.4
        outputs = np.full((len(inputs[0]), 4), (1 - sure) / 3, np.float32)
        first = 50 if len(inputs[0]) == 50 else 100
        outputs[np.arange(len(outputs)), LABELS[first : first + len(outputs)]] = sure
        return (outputs,)

    score = scorer(graph, run, Data("words", *splits))
    assert score.measure == "accuracy"
    assert score.seen is not None


def overlearnt() -> State:
    """A trained network whose validation samples are among those that it was trained on."""
    state = learnt()
    train, unseen = state.data.train, state.data.validation
    split = replace(
        state.data, train=train.head(384), validation=train.take(np.arange(384, 512)), test=unseen
    )
    return replace(state, data=split)


def test_the_fine_tune_says_by_what_it_chose() -> None:
    from lrfc.config.build import Budget
    from lrfc.passes.factorize import Factorize
    from lrfc.passes.select_ranks import SelectRanks

    lines: list[str] = []
    state = explored(overlearnt())
    small = Factorize()(SelectRanks(max_macs=Budget(value=0.3, relative=True))(state))
    tuning = FineTune(epochs=2, batch=64)(replace(small, progress=Progress(log=lines.append))).fact(
        Tuning
    )
    assert tuning.measure == UNSEEN
    assert tuning.seen is not None
    assert f"the original was trained on the validation samples ({tuning.seen})" in "\n".join(lines)
    assert tuning.scores[tuning.best] == max(tuning.scores) > tuning.scores[0]
    assert all(score < 0 for score in tuning.scores)
    honest = scorer(state.original, keras_io.compiled(state.original), learnt().data)
    assert honest.seen is None
