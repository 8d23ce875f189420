"""Whether samples look like what the model was trained on: their scale and their labels.

What looks strange is said, not refused.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data.dataset import Split
from lrfc.data.synthetic import readers, scale_of
from lrfc.errors import UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.text import percent

#: Samples that are looked at, and the fewest that tell anything.
LOOKED_AT = 256
FEWEST = 8
#: Values of one feature map that are held at most.
HELD = 1 << 26
#: Statistics are strange when they are off by this many standard deviations, or this many times
#: larger or smaller.
APART = 2.5
TIMES = 3.5
#: What to do about it.
_CHECK = "check the preprocessing"


@np.errstate(
    over="ignore", invalid="ignore"
)  # of values near the end of float32, which look strange and are said to
def doubts(graph: Graph, split: Split) -> tuple[str, ...]:
    """One line for each thing that looks strange; UsageError for token numbers that the model does not know.

    The inputs are held against the statistics of a Normalization layer, the range of a Rescaling
    layer or else the moving statistics of the first BatchNorm; labels against the model's own
    answers.
    """
    norms = {name: _first_norm(graph, name) for name in graph.inputs}
    sizes = [
        prod(n or 64 for n in graph.input_tensors(op.name)[0].shape[1:])
        for op in norms.values()
        if op is not None
    ]
    some = split.take(
        np.arange(min(len(split), LOOKED_AT, max(FEWEST, HELD // max(sizes, default=1))))
    )
    notes = []
    unknown: list[Op] = []
    for name, x in zip(graph.inputs, some.inputs, strict=True):
        _tokens(graph, name, x)
        if scale_of(graph, name) is not None:
            notes += _against_layer(graph, name, x)
        elif len(some) >= FEWEST and (op := norms[name]) is not None and op not in unknown:
            unknown.append(op)
    answers = _labelled(graph, some)
    if not unknown and not answers:
        return tuple(notes)
    maps, outputs = _run(graph, unknown, some.inputs)
    for op, x in zip(unknown, maps, strict=True):
        notes += _against_batchnorm(op, x)
    if (
        answers and some.targets is not None and not notes
    ):  # strange inputs get strange answers: one line is enough
        notes += _against_labels(outputs[0], some.targets[0])
    return tuple(notes)


# -- inputs ----------------------------------------------------------------------------------------


def _tokens(graph: Graph, name: str, x: NDArray[Any]) -> None:
    known = [int(op["input_dim"]) for op in readers(graph, name) if op.kind == "Embedding"]
    if known and (x.min() < 0 or x.max() >= min(known)):
        raise UsageError(
            f"input '{name}' has tokens from {x.min()} to {x.max()}, the model's Embedding knows 0"
            f" to {min(known) - 1}"
        )


def _against_layer(graph: Graph, name: str, x: NDArray[Any]) -> list[str]:
    op = next(op for op in readers(graph, name) if op.info.family == "rescaling")
    scale = scale_of(graph, name)
    assert scale is not None
    values = (x.astype(np.float32) - scale.mean) / np.maximum(scale.std, 1e-12)
    if op.kind == "Rescaling":  # a range is known, no statistics: 4 widths hold 0–1 and −1–1
        low, high = float(values.min()), float(values.max())
        if high - low > 4 / 30 and max(-low, high) < 40:
            return []
        wanted = (
            f"its {op.kind} layer '{op.name}' expects about"
            f" {_range(scale.mean - 2 * scale.std, scale.mean + 2 * scale.std)}"
        )
        return [_line(name, f"{wanted}, they lie in {_range(x.min(), x.max())}")]
    axes = tuple(range(x.ndim - 1))
    shift, spread = float(np.median(np.abs(values.mean(axes)))), float(np.median(values.std(axes)))
    if shift < APART and 1 / TIMES < spread < TIMES:
        return []
    wanted = (
        f"its {op.kind} layer '{op.name}' expects mean {np.mean(scale.mean):.3g} and deviation"
        f" {np.mean(scale.std):.3g}"
    )
    return [_line(name, f"{wanted}, they have {x.mean():.3g} and {x.std():.3g}")]


def _against_batchnorm(op: Op, x: NDArray[Any]) -> list[str]:
    axis = int(op["axis"]) % x.ndim
    axes = tuple(a for a in range(x.ndim) if a != axis)
    mean, std = x.mean(axes), x.std(axes)
    wanted_mean, wanted_std = (
        op.weights["moving_mean"],
        np.sqrt(op.weights["moving_variance"] + op["epsilon"]),
    )
    shift = float(np.median(np.abs(mean - wanted_mean) / wanted_std))
    times = float(np.exp(np.median(np.log(np.maximum(std, 1e-12) / wanted_std))))
    if shift < APART and 1 / TIMES < times < TIMES:
        return []
    expects = (
        f"its first BatchNorm '{op.name}' expects deviations of about {np.median(wanted_std):.3g},"
        f" sees {np.median(std):.3g}"
    )
    return [_line(None, f"{expects}, with means {shift:.3g} deviations off")]


def _first_norm(graph: Graph, name: str) -> Op | None:
    """The first BatchNorm behind an input; None when there is none, it is shared, or its statistics were never updated."""
    reached = {name}
    for op in graph:
        if any(ref.op in reached for ref in graph.operands(op.name)):
            reached.add(op.name)
            if op.kind == "BatchNormalization":
                trained = np.any(op.weights["moving_mean"]) or np.any(
                    op.weights["moving_variance"] != 1
                )
                return op if trained and len(graph.calls(op)) == 1 else None
    return None


def _line(name: str | None, facts: str) -> str:
    which = "the samples" if name is None else f"the samples of input '{name}'"
    return f"{which} look scaled differently from what the model was trained on ({facts}): {_CHECK}"


def _range(low: Any, high: Any) -> str:
    return f"{float(np.mean(low)):.3g} to {float(np.mean(high)):.3g}"


# -- labels ----------------------------------------------------------------------------------------


def _labelled(graph: Graph, split: Split) -> bool:
    target = None if split.targets is None or len(split.targets) > 1 else split.targets[0]
    return (
        target is not None
        and target.ndim == 1
        and target.dtype.kind == "i"
        and len(graph.tensor(graph.outputs[0]).shape) == 2
        and len(split) >= 32
    )


def _against_labels(scores: NDArray[Any], labels: NDArray[Any]) -> list[str]:
    """A line when the model is sure of its answers but they are no better than chance, or better once classes are swapped."""
    from scipy.optimize import linear_sum_assignment

    scores = np.asarray(scores, np.float64)
    if scores.shape[1] == 1:
        scores = np.concatenate([1 - scores, scores], axis=1)
    classes, count = scores.shape[1], len(labels)
    low, sums = scores.min(), scores.sum(1)
    if low < 0 or not np.allclose(sums, 1, atol=1e-3):  # logits
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
    guess = scores.argmax(1)
    share, sure = float(np.mean(guess == labels)), float(np.mean(scores.max(1)))
    table = np.zeros((classes, classes))
    np.add.at(table, (guess, labels), 1)
    swapped = float(table[linear_sum_assignment(-table)].sum()) / count
    told = f"the model's answers are right for {percent(share, 0)} of {count} samples"
    # A best order is found for noise too: it has to explain far more than chance does.
    if count >= 5 * len(np.unique(labels)) and swapped > max(0.6, share + 0.3):
        return [
            (
                f"{told}, with its classes in another order for {percent(swapped, 0)}: the labels may"
                " be in another order than the model's outputs"
            )
        ]
    chance = max(1 / classes, float(np.bincount(labels).max()) / count)
    if sure > max(0.7, 2 / classes) and share < chance + 2 * sqrt(chance * (1 - chance) / count):
        return [
            (
                f"{told}, no more than by chance, though it is sure of them ({percent(sure, 0)}): the"
                f" labels may be in another order, or {_CHECK}"
            )
        ]
    return []


# -- running ---------------------------------------------------------------------------------------


def _run(graph: Graph, norms: list[Op], inputs: Batch) -> tuple[Batch, Batch]:
    """What those BatchNorms read, and the model's outputs."""
    from lrfc.ir.keras import io as keras_io

    read = [graph.operands(op.name)[0] for op in norms]
    values = keras_io.predict(keras_io.outputs_at(graph, [*read, *graph.outputs]), inputs)
    return values[: len(norms)], values[len(norms) :]
