"""Metrics: accuracy, mean IoU, AUC, squared error, fidelity, or a user's own function."""

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
    """A function from outputs to their score on a split.

    ``name``: as in reports. ``percent``: the score is a fraction (1 is perfect), shown in percent,
    and a drop is a difference in points; otherwise a drop is a fraction of ``unit``, or of the
    original's score where ``unit`` is None. ``values``: the score of each sample. ``paired``:
    whether the score is their mean, otherwise ``values`` has the score alone.
    """

    name: str
    percent: bool
    higher_is_better: bool
    values: Callable[[Batch, Split], NDArray[np.float64]]
    paired: bool = True
    unit: float | None = None

    def score(self, outputs: Batch, split: Split) -> float:
        """The score of a model's outputs (one array of N samples each) on the split."""
        return float(np.mean(self.values(outputs, split)))

    def per_sample(self, outputs: Batch, split: Split) -> NDArray[np.float64] | None:
        """The score of each sample (N,), for paired tests.

        None when the score is no mean over samples (AUC, IoU, functions).
        """
        return self.values(outputs, split) if self.paired else None

    def drop(self, before: float, after: float) -> float:
        """The drop from a score to another (see the class); positive if ``after`` is worse."""
        worse = before - after if self.higher_is_better else after - before
        if self.percent:
            return worse
        scale = abs(before) if self.unit is None else self.unit
        return worse / max(scale, 1e-12)

    @property
    def drop_unit(self) -> str:
        """The unit of a drop times 100."""
        if self.percent:
            return "pp"
        return (
            "% of the original's figure" if self.unit is None else "% of the variance of the labels"
        )

    def shown(self, value: float) -> str:
        """The score as text: '91.25 %' or '0.0312'."""
        return score(value, percent=self.percent)

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is better than ``other``."""
        return one > other if self.higher_is_better else one < other


def metric(name: str | None, graph: Graph, split: Split) -> Metric:
    """The metric of that name; UsageError when it does not fit the labels.

    ``graph``: the original. ``name`` None: accuracy where every output has class labels (also of
    pixels), the mean squared error where every output has values, the mean of accuracies and R²
    where there are both, and fidelity without labels.

    'accuracy'; 'miou' (mean intersection over union of the classes that occur); 'auc' (area under
    the ROC curve, one class against the rest; scikit-learn); 'mse'; 'fidelity' (R² of the outputs
    against the original's, 1 − Σ‖a − b‖² / Σ‖a − ā‖²). With several outputs the
    score is the mean over them.

    'module:function' is called with (outputs, targets), both arrays (N, ...), or tuples of arrays
    in the model's order when it has several outputs; targets are None without labels. It returns a
    number, and higher is better; with 'module:function:min', lower is better.
    """
    if name is None:
        name = _default(graph, split)
    custom = trust.METRIC.fullmatch(name)
    if custom is not None:
        return _custom(name, custom["function"], higher=custom["way"] != "min")
    if name not in (*METRICS, "mixed"):
        raise UsageError(
            f"--metric {name}: give {', '.join(METRICS)}, module:function (higher is better) or"
            " module:function:min (lower is better)"
        )
    outputs = len(graph.outputs)
    suffix = "" if outputs == 1 else f", mean of {outputs} outputs"
    if name == "fidelity":
        return _fraction(f"fidelity to the original{suffix}", _Fidelity(graph))
    if split.targets is None:
        raise UsageError(
            f"--metric {name}: the data have no labels; leave it out, or take --metric fidelity"
        )
    if name in ("accuracy", "miou"):
        _check_classes(name, graph, split.targets)
    if name == "auc":
        return _fraction(f"AUC{suffix}", _mean_over_outputs(_auc), paired=False)
    if name == "miou":
        return _fraction(f"mean IoU{suffix}", _mean_over_outputs(_iou), paired=False)
    if name == "accuracy":
        first = split.targets[0]
        pixel = "pixel " if first.ndim > 1 and first.shape[1:] != (1,) else ""
        return _fraction(f"{pixel}accuracy{suffix}", _mean_over_outputs(_accuracy))
    if name == "mse":
        variances = [np.square(y - y.mean(0)).mean() for y in map(_floats, split.targets)]
        return Metric(
            f"mean squared error{suffix}",
            percent=False,
            higher_is_better=False,
            values=_mean_over_outputs(_squares),
            unit=float(np.mean(variances)) or None,
        )
    return _fraction(f"mean of accuracy and R² over {outputs} outputs", _mixed(split.targets))


def _fraction(
    name: str, values: Callable[[Batch, Split], NDArray[np.float64]], *, paired: bool = True
) -> Metric:
    return Metric(name, percent=True, higher_is_better=True, values=values, paired=paired)


def _check_classes(name: str, graph: Graph, targets: Batch) -> None:
    """UsageError for the first output whose labels are not classes."""
    for ref, target in zip(graph.outputs, targets, strict=True):
        if not _are_classes(target, graph.tensor(ref).shape):
            raise UsageError(
                f"--metric {name}: the labels of output '{ref.op}' are values, not classes; take"
                " --metric mse"
            )


def _default(graph: Graph, split: Split) -> str:
    if split.targets is None:
        return "fidelity"
    classes = [
        _are_classes(y, graph.tensor(ref).shape)
        for y, ref in zip(split.targets, graph.outputs, strict=True)
    ]
    return "accuracy" if all(classes) else "mixed" if any(classes) else "mse"


# -- one output ------------------------------------------------------------------------------------


def _mean_over_outputs(
    one: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
) -> Callable[[Batch, Split], NDArray[np.float64]]:
    def values(outputs: Batch, split: Split) -> NDArray[np.float64]:
        assert split.targets is not None
        means: NDArray[np.float64] = np.mean(
            [
                one(np.asarray(a), np.asarray(y))
                for a, y in zip(outputs, split.targets, strict=True)
            ],
            axis=0,
        )
        return means

    return values


def _mixed(targets: Batch) -> Callable[[Batch, Split], NDArray[np.float64]]:
    """The mean of accuracies and of R², whose variances are those of the targets given here."""
    scales = tuple(
        1.0 if y.dtype.kind in "iu" else max(float(np.square(y - y.mean(0)).mean()), 1e-30)
        for y in map(np.asarray, targets)
    )

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
        means: NDArray[np.float64] = np.mean(rows, axis=0)
        return means

    return values


def _are_classes(target: NDArray[Any], shape: tuple[int | None, ...]) -> bool:
    """Whether labels of an output of that shape are class indices or one-hot rows."""
    if target.dtype.kind in "iu":
        return target.ndim in (len(shape) - 1, len(shape)) and (
            target.ndim < len(shape) or target.shape[-1] == 1
        )
    return (
        target.ndim == len(shape) > 1
        and target.shape[-1] > 1
        and bool(np.isin(target, (0, 1)).all() and (target.sum(-1) == 1).all())
    )


def _classes(target: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.int64]:
    """Class indices (N, ...), one axis less than the scores have."""
    if target.ndim == scores.ndim:
        target = target.argmax(-1) if target.shape[-1] > 1 else target[..., 0]
    return target.astype(np.int64)


def _predicted(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The predicted class; a single value is the probability of class 1.

    Class -1, which no label has, where a value is not a number.
    """
    predicted = (
        scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0.5).astype(np.int64)
    )
    return np.where(np.isnan(scores).any(-1), -1, predicted)


def _accuracy(scores: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    hits = _predicted(scores) == _classes(target, scores)
    return np.asarray(hits.reshape(len(hits), -1).mean(1), np.float64)


def _iou(scores: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    predicted, truth = _predicted(scores).ravel(), _classes(target, scores).ravel()
    count = max(scores.shape[-1], 2)
    hits = np.bincount(truth[predicted == truth], minlength=count)
    union = (
        np.bincount(truth, minlength=count)
        + np.bincount(predicted[predicted >= 0], minlength=count)
        - hits
    )
    return np.asarray([np.mean(hits[union > 0] / union[union > 0])])


def _squares(values: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    if target.dtype.kind in "iu" and values.shape[-1] > 1 and target.ndim < values.ndim:
        target = np.eye(values.shape[-1])[target]
    apart = _floats(values).reshape(len(values), -1) - _floats(target).reshape(len(values), -1)
    return np.asarray(np.square(apart).mean(1))


def _floats(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _auc(scores: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """The mean AUC over classes against the rest; of two classes, only the second counts.

    Classes that no sample or every sample belongs to are left out.
    """
    from sklearn.metrics import roc_auc_score

    scores = scores.reshape(-1, scores.shape[-1])
    if target.dtype.kind in "iu":
        numbers = target.ravel()
        positive = numbers[:, None] == (np.arange(scores.shape[1]) if scores.shape[1] > 2 else 1)
    elif np.isin(target, (0, 1)).all():
        positive = target.reshape(scores.shape) == 1
    else:
        raise UsageError("--metric auc: the labels are values, not classes; take --metric mse")
    scores = scores[:, -1:] if positive.shape[1] == 1 else scores
    if not np.isfinite(scores).all():
        return np.asarray([0.5])  # outputs that are not numbers cannot be ranked
    present = [k for k in range(positive.shape[1]) if 0 < positive[:, k].sum() < len(positive)]
    if not present:
        raise UsageError(
            "--metric auc: all samples are of one class, so nothing can be ranked; give samples of"
            " both"
        )
    return np.asarray([np.mean([roc_auc_score(positive[:, k], scores[:, k]) for k in present])])


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
            reference, values = (_floats(v).reshape(len(v), -1) for v in (a, b))
            spread = np.square(reference - reference.mean(0)).sum(1).mean()
            rows.append(1 - np.square(reference - values).sum(1) / max(float(spread), 1e-30))
        return np.asarray(np.mean(rows, axis=0))


def _custom(name: str, spec: str, *, higher: bool) -> Metric:
    function = sources.imported(spec, "metric")

    def values(outputs: Batch, split: Split) -> NDArray[np.float64]:
        targets: Any = split.targets
        arguments = (
            (outputs, targets)
            if len(outputs) > 1
            else (outputs[0], None if targets is None else targets[0])
        )
        with reader.user_code(f"metric '{spec}'"):
            score = float(function(*arguments))
        return np.asarray([score])

    return Metric(
        name.removesuffix(":min").removesuffix(":max"),
        percent=False,
        higher_is_better=higher,
        values=values,
        paired=False,
    )


# -- a single classifying output -------------------------------------------------------------------


def is_classification(split: Split, outputs: int, classes: int | None) -> bool:
    """Whether the targets are class labels (indices or one-hot) of one output with ``classes``."""
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
    """Whether the graph is a classifier and the split has its labels."""
    shape = graph.tensor(graph.outputs[0]).shape
    return is_classification(split, len(graph.outputs), shape[-1] if len(shape) == 2 else None)


def right(outputs: Batch, split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether the predicted class of each sample is right, (N,).

    A single output value is the probability of class 1.
    """
    scores = outputs[0]
    guess = scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0.5).astype(np.int64)
    return np.asarray(guess.reshape(len(guess)) == labels(split))


def accuracy(outputs: Batch, split: Split) -> float:
    """The fraction of samples whose predicted class is right."""
    return float(np.mean(right(outputs, split)))
