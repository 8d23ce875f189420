"""The metrics, the default one, and the recognition of class labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrfc.data.dataset import Split
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op
from lrfc.metrics.metric import accuracy, is_classification, labels, metric
from tests import helpers

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


# -- metric ----------------------------------------------------------------------------------------


def outputs(*shapes: tuple[int, ...]) -> Graph:
    """A graph with outputs of those shapes."""
    g = Graph("outputs")
    g.outputs = tuple(
        g.add(Op(f"out{i}", "InputLayer", {"batch_shape": (None, *shape)}))
        for i, shape in enumerate(shapes)
    )
    return g


def test_accuracy_is_the_default_for_classes() -> None:
    chosen = metric(None, outputs((3,)), split(INDICES))
    assert (chosen.name, chosen.percent, chosen.higher_is_better) == ("accuracy", True, True)
    assert chosen.score((SCORES,), split(INDICES)) == 0.75
    assert chosen.per_sample((SCORES,), split(INDICES)).tolist() == [1, 1, 0, 1]
    assert chosen.shown(0.75) == "75.00 %"
    assert chosen.drop(0.75, 0.5) == 0.25
    assert chosen.better(0.75, 0.5)
    broken = np.where(np.arange(4)[:, None] == 0, np.nan, SCORES)
    # A sample whose class 0 would have been right is wrong as well.
    assert chosen.score((broken,), split(INDICES)) == 0.5


def test_the_squared_error_is_the_default_for_values() -> None:
    values = np.array([[0.0, 2.0], [2.0, 0.5], [0.5, 3.0], [1.0, 1.0]], np.float32)
    truth = split(values)
    chosen = metric(None, outputs((2,)), truth)
    assert (chosen.name, chosen.percent, chosen.higher_is_better) == (
        "mean squared error",
        False,
        False,
    )
    assert chosen.score((values + 0.5,), truth) == pytest.approx(0.25)
    assert chosen.per_sample((values + 0.5,), truth).tolist() == [0.25] * 4
    assert chosen.drop(0.1, 0.1 + 0.01 * values.var(0).mean()) == pytest.approx(
        0.01
    )  # a hundredth of what is to be explained
    assert chosen.drop_unit == "% of the variance of the labels"
    assert chosen.better(0.1, 0.2)
    assert metric("mse", outputs((3,)), split(INDICES)).score((ONE_HOT,), split(INDICES)) == 0


def test_fidelity_is_the_default_without_labels() -> None:
    graph = helpers.graph_of(helpers.dense_net())
    truth = Split(helpers.random_inputs(graph, 50))
    chosen = metric(None, graph, truth)
    (own,) = keras_io.predict(graph, truth.inputs)
    assert chosen.name == "fidelity to the original"
    assert chosen.score((own,), truth) == pytest.approx(1)
    assert chosen.score((np.broadcast_to(own.mean(0), own.shape),), truth) == pytest.approx(
        0, abs=1e-5
    )
    noise = 0.1 * own.std(0) * np.random.default_rng(0).standard_normal(own.shape)
    assert chosen.score((own + noise,), truth) == pytest.approx(0.99, abs=0.005)
    assert chosen.per_sample((own + noise,), truth).mean() == pytest.approx(
        chosen.score((own + noise,), truth)
    )
    with pytest.raises(UsageError, match="no labels"):
        metric("accuracy", graph, truth)


def test_segmentation() -> None:
    truth = Split(
        (np.zeros((2, 2, 2, 1)),), (np.array([[[0, 0], [1, 1]], [[0, 0], [2, 2]]], np.int32),)
    )
    scores = np.eye(4, dtype=np.float32)[np.array([[[0, 0], [1, 0]], [[0, 0], [2, 2]]])]
    graph = outputs((2, 2, 4))
    chosen = metric(None, graph, truth)
    assert chosen.name == "pixel accuracy"
    assert chosen.score((scores,), truth) == 7 / 8
    assert chosen.per_sample((scores,), truth).tolist() == [0.75, 1]
    iou = metric("miou", graph, truth)
    assert iou.score((scores,), truth) == pytest.approx(
        (4 / 5 + 1 / 2 + 1) / 3
    )  # class 3 occurs nowhere
    assert iou.per_sample((scores,), truth) is None
    binary = Split(truth.inputs, (np.array([[[0, 1], [1, 1]]], np.int32),))
    assert metric("miou", outputs((2, 2, 1)), binary).score(
        (np.array([[[[0.9], [0.9]], [[0.9], [0.9]]]]),), binary
    ) == pytest.approx(3 / 8)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_auc(classes: int) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth = rng.integers(0, max(classes, 2), 200).astype(np.int32)
    logits = rng.standard_normal((200, classes)) + (
        truth[:, None] == (np.arange(classes) if classes > 1 else 1)
    )
    one = Split((np.zeros((200, 1)),), (truth,))
    score = metric("auc", outputs((classes,)), one).score((logits,), one)
    if classes == 4:
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert score == pytest.approx(
            np.mean([roc_auc_score(truth == k, logits[:, k]) for k in range(4)])
        )
        assert abs(score - roc_auc_score(truth, softmax, multi_class="ovr")) < 0.05
    else:
        assert score == pytest.approx(roc_auc_score(truth, logits[:, -1]))
    same = Split((np.zeros((3, 1)),), (np.ones(3, np.int32),))
    with pytest.raises(UsageError, match="one class"):
        metric("auc", outputs((classes,)), same).score((np.zeros((3, classes)),), same)


def test_several_outputs() -> None:
    both = Split(INPUTS, (INDICES, 1 - INDICES % 2))
    chosen = metric(None, outputs((3,), (2,)), both)
    assert chosen.name == "accuracy, mean of 2 outputs"
    assert chosen.score((SCORES, np.eye(2)[1 - INDICES % 2]), both) == (0.75 + 1) / 2
    values = np.array([[1.0], [2.0], [3.0], [6.0]], np.float32)
    mixed = Split(INPUTS, (INDICES, values))
    joint = metric(None, outputs((3,), (1,)), mixed)
    assert joint.name == "mean of accuracy and R² over 2 outputs"
    assert joint.score((SCORES, values), mixed) == (0.75 + 1) / 2
    assert joint.score((SCORES, np.full((4, 1), 3.0)), mixed) == pytest.approx(0.75 / 2)
    with pytest.raises(UsageError, match="output 'out1' are values"):
        metric("accuracy", outputs((3,), (1,)), mixed)


def test_own_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_metrics.py").write_text(
        "def share(y, t): return (y.argmax(1) == t).mean()\n"
        "def apart(y, t): return abs(y[0]).mean() + abs(y[1] - t[1]).mean()\n"
        "def unlabelled(y, t): return 1.0 if t is None else 0.0\n"
        "def broken(y, t): return 'a\\nb' + 1\n",
        encoding="utf-8",
    )
    graph = outputs((3,))
    chosen = metric("own_metrics:share", graph, split(INDICES))
    assert (chosen.name, chosen.higher_is_better, chosen.percent) == (
        "own_metrics:share",
        True,
        False,
    )
    assert chosen.drop_unit == "% of the original's figure"
    assert chosen.score((SCORES,), split(INDICES)) == 0.75
    assert chosen.per_sample((SCORES,), split(INDICES)) is None
    lower = metric("own_metrics:apart:min", outputs((3,), (3,)), Split(INPUTS, (INDICES, ONE_HOT)))
    assert not lower.higher_is_better
    assert lower.score((0 * SCORES, ONE_HOT + 1), Split(INPUTS, (INDICES, ONE_HOT))) == 1
    assert lower.drop(2.0, 2.5) == 0.25
    assert metric("own_metrics:unlabelled", graph, split(None)).score((SCORES,), split(None)) == 1
    with pytest.raises(UsageError, match="failed with TypeError"):
        metric("own_metrics:broken", graph, split(INDICES)).score((SCORES,), split(INDICES))
    with pytest.raises(UsageError, match="no attribute 'absent'"):
        metric("own_metrics:absent", graph, split(INDICES))
    with pytest.raises(UsageError, match="--metric f1: give accuracy, miou"):
        metric("f1", graph, split(INDICES))
