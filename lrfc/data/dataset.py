"""Calibration, training, validation and test data: read, checked against the model, and split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.data import mapped as streams
from lrfc.ir.batch import Batch, head


@dataclass(frozen=True)
class Split:
    """Samples: one array per model input and, where there are labels, one per model output.

    ``inputs`` keep the compact dtype of their source (uint8 images stay uint8); what runs a model
    (keras_io.compiled, a Runner) converts one batch at a time to the dtype of the model's input.
    ``targets`` of a model output of shape (batch, ..., C) are int32 class indices (N, ...) when
    they have one axis less, and float32 values (N, ..., C) otherwise; C = 1 takes indices 0 and 1.
    Arrays of large files and streams are mapped from disk (lrfc.data.mapped): take slices of them,
    not the whole.
    """

    inputs: Batch
    targets: Batch | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def head(self, count: int) -> Split:
        """The first samples, at most ``count``, as views of the same arrays."""
        targets = None if self.targets is None else head(self.targets, count)
        return Split(head(self.inputs, count), targets)

    def take(self, rows: NDArray[np.intp]) -> Split:
        """The samples of those rows, in that order."""
        targets = (
            None if self.targets is None else tuple(streams.rows(y, rows) for y in self.targets)
        )
        return Split(tuple(streams.rows(x, rows) for x in self.inputs), targets)


#: A handful of samples: up to that many in training and validation together.
FEW = 64


@dataclass(frozen=True)
class Data:
    """What a build may look at.

    ``train`` is for calibration and fine-tuning, ``validation`` for every choice, ``test`` for the
    accuracies that are reported (the validation split when no test set was given,
    ``test_is_validation``). Training and validation samples stand in a random order of which every
    head holds the classes in proportion. ``synthetic`` data were made up from the model: they are
    for calibration only, and nothing is claimed about accuracy. ``notes`` are lines for the log.
    ``preprocessing`` is what was done to the samples before they were given, as far as is known: it
    belongs to the data, so whoever runs the model has to do it too.
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
        """Whether there is only a handful of samples: enough for what is solved in closed form, too little to train on."""
        own = () if self.validation is self.train else (self.validation,)
        return not self.synthetic and sum(map(len, (self.train, *own))) <= FEW

    @property
    def judged(self) -> bool:
        """Whether there are real samples to read a score on: also a build that is calibrated on made-up inputs may be given a test set."""
        return not (self.synthetic and self.test_is_validation)

    @property
    def test_is_validation(self) -> bool:
        """Whether the reported accuracies are read on the validation split."""
        return self.test is self.validation


# -- checking against the model --------------------------------------------------------------------


# -- splitting and overlap -------------------------------------------------------------------------
