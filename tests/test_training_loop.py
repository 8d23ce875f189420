"""The training loop on a network of one number: which weights are kept, when it ends, its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrfc.training.loop import Epoch, History, Loop


class Fake:
    """A network whose scores and losses by epoch are given; its weight is the epoch's number."""

    def __init__(self, scores: Sequence[float], losses: Sequence[float | None]) -> None:
        self._scores, self._losses = scores, losses
        self.epoch = 0
        self.broken: set[int] = set()
        self.stopped: dict[int, str] = {}
        self.lines: list[str] = []
        self.saved: list[int] = []

    def train(self, number: int) -> Epoch:
        self.epoch = number
        return Epoch(self._losses[number - 1], self.stopped.get(number))

    def weights(self) -> list[np.ndarray[Any, Any]]:
        return [np.array(np.nan if self.epoch in self.broken else self.epoch)]

    def loop(self, **options: Any) -> Loop:
        return Loop(
            epochs=len(self._losses),
            train=self.train,
            score=lambda: self._scores[self.epoch],
            weights=self.weights,
            text=lambda score: f"score {score:g}",
            log=self.lines.append,
            save=lambda history: self.saved.append(len(history.scores) - 1),
            **options,
        )

    def run(self, **options: Any) -> History:
        loop = self.loop(**options)
        history = loop.start()
        loop.run(history)
        loop.log_best(history)
        return history


def test_the_weights_of_the_best_score_are_kept():
    fake = Fake([0.5, 0.4, 0.8, 0.8, 0.7], [4, 3, 2, 1])
    history = fake.run()
    assert history.weights == [2]
    assert history.best == 2  # the first of equals
    assert history.scores == [0.5, 0.4, 0.8, 0.8, 0.7]
    assert history.losses == [None, 4, 3, 2, 1]
    assert fake.saved == [1, 2, 3]  # nothing follows the last one
    assert fake.lines[0] == "  epoch 1/4: loss 4.0000, validation score 0.4"
    assert fake.lines[-1] == "  kept: epoch 2, validation score 0.8"


def test_the_weights_before_the_first_epoch_may_be_the_best():
    fake = Fake([0.5, 0.4], [1])
    assert fake.run(loss_format=".4g", remaining=lambda: ", 3 s left").weights == [0]
    assert fake.lines == [
        "  epoch 1/1: loss 1, validation score 0.4, 3 s left",
        "  kept: the weights before the first epoch, validation score 0.5",
    ]


def test_weights_that_are_not_finite_never_count():
    fake = Fake([0.5, 0.9, 0.6], [2, 1])
    fake.broken = {1}
    history = fake.run()
    assert (history.best, history.weights) == (2, [2])


def test_no_better_score_and_no_better_loss_end_it():
    fake = Fake([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], [3, 2, 2, 2, 2])
    history = fake.run(patience=2, remaining=lambda: ", 3 s left")
    assert history.stopped == "no better for 2 epochs"
    assert len(history.scores) == 5  # the loss of epoch 2 was the last progress
    assert fake.saved == [1, 2, 3]
    assert fake.lines[-2] == "  epoch 4/5: loss 2.0000, validation score 0.4"
    assert fake.lines[-1].startswith("  stopped: no better for 2 epochs; kept: ")
    assert len(Fake([0.5, 0.4, 0.4, 0.4], [2, 2, 2]).run().scores) == 4


def test_an_epoch_can_end_it():
    fake = Fake([0.5, 0.6, 0.7], [2, 1])
    fake.stopped = {1: "time"}
    history = fake.run()
    assert (history.scores, history.stopped, fake.saved) == ([0.5, 0.6], "time", [])
    fake = Fake([0.5, 0.6, 0.7], [2, None])  # over before its first step
    fake.stopped = {2: "time"}
    assert fake.run().scores == [0.5, 0.6]


def test_a_history_is_continued():
    fake = Fake([0.5, 0.6, 0.7, 0.65], [3, 2, 1])
    history = History([0.5, 0.6], [np.array(1)], [None, 3], 1)
    fake.loop().run(history)
    assert history.scores == [0.5, 0.6, 0.7, 0.65]
    assert (history.best, history.weights) == (2, [2])
