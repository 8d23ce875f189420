"""Accuracy, and which data have class labels."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.data import Split
from lrfc.metrics import accuracy, is_classification, labels

INPUTS = (np.zeros((4, 2), np.float32),)
INDICES = np.array([0, 2, 1, 2], np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[INDICES]
SCORES = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.5, 0.4, 0.1], [0.0, 0.0, 1.0]], np.float32)


def split(target: np.ndarray | None) -> Split:
    return Split(INPUTS, None if target is None else (target,))


@pytest.mark.parametrize("target", [INDICES, INDICES[:, None], ONE_HOT])
def test_labels_in_every_form(target) -> None:
    assert is_classification(split(target), 1, 3)
    assert labels(split(target)).tolist() == [0, 2, 1, 2]
    assert accuracy((SCORES,), split(target)) == 0.75


def test_a_single_value_is_the_probability_of_class_1() -> None:
    truth = split(np.array([0, 1, 1, 0], np.int32))
    assert is_classification(truth, 1, 1)
    assert accuracy((np.array([[0.1], [0.9], [0.4], [0.2]], np.float32),), truth) == 0.75


@pytest.mark.parametrize(
    ("target", "outputs", "classes"),
    [
        (None, 1, 3),
        (INDICES, 2, 3),
        (INDICES, 1, None),
        (ONE_HOT * 0.5, 1, 3),  # values
        (np.ones((4, 3), np.float32), 1, 3),  # several classes at once
        (ONE_HOT, 1, 4),
        (np.array([[0.5], [1.0], [2.0], [0.0]], np.float32), 1, 1),
    ],
)
def test_what_is_no_classification(target, outputs, classes) -> None:
    assert not is_classification(split(target), outputs, classes)


def test_labels_for_two_outputs_are_no_classification() -> None:
    assert not is_classification(Split(INPUTS, (INDICES, INDICES)), 1, 3)
