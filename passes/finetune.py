"""Train the compressed model once, with the original as its teacher."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.state import Fact, State
from lrfc.training import own, rate
from lrfc.training.callbacks import Callbacks
from lrfc.training.checkpoint import Checkpoint, Saved, fingerprint
from lrfc.training.loop import Epoch, History, Loop
from lrfc.training.recipe import Recipe
from lrfc.training.scoring import scorer
from lrfc.training.tensorboard import Board
from lrfc.training.trainer import Trainer


@dataclass(frozen=True)
class Tuning(Fact):
    """The mean training loss and the validation score of each epoch.

    Entry 0 is the network before the first epoch, which has no loss. A score is the metric of the
    data, with its sign changed where lower is better; without labels it is minus the divergence
    from the original's outputs. ``best``: the entry whose weights were kept. ``learning_rate``: the
    highest one. ``stopped``: the reason for an end before the last epoch, None without one.
    ``measure``: what the scores are; ``seen``: the evidence that the original was trained on the
    validation samples, None without any (``lrfc.training.scoring.scorer``).
    """

    about_graph: ClassVar[bool] = False

    losses: tuple[float | None, ...]
    scores: tuple[float, ...]
    best: int
    learning_rate: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    measure: str | None = None
    seen: str | None = None


@dataclass(frozen=True)
class FineTune(Recipe):
    """Distillation from the original, with the task loss where there are labels.

    Hinton et al. 2015, arXiv 1503.02531. The options of the steps are those of a Recipe.

    The optimizer is Adam, with a warm-up and a cosine to 0; with ``learning_rate`` None, short
    trials choose the rate. ``training`` 'compiled': as the model was compiled, with its own
    optimizer, learning rate and loss, without a teacher; BatchNorm follows the batches, and images
    are augmented only if ``augment`` says so. UsageError where it was not compiled
    (``lrfc.training.own.check``).

    The training ends after ``epochs`` or ``time_budget`` seconds, whichever comes first (the cosine
    ends there too), or when for ``patience`` epochs neither the validation score nor the training
    loss was better than ever before. The weights with the best score are kept, which may be those
    before the first epoch: the score never falls. ``metric``: see ``lrfc.metrics.metric.metric``.
    ``as_needed``: a network whose score is no lower than the original's is not trained.

    ``log_dir``: a folder for loss, score and learning rate by epoch, as TensorBoard reads them.
    ``checkpoints``: a folder for the state after each epoch. The same training, killed and started
    again, continues from there with the same result. The file is removed at the end.

    The callbacks of ``state.progress`` are called as ``model.fit`` calls them, with the score of an
    epoch as ``val_`` and the first word of what it measures: val_accuracy, val_divergence.
    """

    epochs: int = 3
    as_needed: bool = False
    time_budget: float | None = None
    learning_rate: float | None = None
    patience: int = 3
    metric: str | None = None
    log_dir: Path | None = None
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
        """Return the state with the trained weights and the Tuning."""
        trainer = Trainer(
            state.graph, state.original, state.data.train, self._recipe(state), state.seed
        )
        run = _Run(self, state, trainer)
        try:
            tuning, weights = run()
            graph = trainer.absorbed(weights) if tuning.best else state.graph
            return state.with_graph(graph).with_fact(tuning)
        finally:
            del run, trainer
            # Models and compiled functions are cycles of references, and hold far more memory than
            # Python's collector knows.
            gc.collect()

    def _recipe(self, state: State) -> Recipe:
        """The options of the steps: nothing is added to a loss that the model was compiled with."""
        if not self.as_compiled:
            return self
        own.check(state.original, state.data)
        return replace(
            self,
            distillation=0.0,
            features=0.0,
            decay=0.0,
            clip=None,
            batchnorm="trained",
            augment=bool(self.augment),
        )


class _Run:
    """One fine-tuning, with its clock, progress bar and checkpoint."""

    def __init__(self, options: FineTune, state: State, trainer: Trainer) -> None:
        self._options, self._trainer, self._progress = options, trainer, state.progress
        self._start = time.perf_counter()
        self._scorer = score = scorer(
            state.original, trainer.teach, state.data, options.metric, trainer.augmentation
        )
        self._text = score.text
        self._checkpoint = _checkpoint(options, state)
        self._loop = Loop(
            epochs=options.epochs,
            train=self._epoch,
            score=lambda: score(trainer.run),
            weights=trainer.weights,
            text=self._text,
            log=state.progress.log,
            patience=options.patience,
            remaining=self._remaining,
            record=self._record,
            save=self._save,
        )
        self._board = None if options.log_dir is None else Board(options.log_dir)
        self._callbacks = Callbacks(
            state.progress.callbacks, trainer.model, epochs=options.epochs, steps=trainer.steps
        )
        self._history = self._loop.start()
        self._step, self._rate = 0, 0.0
        # The last score takes as long as the first.
        self._reserve = time.perf_counter() - self._start
        self._report: Callable[[int], None] = lambda steps: None
        self._reported = 0

    def __call__(self) -> tuple[Tuning, list[NDArray[Any]]]:
        able = self._trainer.trainable and self._options.epochs and self._trainer.steps
        if able and not self._needless():
            self._train()
        history = self._history
        tuning = Tuning(
            tuple(history.losses),
            tuple(history.scores),
            history.best,
            self._rate,
            self._step,
            time.perf_counter() - self._start,
            history.stopped,
            self._scorer.measure,
            self._scorer.seen,
        )
        return tuning, history.weights

    def _needless(self) -> bool:
        """Whether the training is only for what was lost, and by the score nothing was."""
        if not self._options.as_needed:
            return False
        now, original = self._history.scores[0], self._scorer(self._trainer.teach)
        if now < original:
            return False
        score, best = map(self._text, (now, original))
        self._progress.log(f"  not trained: validation {score}, and {best} before compression")
        return True

    def _train(self) -> None:
        if not self._resumed():
            self._choose_rate()
        if self._scorer.seen is not None:
            self._progress.log(
                "  the original was trained on the validation samples"
                f" ({self._scorer.seen}): epochs are chosen by the {self._scorer.measure}"
            )
        self._report = self._progress.stage("fine-tune", self._length)
        self._advance()
        self._callbacks.begin()
        self._loop.run(self._history)
        self._callbacks.end()
        self._advance(finished=True)
        if self._checkpoint is not None:
            self._checkpoint.remove()
        self._loop.log_best(self._history)

    @property
    def _total(self) -> int:
        """The steps of all epochs."""
        return self._trainer.steps * self._options.epochs

    @property
    def _length(self) -> int:
        """The length of the progress bar: in seconds with a time budget, otherwise in steps."""
        budget = self._options.time_budget
        return self._total if budget is None else max(1, round(budget))

    def _done(self) -> float:
        """The share of the training that is over, by steps or by time, whichever is more."""
        by_steps = self._step / self._total
        if self._options.time_budget is None:
            return by_steps
        left = self._options.time_budget - self._reserve
        return max(by_steps, (time.perf_counter() - self._start) / left if left > 0 else 1.0)

    @property
    def _rate_now(self) -> float:
        """The learning rate of the next step."""
        rate_of_own = self._trainer.own_rate
        return self._rate * rate.annealed(self._done()) if rate_of_own is None else rate_of_own

    def _choose_rate(self) -> None:
        trainer, options = self._trainer, self._options
        steps = self._total
        if options.time_budget is not None and self._done() < 1:
            left = options.time_budget - self._reserve - (time.perf_counter() - self._start)
            steps = min(steps, max(1, int(left / trainer.seconds_per_step())))
        self._rate, how = options.learning_rate or 0.0, "given"
        if trainer.own_rate is not None:
            self._rate, how = trainer.own_rate, "of the model's own optimizer"
        elif options.learning_rate is None:
            self._rate, tried = trainer.find_rate(steps)
            how = f"the best of {tried} tried"
        self._progress.log(
            f"  {steps:,} steps of {trainer.batch} samples, learning rate {self._rate:.2g} ({how}),"
            f" {trainer.maps} feature maps, augmentation: {trainer.augmentation}"
            f"{', mixed in pairs' if trainer.mixes else ''}"
        )

    def _epoch(self, number: int) -> Epoch:
        total, count = 0.0, 0
        stopped: str | None = None
        self._callbacks.epoch_begin(number - 1)
        for step, rows in enumerate(self._trainer.epoch(number)):
            done = self._done()
            if done >= 1:
                stopped = "time"
                break
            self._callbacks.step_begin(step)
            loss = self._trainer.step(rows, self._rate_now, self._step)
            self._step += 1
            self._callbacks.step_end(step, loss)
            self._advance()
            if not math.isfinite(loss):
                stopped = "the loss is no longer a number"
                break
            total, count = total + loss * len(rows), count + len(rows)
        return Epoch(total / count if count else None, stopped)

    def _remaining(self) -> str:
        """The time left, as the end of a line in the log."""
        done = self._done()
        if done >= 1:
            return ""
        seconds = (time.perf_counter() - self._start) * (1 / max(done, 1e-9) - 1)
        return f", {_duration(seconds)} left"

    def _advance(self, *, finished: bool = False) -> None:
        """Move the progress bar to the share of the training that is over."""
        length = self._length
        position = length if finished else min(length, round(length * self._done()))
        if position > self._reported:
            self._report(position - self._reported)
            self._reported = position

    def _record(self, history: History) -> str | None:
        """Give the figures of the last epoch to TensorBoard and to the callbacks.

        Returns the reason to end there, None to go on.
        """
        number = len(history.scores) - 1
        score, measure = self._scorer.sign * history.scores[-1], self._scorer.measure
        loss = history.losses[-1]
        losses = {} if loss is None else {"loss": loss}
        if self._board is not None:
            values = {f"validation {measure}": score, "learning rate": self._rate_now}
            self._board.write(number, values | losses)
        self._callbacks.epoch_end(number - 1, losses | {f"val_{measure.split()[0]}": score})
        return "a callback said so" if self._callbacks.stopped else None

    # -- checkpoints -------------------------------------------------------------------------------

    def _save(self, history: History) -> None:
        if self._checkpoint is None:
            return
        numbers = {
            "losses": history.losses,
            "scores": history.scores,
            "best": history.best,
            "step": self._step,
            "rate": self._rate,
            "seconds": time.perf_counter() - self._start,
        }
        self._checkpoint.write(Saved(numbers, self._trainer.state(), history.weights))

    def _resumed(self) -> bool:
        """Continue from the checkpoint; False when there is none."""
        saved = None if self._checkpoint is None else self._checkpoint.read()
        if saved is None:
            return False
        self._trainer.restore(saved.state)
        numbers = saved.numbers
        self._history = History(numbers["scores"], saved.best, numbers["losses"], numbers["best"])
        self._step, self._rate = numbers["step"], numbers["rate"]
        self._start -= numbers["seconds"]
        scores = self._history.scores
        self._progress.log(
            f"  resumed after epoch {len(scores) - 1}/{self._options.epochs},"
            f" validation {self._text(scores[-1])}"
        )
        return True


def _checkpoint(options: FineTune, state: State) -> Checkpoint | None:
    """The checkpoint of this training; None without a folder for it."""
    if options.checkpoints is None:
        return None
    digest = fingerprint(
        state.graph,
        state.original,
        state.data.train,
        state.data.validation,
        (options.epochs, options.time_budget, _options_text(options), state.seed),
    )
    return Checkpoint(options.checkpoints, digest, state.progress.log)


def _options_text(options: FineTune) -> str:
    """The options that decide the result of a training: all but the folders of what it writes."""
    folders = ("checkpoints", "log_dir")
    return repr([(name, value) for name, value in vars(options).items() if name not in folders])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
