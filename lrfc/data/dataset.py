"""The samples of a build: training, validation and test splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.data import mapped
from lrfc.ir.batch import Batch, head


@dataclass(frozen=True)
class Split:
    """Samples: an array for each model input and, where there are labels, for each model output.

    ``inputs`` have the compact dtype of their source (uint8 images stay uint8). The code that runs
    a model (keras_io.compiled, a Runner) converts one batch at a time to the dtype of the input.
    ``targets`` of a model output of shape (batch, ..., C) are int32 class indices (N, ...) or
    float32 values (N, ..., C); with C = 1 the indices are 0 and 1. Arrays of large files and
    streams are mapped from disk (lrfc.data.mapped): read them in slices, never as a whole.
    ``weights``: float32 (N,), the weight of each sample in the loss of the task; None for equal
    ones.
    """

    inputs: Batch
    targets: Batch | None = None
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def head(self, count: int) -> Split:
        """Return the first samples, at most ``count``, as views of the same arrays."""
        targets = None if self.targets is None else head(self.targets, count)
        weights = None if self.weights is None else self.weights[:count]
        return Split(head(self.inputs, count), targets, weights)

    def take(self, rows: NDArray[np.intp]) -> Split:
        """Return the samples of the rows, in that order."""
        targets = None
        if self.targets is not None:
            targets = tuple(mapped.rows(y, rows) for y in self.targets)
        weights = None if self.weights is None else self.weights[rows]
        return Split(tuple(mapped.rows(x, rows) for x in self.inputs), targets, weights)


#: Up to so many samples in training and validation together, nothing is trained.
FEW = 64


@dataclass(frozen=True)
class Data:
    """The data of a build.

    ``train`` is for calibration and fine-tuning, ``validation`` for every choice, and ``test`` for
    the scores that are reported (the validation split where there is no test set). Training and
    validation samples are in a random order in which every head holds the classes in proportion.
    ``synthetic`` data are generated from the model: they serve for calibration only, and nothing is
    claimed about accuracy. ``notes``: lines for the log. ``preprocessing``: the known steps from
    the raw samples to these; a program that runs the model has to apply them too.
    """

    source: str
    train: Split
    validation: Split
    test: Split
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    preprocessing: str | None = None

    @property
    def few(self) -> bool:
        """Whether the samples suffice for closed-form solutions only, not for training."""
        others = () if self.validation is self.train else (self.validation,)
        return not self.synthetic and sum(map(len, (self.train, *others))) <= FEW

    @property
    def judged(self) -> bool:
        """Whether there are real samples to score on; with synthetic inputs, only a test set is."""
        return not (self.synthetic and self.test_is_validation)

    @property
    def test_is_validation(self) -> bool:
        """Whether the reported scores are read on the validation split."""
        return self.test is self.validation
