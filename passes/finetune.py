"""Train the compressed model once, with the original as its teacher."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.state import Fact, State
from lrfc.training import rate
from lrfc.training.checkpoint import Checkpoint, Saved, fingerprint
from lrfc.training.scoring import scorer, shown
from lrfc.training.trainer import Recipe, Trainer


@dataclass(frozen=True)
class Tuning(Fact):
    """What each epoch gave: the mean training loss, and the validation score (higher is better); entry 0 is before the first epoch.

    The score is the metric of the data, with its sign changed where lower is better; without labels
    minus the divergence from the original's outputs. ``learning_rate``: the highest one.
    ``stopped``: why before the last epoch, if so.
    """

    about_graph: ClassVar[bool] = False

    losses: tuple[float | None, ...]
    scores: tuple[float, ...]
    best: int
    learning_rate: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    stopped: str | None = None


@dataclass(frozen=True)
class FineTune:
    """One run of distillation from the original (Hinton et al.

    2015, arXiv 1503.02531), with the task loss where there are labels.

    The loss is ``distillation`` · (distance of the outputs, softened by ``temperature``) + (1 −
    ``distillation``) · (task loss: the one that the model was compiled with, else by kind of
    output) + ``features`` · (distance of the feature maps at block ends). Without labels there is
    no task loss. Adam, with a warm-up and a cosine to 0; ``learning_rate`` None: found by short
    trials. ``decay`` acts on the product of a layer's factors. ``batchnorm``: statistics stay as
    they are, or follow the batches. ``augment`` None: flips and shifts for classifiers of natural
    images.

    It ends after ``epochs``, or ``time_budget`` seconds, whichever comes first (the cosine ends
    there too), or when for ``patience`` epochs neither the validation score nor the training loss
    was better than ever before. The weights of the best epoch by the score are kept, which may be
    those before the first: fine-tuning never ends worse than it began. ``metric``: see
    ``lrfc.metrics.metric.metric``.

    ``checkpoints``: a folder in which the state is kept after each epoch. The same training, killed
    and started again, goes on from there and ends the same. When it ends the file is removed.
    """

    epochs: int = 3
    time_budget: float | None = None
    batch: int | None = None
    learning_rate: float | None = None
    temperature: float = 2.0
    distillation: float = 0.7
    features: float = 1.0
    decay: float = 1e-2
    batchnorm: Literal["frozen", "trained"] = "frozen"
    augment: bool | None = None
    patience: int = 3
    metric: str | None = None
    checkpoints: Path | None = None

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Tuning,)
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("patience", 1)):
            if getattr(self, name) < low:
                raise UsageError(
                    f"fine-tuning with {name}={getattr(self, name)}: give at least {low}"
                )
        if self.time_budget is not None and not self.time_budget > 0:
            raise UsageError(f"fine-tuning within {self.time_budget} seconds: give more than 0")
        if not 0 <= self.distillation <= 1:
            raise UsageError(
                f"fine-tuning with distillation={self.distillation}: give a share between 0 and 1"
            )

    def __call__(self, state: State) -> State:
        """The state with the trained weights and its Tuning."""
        recipe = Recipe(
            self.batch,
            self.temperature,
            self.distillation,
            self.features,
            self.decay,
            1.0,
            self.batchnorm,
            self.augment,
        )
        trainer = Trainer(state.graph, state.original, state.data.train, recipe, state.seed)
        run = _Run(self, state, trainer)
        try:
            tuning, weights = run()
            return state.with_graph(trainer.absorbed(weights)).with_fact(tuning)
        finally:
            del run, trainer
            gc.collect()  # models and compiled functions are cycles of references, and hold far more memory than Python's collector knows


class _Run:
    """One fine-tuning: where it stands, and how it goes on."""

    def __init__(self, options: FineTune, state: State, trainer: Trainer) -> None:
        self._options, self._trainer, self._progress, self._seed = (
            options,
            trainer,
            state.progress,
            state.seed,
        )
        self._start = time.perf_counter()
        self._score = scorer(state.original, trainer.teach, state.data.validation, options.metric)
        self._shown = shown(state.original, state.data.validation, options.metric)
        self._checkpoint: Checkpoint | None = None
        if options.checkpoints is not None:
            told = (options.epochs, options.time_budget, recipe_of(options), state.seed)
            print_ = fingerprint(
                state.graph, state.original, state.data.train, state.data.validation, told
            )
            self._checkpoint = Checkpoint(options.checkpoints, print_, state.progress.log)
        self._losses: list[float | None] = [None]
        self._scores = [self._score(trainer.run)]
        self._best, self._weights = 0, trainer.weights()
        self._step, self._rate = 0, 0.0
        self._stopped: str | None = None
        self._reserve = (
            time.perf_counter() - self._start
        )  # the last score takes as long as the first
        self._report: Callable[[int], None] = lambda steps: None
        self._told = 0

    def __call__(self) -> tuple[Tuning, list[NDArray[Any]]]:
        options, trainer = self._options, self._trainer
        if trainer.trainable and options.epochs and trainer.steps:
            if not self._resumed():
                self._choose_rate()
            self._report = self._progress.stage(
                "fine-tune",
                self._total if options.time_budget is None else max(1, round(options.time_budget)),
            )
            self._tell()
            for epoch in range(len(self._scores), options.epochs + 1):
                if self._done() >= 1:
                    self._stopped = "time"
                if self._stopped is not None:
                    break
                self._epoch(epoch)
            self._tell(finished=True)
            if self._checkpoint is not None:
                self._checkpoint.remove()
            why = "" if self._stopped is None else f"stopped: {self._stopped}; "
            self._progress.log(
                f"  {why}kept:"
                f" {'the weights before the first epoch' if self._best == 0 else f'epoch {self._best}'},"
                f" {self._last(self._best)}"
            )
        seconds = time.perf_counter() - self._start
        tuning = Tuning(
            tuple(self._losses),
            tuple(self._scores),
            self._best,
            self._rate,
            self._step,
            seconds,
            self._stopped,
        )
        return tuning, self._weights

    @property
    def _total(self) -> int:
        return self._trainer.steps * self._options.epochs

    def _done(self) -> float:
        """The share of the training that is over, by steps or by time, whichever is more."""
        by_steps = self._step / self._total
        if self._options.time_budget is None:
            return by_steps
        left = self._options.time_budget - self._reserve
        return max(by_steps, (time.perf_counter() - self._start) / left if left > 0 else 1.0)

    def _choose_rate(self) -> None:
        trainer, options = self._trainer, self._options
        steps = self._total
        if options.time_budget is not None and self._done() < 1:
            left = options.time_budget - self._reserve - (time.perf_counter() - self._start)
            steps = min(steps, max(1, int(left / trainer.seconds_per_step())))
        how = "given"
        self._rate = options.learning_rate or 0.0
        if options.learning_rate is None:
            self._rate, tried = trainer.find_rate(steps)
            how = f"the best of {tried} tried"
        self._progress.log(
            f"  {steps:,} steps of {trainer.batch} samples, learning rate {self._rate:.2g} ({how}),"
            f" {trainer.maps} feature maps, augmentation: {trainer.augmentation}"
        )

    def _epoch(self, epoch: int) -> None:
        trainer = self._trainer
        total, count = 0.0, 0
        for rows in trainer.epoch(epoch):
            done = self._done()
            if done >= 1:
                self._stopped = "time"
                break
            loss = trainer.step(rows, self._rate * rate.annealed(done), self._step)
            self._step += 1
            self._tell()
            if not math.isfinite(loss):
                self._stopped = "the loss is no longer a number"
                break
            total, count = total + loss * len(rows), count + len(rows)
        if not count:
            return
        self._losses.append(total / count)
        self._scores.append(self._score(trainer.run))
        # Broken weights are no improvement, even where class 0, the guess of an output full of NaN,
        # is the most frequent.
        if self._scores[-1] > self._scores[self._best]:
            weights = trainer.weights()
            if all(np.isfinite(w).all() for w in weights):
                self._best, self._weights = epoch, weights
        if (
            self._stopped is None
            and epoch < self._options.epochs
            and self._idle() >= self._options.patience
        ):
            self._stopped = f"no better for {self._options.patience} epochs"
        left = (time.perf_counter() - self._start) * (1 / max(self._done(), 1e-9) - 1)
        tail = f", {_minutes(left)} left" if self._stopped is None and self._done() < 1 else ""
        self._progress.log(
            f"  epoch {epoch}/{self._options.epochs}: loss {self._losses[-1]:.4f},"
            f" {self._last(-1)}{tail}"
        )
        if self._checkpoint is not None and self._stopped is None and epoch < self._options.epochs:
            self._save()

    def _idle(self) -> int:
        """Epochs since the score or the loss was last better than ever before."""
        losses = [math.inf if loss is None else loss for loss in self._losses]
        return len(losses) - 1 - max(int(np.argmax(self._scores)), int(np.argmin(losses)))

    def _last(self, index: int) -> str:
        return f"validation {self._shown(self._scores[index])}"

    def _tell(self, *, finished: bool = False) -> None:
        """Move the progress bar to where the training is."""
        whole = (
            self._total
            if self._options.time_budget is None
            else max(1, round(self._options.time_budget))
        )
        now = whole if finished else min(whole, round(whole * self._done()))
        if now > self._told:
            self._report(now - self._told)
            self._told = now

    # -- going on where another left off -----------------------------------------------------------

    def _save(self) -> None:
        assert self._checkpoint is not None
        numbers = {
            "losses": self._losses,
            "scores": self._scores,
            "best": self._best,
            "step": self._step,
            "rate": self._rate,
            "seconds": time.perf_counter() - self._start,
        }
        self._checkpoint.write(Saved(numbers, self._trainer.state(), self._weights))

    def _resumed(self) -> bool:
        saved = None if self._checkpoint is None else self._checkpoint.read()
        if saved is None:
            return False
        self._trainer.restore(saved.state)
        numbers = saved.numbers
        self._losses, self._scores, self._best = (
            numbers["losses"],
            numbers["scores"],
            numbers["best"],
        )
        self._step, self._rate, self._weights = numbers["step"], numbers["rate"], saved.best
        self._start -= numbers["seconds"]
        self._progress.log(
            f"  resumed after epoch {len(self._scores) - 1}/{self._options.epochs},"
            f" {self._last(-1)}"
        )
        return True


def recipe_of(options: FineTune) -> str:
    """The options that a training depends on, as text: all but where it is kept."""
    return repr([(name, value) for name, value in vars(options).items() if name != "checkpoints"])


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
