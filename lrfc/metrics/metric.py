"""What a model's outputs are worth: accuracy, mean IoU, AUC, squared error, fidelity to the original, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.config import trust
from lrfc.config.build import METRICS
from lrfc.data import readers as sources
from lrfc.data.dataset import Split
from lrfc.errors import UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.system import reader
from lrfc.text import score


@dataclass(frozen=True, eq=False)
class Metric:
    """How good outputs are, one figure a split.

    ``name`` is what a report says. ``percent``: the figure is a share (1 is perfect) and is shown
    in percent; a drop is a difference in points. Other figures are in units of their own, and a
    drop is a share of ``unit``, or of the figure before where ``unit`` is None.
    """

    name: str
    percent: bool
    higher_is_better: bool
    values: Callable[[Batch, Split], NDArray[np.float64]]
    paired: bool = True
    unit: float | None = None

    def score(self, outputs: Batch, split: Split) -> float:
        """The figure for the model's outputs (one array of N samples each) on that split."""
        return float(np.mean(self.values(outputs, split)))

    def per_sample(self, outputs: Batch, split: Split) -> NDArray[np.float64] | None:
        """What each sample adds, (N,), for paired tests; its mean is the score.

        None when the figure is no mean over samples (AUC, IoU, functions).
        """
        return self.values(outputs, split) if self.paired else None

    def drop(self, before: float, after: float) -> float:
        """How much worse ``after`` is, positive when it is: in points of 1 for shares, otherwise as a share of ``unit`` or of the figure before."""
        worse = before - after if self.higher_is_better else after - before
        if self.percent:
            return worse
        scale = abs(before) if self.unit is None else self.unit
        return worse / max(scale, 1e-12)

    @property
    def drop_unit(self) -> str:
        """What stands behind a hundredfold drop."""
        if self.percent:
            return "pp"
        return (
            "% of the original's figure" if self.unit is None else "% of the variance of the labels"
        )

    def shown(self, value: float) -> str:
        """The figure as text: '91.25 %' or '0.0312'."""
        return score(value, percent=self.percent)

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is better than ``other``."""
        return one > other if self.higher_is_better else one < other


def metric(name: str | None, graph: Graph, split: Split) -> Metric:
    """The metric of that name for that original and data like ``split``.

    None chooses: accuracy where every output has class labels (of images' pixels too), the mean
    squared error where every output has values, the mean of accuracies and R² where some have this
    and some that, and fidelity without labels. 'accuracy', 'miou' (mean intersection over union of
    the classes that occur), 'auc' (area under the ROC curve, one class against the rest;
    scikit-learn), 'mse', 'fidelity' (R² of the outputs against the original's: 1 − Σ‖a − b‖² / Σ‖a
    − ā‖², 1 where they are the same). With several outputs a figure is the plain mean over them,
    and its name says so.

    'module:function' is called with (outputs, targets), both arrays (N, ...), tuples of arrays in
    the model's order when it has several outputs, targets None without labels; it returns a number,
    the higher the better. 'module:function:min': the lower the better. UsageError when a metric
    does not fit the labels.
    """
    if name is None:
        name = _usual(graph, split)
    own = trust.METRIC.fullmatch(name)
    if own is not None:
        return _own(name, own["function"], higher=own["way"] != "min")
    if name not in (*METRICS, "mixed"):
        raise UsageError(
            f"--metric {name}: give {', '.join(METRICS)}, module:function (higher is better) or"
            " module:function:min (lower is better)"
        )
    several = "" if len(graph.outputs) == 1 else f", mean of {len(graph.outputs)} outputs"
    if name == "fidelity":
        return Metric(
            f"fidelity to the original{several}",
            percent=True,
            higher_is_better=True,
            values=_Fidelity(graph),
        )
    if split.targets is None:
        raise UsageError(
            f"--metric {name}: the data have no labels; leave it out, or take --metric fidelity"
        )
    maps = (
        "pixel "
        if name == "accuracy" and split.targets[0].ndim > 1 and split.targets[0].shape[1:] != (1,)
        else ""
    )
    if name in ("accuracy", "miou"):
        wrong = [
            ref.op
            for ref, y in zip(graph.outputs, split.targets, strict=True)
            if not _are_classes(y, graph.tensor(ref).shape)
        ]
        if wrong:
            raise UsageError(
                f"--metric {name}: the labels of output '{wrong[0]}' are values, not classes; take"
                " --metric mse"
            )
    if name == "auc":
        return Metric(
            f"AUC{several}", percent=True, higher_is_better=True, values=_each(_auc), paired=False
        )
    if name == "mse":
        unit = float(
            np.mean([np.square(y - y.mean(0)).mean() for y in map(_floats, split.targets)])
        )
        return Metric(
            f"mean squared error{several}",
            percent=False,
            higher_is_better=False,
            values=_each(_squares),
            unit=unit or None,
        )
    if name == "miou":
        return Metric(
            f"mean IoU{several}",
            percent=True,
            higher_is_better=True,
            values=_each(_iou),
            paired=False,
        )
    if name == "accuracy":
        return Metric(
            f"{maps}accuracy{several}", percent=True, higher_is_better=True, values=_each(_accuracy)
        )
    scales = tuple(
        1.0 if y.dtype.kind in "iu" else max(float(np.square(y - y.mean(0)).mean()), 1e-30)
        for y in map(np.asarray, split.targets)
    )
    return Metric(
        f"mean of accuracy and R² over {len(scales)} outputs",
        percent=True,
        higher_is_better=True,
        values=_mixed(scales),
    )


def _usual(graph: Graph, split: Split) -> str:
    if split.targets is None:
        return "fidelity"
    classes = [
        _are_classes(y, graph.tensor(ref).shape)
        for y, ref in zip(split.targets, graph.outputs, strict=True)
    ]
    return "accuracy" if all(classes) else "mixed" if any(classes) else "mse"


# -- one output ------------------------------------------------------------------------------------


def _each(
    one: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
) -> Callable[[Batch, Split], NDArray[np.float64]]:
    def values(outputs: Batch, split: Split) -> NDArray[np.float64]:
        assert split.targets is not None
        found: NDArray[np.float64] = np.mean(
            [
                one(np.asarray(a), np.asarray(y))
                for a, y in zip(outputs, split.targets, strict=True)
            ],
            axis=0,
        )
        return found

    return values


def _mixed(scales: tuple[float, ...]) -> Callable[[Batch, Split], NDArray[np.float64]]:
    def values(outputs: Batch, split: Split) -> NDArray[np.float64]:
        assert split.targets is not None
        rows = [
            (
                _accuracy(np.asarray(a), y)
                if y.dtype.kind in "iu"
                else 1 - _squares(np.asarray(a), y) / scale
            )
            for a, y, scale in zip(outputs, split.targets, scales, strict=True)
        ]
        found: NDArray[np.float64] = np.mean(rows, axis=0)
        return found

    return values


def _are_classes(target: NDArray[Any], shape: tuple[int | None, ...]) -> bool:
    """Whether those labels of an output of that shape are class numbers, or one-hot rows."""
    if target.dtype.kind in "iu":
        return target.ndim in (len(shape) - 1, len(shape)) and (
            target.ndim < len(shape) or target.shape[-1] == 1
        )
    return (
        target.ndim == len(shape) > 1
        and target.shape[-1] > 1
        and bool(np.isin(target, (0, 1)).all() and (target.sum(-1) == 1).all())
    )


def _numbers(target: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.int64]:
    """Class numbers (N, ...), one axis less than the scores have."""
    if target.ndim == scores.ndim:
        target = target.argmax(-1) if target.shape[-1] > 1 else target[..., 0]
    return target.astype(np.int64)


def _guess(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The class that is said; a single value is the probability of class 1.

    Class -1, which no label has, where a value is not a number.
    """
    guess = scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0.5).astype(np.int64)
    return np.where(np.isnan(scores).any(-1), -1, guess)


def _accuracy(scores: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    hits = _guess(scores) == _numbers(target, scores)
    return np.asarray(hits.reshape(len(hits), -1).mean(1), np.float64)


def _iou(scores: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    guess, truth = _guess(scores).ravel(), _numbers(target, scores).ravel()
    count = max(scores.shape[-1], 2)
    right_ones = np.bincount(truth[guess == truth], minlength=count)
    union = (
        np.bincount(truth, minlength=count)
        + np.bincount(guess[guess >= 0], minlength=count)
        - right_ones
    )
    return np.asarray([np.mean(right_ones[union > 0] / union[union > 0])])


def _squares(values: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    if target.dtype.kind in "iu" and values.shape[-1] > 1 and target.ndim < values.ndim:
        target = np.eye(values.shape[-1])[target]
    apart = _floats(values).reshape(len(values), -1) - _floats(target).reshape(len(values), -1)
    return np.asarray(np.square(apart).mean(1))


def _floats(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _auc(scores: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """The mean over classes, each against the rest, that occur and are not all; two classes count once."""
    from sklearn.metrics import roc_auc_score

    scores = scores.reshape(-1, scores.shape[-1])
    if target.dtype.kind in "iu":
        numbers = target.ravel()
        wanted = numbers[:, None] == (np.arange(scores.shape[1]) if scores.shape[1] > 2 else 1)
    elif np.isin(target, (0, 1)).all():
        wanted = target.reshape(scores.shape) == 1
    else:
        raise UsageError("--metric auc: the labels are values, not classes; take --metric mse")
    scores = scores[:, -1:] if wanted.shape[1] == 1 else scores
    if not np.isfinite(scores).all():
        return np.asarray([0.5])  # outputs that are no numbers rank nothing
    told = [k for k in range(wanted.shape[1]) if 0 < wanted[:, k].sum() < len(wanted)]
    if not told:
        raise UsageError(
            "--metric auc: all samples are of one class, so nothing can be ranked; give samples of"
            " both"
        )
    return np.asarray([np.mean([roc_auc_score(wanted[:, k], scores[:, k]) for k in told])])


class _Fidelity:
    """R² against the original's outputs, which are computed once for each split."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[int, tuple[Split, Batch]] = {}

    def __call__(self, outputs: Batch, split: Split) -> NDArray[np.float64]:
        if id(split) not in self._known:
            from lrfc.ir.keras import io as keras_io

            self._known[id(split)] = (split, keras_io.predict(self._graph, split.inputs))
        rows = []
        for a, b in zip(self._known[id(split)][1], outputs, strict=True):
            given, found = (_floats(v).reshape(len(v), -1) for v in (a, b))
            spread = np.square(given - given.mean(0)).sum(1).mean()
            rows.append(1 - np.square(given - found).sum(1) / max(float(spread), 1e-30))
        return np.asarray(np.mean(rows, axis=0))


def _own(name: str, spec: str, *, higher: bool) -> Metric:
    function = sources.imported(spec, "metric")

    def values(outputs: Batch, split: Split) -> NDArray[np.float64]:
        targets: Any = split.targets
        given = (
            (outputs, targets)
            if len(outputs) > 1
            else (outputs[0], None if targets is None else targets[0])
        )
        with reader.user_code(f"metric '{spec}'"):
            found = float(function(*given))
        return np.asarray([found])

    return Metric(
        name.removesuffix(":min").removesuffix(":max"),
        percent=False,
        higher_is_better=higher,
        values=values,
        paired=False,
    )


# -- a single classifying output -------------------------------------------------------------------


def is_classification(split: Split, outputs: int, classes: int | None) -> bool:
    """Whether the split's targets are class labels (indices, or one-hot rows) for a single output with that many classes."""
    if split.targets is None or outputs != 1 or len(split.targets) != 1 or classes is None:
        return False
    target = split.targets[0]
    if np.issubdtype(target.dtype, np.integer) and (target.ndim == 1 or target.shape[1:] == (1,)):
        return True
    return (
        target.ndim == 2
        and target.shape[1] == classes > 1
        and bool(np.all((target == 0) | (target == 1)) and np.all(target.sum(1) == 1))
    )


def labels(split: Split) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Class indices (N,) of a classification split."""
    assert split.targets is not None
    target = split.targets[0]
    flat = (
        target.argmax(1)
        if target.ndim == 2 and target.shape[1] > 1
        else target.reshape(len(target))
    )
    return flat.astype(np.int64)


def classifies(graph: Graph, split: Split) -> bool:
    """Whether the graph is a classifier and the split holds its labels."""
    shape = graph.tensor(graph.outputs[0]).shape
    return is_classification(split, len(graph.outputs), shape[-1] if len(shape) == 2 else None)


def right(outputs: Batch, split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which samples' classes are right, (N,).

    A single output value is read as the probability of class 1.
    """
    scores = outputs[0]
    guess = scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0.5).astype(np.int64)
    return np.asarray(guess.reshape(len(guess)) == labels(split))


def accuracy(outputs: Batch, split: Split) -> float:
    """The share of samples whose class is right."""
    return float(np.mean(right(outputs, split)))
