"""Calibration, training, validation and test data."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.state import Batch


@dataclass(frozen=True)
class Split:
    """Samples in memory: one array per model input and, where there are labels, one per model output (class indices or values)."""

    inputs: Batch
    targets: Batch | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True)
class Data:
    """What a build may look at.

    ``train`` is for calibration and fine-tuning, ``validation`` for every choice, ``test`` for the accuracies that are reported (the validation split
    when no test set was given, ``test_is_validation``). ``synthetic`` data were made up from the model: they are for calibration only, and nothing
    is claimed about accuracy.
    """

    source: str
    train: Split
    validation: Split
    test: Split
    synthetic: bool = False

    @property
    def test_is_validation(self) -> bool:
        """Whether the reported accuracies are read on the validation split."""
        return self.test is self.validation
