"""A requested build with its data, and functions that run its passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrfc.config import build as options_
from lrfc.config.build import BuildConfig, Drop
from lrfc.data.dataset import Data
from lrfc.engine.destinations import Destination
from lrfc.engine.passes import until
from lrfc.engine.replay import Locked
from lrfc.engine.scorer import Scorer
from lrfc.metrics.metric import Metric
from lrfc.pipeline import name_of, plan, run
from lrfc.protocols import Pass
from lrfc.state import Fact, Progress, State


@dataclass(frozen=True)
class Job:
    """A requested build, with its data."""

    source: Path
    config: BuildConfig
    goals: tuple[Destination, ...]
    data: Data
    progress: Progress
    locked: Locked | None = None

    @property
    def max_drop(self) -> Drop | None:
        """Largest allowed drop: the user's; the default where there is none and no budget."""
        config = self.config
        if config.max_drop is not None or (config.objective is None and config.budgets):
            return config.max_drop
        return options_.DEFAULT_DROP


@dataclass(frozen=True)
class Explored:
    """The canonical graph with its DesignSpace, from which every destination starts.

    ``scorer``: None where there is nothing to read an accuracy on. ``ladder``: accuracy by stage,
    with the score of the original. ``seconds``: duration of the exploration.
    """

    state: State
    scorer: Scorer | None
    ladder: Mapping[str, float]
    seconds: float

    @property
    def metric(self) -> Metric | None:
        """The metric of the scores, if any."""
        return None if self.scorer is None else self.scorer.metric


def job_of(
    source: Path,
    config: BuildConfig,
    goals: Sequence[Destination],
    data: Data,
    progress: Progress,
    locked: Locked | None = None,
) -> Job:
    """The job of a build. Without enough data to train on, it has no fine-tune."""
    if data.synthetic and config.finetunes:
        accuracy = "nothing is claimed about accuracy"
        if data.judged:
            accuracy = "accuracy is read on the test samples"
        calibration = "calibrated and refitted on synthetic inputs, not fine-tuned"
        progress.log(f"no data: {calibration}, and {accuracy}")
        config = config.model_copy(update={"epochs": 0})
    if data.few:
        config = config.model_copy(update={"epochs": 0})
    return Job(source, config, tuple(goals), data, progress, locked)


def advanced(
    job: Job,
    state: State,
    passes: Sequence[Pass],
    known: Sequence[type[Fact]] = (),
    after: Callable[[Pass, State], None] = lambda step, state: None,
) -> State | None:
    """The state after the passes; None where the build stops after one of them."""

    def after_pass(step: Pass, now: State) -> None:
        if name_of(step) in job.config.print_after:
            job.progress.log(str(now.graph))
        after(step, now)

    steps, stops = until(passes, job.config.stop_after)
    state = run(state, plan(steps, known), after_pass)
    return None if stops else state
