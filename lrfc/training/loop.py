"""The loop of a training: train an epoch, score it on validation samples, keep the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Epoch:
    """The steps of one epoch.

    ``loss``: their mean, None when the epoch ended before its first step. ``stopped``: the reason
    to end the training here, None when it goes on.
    """

    loss: float | None
    stopped: str | None = None


@dataclass
class History:
    """The losses and validation scores of a training, and its best weights.

    Entry 0 is the network before the first epoch, which has no loss. ``best``: the entry of
    ``weights``. ``stopped``: the reason for an end before the last epoch.
    """

    scores: list[float]
    weights: list[NDArray[Any]]
    losses: list[float | None] = field(default_factory=lambda: [None])
    best: int = 0
    stopped: str | None = None

    def idle(self) -> int:
        """Epochs since the score or the loss was last better than in every epoch before."""
        losses = [math.inf if loss is None else loss for loss in self.losses]
        return len(losses) - 1 - max(int(np.argmax(self.scores)), int(np.argmin(losses)))


@dataclass(frozen=True)
class Loop:
    """A training of some epochs, of which the weights with the best validation score are kept.

    ``train`` takes the steps of one epoch, numbered from 1. ``score`` rates the current weights on
    the validation samples, higher is better, and ``text`` writes such a score; ``weights`` copies
    the current weights. ``loss_format`` is the format of a loss in the log.

    The training ends early when an epoch says so, or when neither score nor loss was better than
    ever before for ``patience`` epochs (None: never). ``remaining`` ends the line of an epoch, such
    as with the time left. ``record`` is called after each epoch and returns the reason to end
    there, None to go on; ``save`` is called after each epoch that another one follows.
    """

    epochs: int
    train: Callable[[int], Epoch]
    score: Callable[[], float]
    weights: Callable[[], list[NDArray[Any]]]
    text: Callable[[float], str]
    log: Callable[[str], None]
    loss_format: str = ".4f"
    patience: int | None = None
    remaining: Callable[[], str] = lambda: ""
    record: Callable[[History], str | None] = lambda history: None
    save: Callable[[History], None] = lambda history: None

    def start(self) -> History:
        """The history of a training before its first epoch."""
        return History([self.score()], self.weights())

    def run(self, history: History) -> None:
        """Train the epochs that the history does not have yet, and add them to it."""
        for number in range(len(history.scores), self.epochs + 1):
            epoch = self.train(number)
            history.stopped = epoch.stopped
            if epoch.loss is not None:
                self._add(history, epoch.loss)
            if history.stopped is not None:
                return
            if number < self.epochs:
                self.save(history)

    def log_best(self, history: History) -> None:
        """Log the epoch whose weights are kept, and the reason for an early end."""
        stopped = "" if history.stopped is None else f"stopped: {history.stopped}; "
        kept = f"epoch {history.best}" if history.best else "the weights before the first epoch"
        score = self.text(history.scores[history.best])
        self.log(f"  {stopped}kept: {kept}, validation {score}")

    def _add(self, history: History, loss: float) -> None:
        """Score an epoch with that mean loss, keep its weights if they are the best, and log."""
        number = len(history.scores)
        history.losses.append(loss)
        history.scores.append(self.score())
        if history.scores[-1] > history.scores[history.best]:
            weights = self.weights()
            # Broken weights are no improvement, even where class 0, which an output full of NaN
            # is read as, is the most frequent.
            if all(np.isfinite(array).all() for array in weights):
                history.best, history.weights = number, weights
        history.stopped = history.stopped or self.record(history)
        idle = self.patience is not None and history.idle() >= self.patience
        if history.stopped is None and number < self.epochs and idle:
            history.stopped = f"no better for {self.patience} epochs"
        remaining = self.remaining() if history.stopped is None else ""
        self.log(
            f"  epoch {number}/{self.epochs}: loss {loss:{self.loss_format}},"
            f" validation {self.text(history.scores[-1])}{remaining}"
        )
