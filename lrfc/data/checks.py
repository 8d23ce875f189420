"""Plausibility checks: compare the scale and the labels of samples with the model's training.

Implausible samples are noted in the log, not refused.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data.dataset import Split
from lrfc.data.synthetic import readers, scale_of
from lrfc.errors import UsageError
from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.text import percent

#: Largest number of samples to check, and the smallest that allows a statement.
LOOKED_AT = 256
FEWEST = 8
#: Samples whose tokens are looked at together.
PART = 4096
#: Largest number of values of one feature map in memory.
HELD = 1 << 26
#: Statistics are implausible when means differ by more than APART standard deviations, or
#: deviations by a factor of more than TIMES.
APART = 2.5
TIMES = 3.5
#: The remedy in a note.
_CHECK = "check the preprocessing"


# Values near the limit of float32 overflow here; they are implausible, and the notes say so.
@np.errstate(over="ignore", invalid="ignore")
def doubts(graph: Graph, split: Split) -> tuple[str, ...]:
    """Return a note for each implausibility.

    Inputs are compared with the statistics of a Normalization layer, the range of a Rescaling
    layer, or else the moving statistics of the first BatchNorm; labels with the model's outputs.
    """
    norms = {name: _first_norm(graph, name) for name in graph.inputs}
    sizes = [
        prod(n or 64 for n in graph.input_tensors(op.name)[0].shape[1:])
        for op in norms.values()
        if op is not None
    ]
    count = min(len(split), LOOKED_AT, max(FEWEST, HELD // max(sizes, default=1)))
    samples = split.take(np.arange(count))
    notes = []
    compared: list[Op] = []  # BatchNorms behind inputs without a layer that states the scale
    for name, x in zip(graph.inputs, samples.inputs, strict=True):
        if scale_of(graph, name) is not None:
            notes += _against_layer(graph, name, x)
        elif len(samples) >= FEWEST and (op := norms[name]) is not None and op not in compared:
            compared.append(op)
    labelled = _labelled(graph, samples)
    if not compared and not labelled:
        return tuple(notes)
    maps, outputs = _run(graph, compared, samples.inputs)
    for op, x in zip(compared, maps, strict=True):
        notes += _against_batchnorm(op, x)
    # Implausible inputs lead to wrong outputs: one note is enough.
    if labelled and samples.targets is not None and not notes:
        notes += _against_labels(outputs[0], samples.targets[0])
    return tuple(notes)


# -- inputs ----------------------------------------------------------------------------------------


def check_tokens(graph: Graph, split: Split) -> None:
    """Raise UsageError for tokens outside of the vocabulary, in any sample."""
    for name, x in zip(graph.inputs, split.inputs, strict=True):
        sizes = [int(op["input_dim"]) for op in readers(graph, name) if op.kind == "Embedding"]
        if not sizes:
            continue
        # In parts: the samples may be mapped from a file.
        ends = [(part.min(), part.max()) for (part,) in batches((x,), PART)]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if low < 0 or high >= min(sizes):
            raise UsageError(
                f"input '{name}' has tokens from {low} to {high}, the model's Embedding knows 0"
                f" to {min(sizes) - 1}"
            )


def _against_layer(graph: Graph, name: str, x: NDArray[Any]) -> list[str]:
    op = next(op for op in readers(graph, name) if op.info.family == "rescaling")
    scale = scale_of(graph, name)
    assert scale is not None
    values = (x.astype(np.float32) - scale.mean) / np.maximum(scale.std, 1e-12)
    # A Rescaling layer states a range, not statistics: 4 deviations span 0–1 and −1–1.
    if op.kind == "Rescaling":
        low, high = float(values.min()), float(values.max())
        if high - low > 4 / 30 and max(-low, high) < 40:
            return []
        expected = (
            f"its {op.kind} layer '{op.name}' expects about"
            f" {_range(scale.mean - 2 * scale.std, scale.mean + 2 * scale.std)}"
        )
        return [_line(name, f"{expected}, they lie in {_range(x.min(), x.max())}")]
    axes = tuple(range(x.ndim - 1))
    shift, spread = float(np.median(np.abs(values.mean(axes)))), float(np.median(values.std(axes)))
    if shift < APART and 1 / TIMES < spread < TIMES:
        return []
    expected = (
        f"its {op.kind} layer '{op.name}' expects mean {np.mean(scale.mean):.3g} and deviation"
        f" {np.mean(scale.std):.3g}"
    )
    return [_line(name, f"{expected}, they have {x.mean():.3g} and {x.std():.3g}")]


def _against_batchnorm(op: Op, x: NDArray[Any]) -> list[str]:
    axis = int(op["axis"]) % x.ndim
    axes = tuple(a for a in range(x.ndim) if a != axis)
    mean, std = x.mean(axes), x.std(axes)
    moving_mean = op.weights["moving_mean"]
    moving_std = np.sqrt(op.weights["moving_variance"] + op["epsilon"])
    shift = float(np.median(np.abs(mean - moving_mean) / moving_std))
    ratio = float(np.exp(np.median(np.log(np.maximum(std, 1e-12) / moving_std))))
    if shift < APART and 1 / TIMES < ratio < TIMES:
        return []
    expected = (
        f"its first BatchNorm '{op.name}' expects deviations of about {np.median(moving_std):.3g},"
        f" sees {np.median(std):.3g}"
    )
    return [_line(None, f"{expected}, with means {shift:.3g} deviations off")]


def _first_norm(graph: Graph, name: str) -> Op | None:
    """Return the first BatchNorm behind an input, with its moving statistics.

    None when there is none, when it is shared, or when its statistics were never updated.
    """
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
    """Return a note when a permutation of the classes fits the labels far better than the model.

    Also when the model is confident, but no better than chance.
    """
    from scipy.optimize import linear_sum_assignment

    scores = np.asarray(scores, np.float64)
    if scores.shape[1] == 1:
        scores = np.concatenate([1 - scores, scores], axis=1)
    classes, count = scores.shape[1], len(labels)
    low, sums = scores.min(), scores.sum(1)
    if low < 0 or not np.allclose(sums, 1, atol=1e-3):  # logits
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
    predicted = scores.argmax(1)
    accuracy, confidence = float(np.mean(predicted == labels)), float(np.mean(scores.max(1)))
    table = np.zeros((classes, classes))
    np.add.at(table, (predicted, labels), 1)
    permuted = float(table[linear_sum_assignment(-table)].sum()) / count
    fact = f"the model's answers are right for {percent(accuracy, 0)} of {count} samples"
    # Noise has a best permutation too: it has to explain far more than chance does.
    if count >= 5 * len(np.unique(labels)) and permuted > max(0.6, accuracy + 0.3):
        note = (
            f"{fact}, with its classes in another order for {percent(permuted, 0)}: the labels may"
            " be in another order than the model's outputs"
        )
        return [note]
    chance = max(1 / classes, float(np.bincount(labels).max()) / count)
    margin = 2 * sqrt(chance * (1 - chance) / count)
    if confidence > max(0.7, 2 / classes) and accuracy < chance + margin:
        note = (
            f"{fact}, no more than by chance, though it is sure of them ({percent(confidence, 0)}):"
            f" the labels may be in another order, or {_CHECK}"
        )
        return [note]
    return []


# -- running ---------------------------------------------------------------------------------------


def _run(graph: Graph, norms: list[Op], inputs: Batch) -> tuple[Batch, Batch]:
    """Return the inputs of the BatchNorms, and the outputs of the model."""
    from lrfc.ir.keras import io as keras_io

    operands = [graph.operands(op.name)[0] for op in norms]
    values = keras_io.predict(keras_io.outputs_at(graph, [*operands, *graph.outputs]), inputs)
    return values[: len(norms)], values[len(norms) :]
