"""What a compressed network is trained for: the original's outputs and feature maps, and the labels where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.ir.backend import reason
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.search.sensitivity import is_distribution

#: What the values of an output are: a softmax's probabilities, the logits of classes, a sigmoid's
#: probabilities, the logits of those, or plain values.
Kind = Literal["softmax", "logits", "sigmoid", "logit", "values"]
_TINY = 1e-7


@dataclass(frozen=True)
class Output:
    """One output of the model: its kind, the variance of the original's values, and that of the labels where they are values."""

    kind: Kind
    variance: float
    target_variance: float = 1.0


def describe(graph: Graph, taught: Batch, targets: Batch | None) -> tuple[Output, ...]:
    """What each output of ``graph`` is, by the values that it gives for some samples and by the labels of those (int32 indices or float32 values)."""
    found = []
    for number, (ref, values) in enumerate(zip(graph.outputs, taught, strict=True)):
        target = None if targets is None else np.asarray(targets[number])
        last = graph.op(ref.op)
        sigmoid = "sigmoid" in (last.attrs.get("activation"), last.kind.lower())
        found.append(
            Output(
                _kind(values, target, sigmoid=sigmoid),
                _variance(values),
                1.0 if target is None else _variance(target),
            )
        )
    return tuple(found)


def _kind(values: NDArray[Any], target: NDArray[Any] | None, *, sigmoid: bool) -> Kind:
    if is_distribution(values):
        return "softmax"
    indices = target is not None and np.issubdtype(target.dtype, np.integer)
    unit = bool(values.min(initial=0) >= 0 and values.max(initial=1) <= 1)
    if indices and values.shape[-1] > 1:
        return "logits"
    if indices:
        return "sigmoid" if unit else "logit"
    # A sigmoid's values are probabilities only if the labels, where there are any, can be such.
    return (
        "sigmoid"
        if sigmoid and unit and (target is None or (target.min() >= 0 and target.max() <= 1))
        else "values"
    )


def _variance(values: NDArray[Any]) -> float:
    found = float(np.mean(np.var(np.asarray(values, np.float64), axis=0)))
    return found if found > 1e-12 else 1.0  # constant values have no scale of their own


# -- distillation ----------------------------------------------------------------------------------


def distillation(
    outputs: Sequence[Output], student: Sequence[Any], teacher: Sequence[Any], temperature: float
) -> Any:
    """The mean over outputs of the distance from the original's (tensors (N, ...)).

    For classes T²·KL of the softened distributions (Hinton, Vinyals, Dean 2015, arXiv 1503.02531,
    section 2), for plain values the squared error in units of their variance.
    """
    import tensorflow as tf

    total = 0.0
    for output, learnt, taught in zip(outputs, student, teacher, strict=True):
        if output.kind == "values":
            total += tf.reduce_mean(tf.square(learnt - taught)) / output.variance
        else:
            known, found = (
                _log_probabilities(output.kind, values, temperature) for values in (taught, learnt)
            )
            total += temperature**2 * tf.reduce_mean(
                tf.reduce_sum(tf.exp(known) * (known - found), -1)
            )
    return total / len(outputs)


def _log_probabilities(kind: Kind, values: Any, temperature: float = 1.0) -> Any:
    """Log-probabilities over the last axis; of a sigmoid's values over a new axis of two classes."""
    import tensorflow as tf

    if kind in ("sigmoid", "logit"):
        odds = (
            values
            if kind == "logit"
            else tf.math.log(values + _TINY) - tf.math.log(1 - values + _TINY)
        )
        return tf.stack(
            [tf.math.log_sigmoid(-odds / temperature), tf.math.log_sigmoid(odds / temperature)], -1
        )
    logits = tf.math.log(values + _TINY) if kind == "softmax" else values
    return tf.nn.log_softmax(logits / temperature)


def features(student: Sequence[Any], teacher: Sequence[Any]) -> Any:
    """The mean over feature maps of ‖student − teacher‖² / ‖teacher − mean(teacher)‖², both over the batch and the mean a channel's own."""
    import tensorflow as tf

    total = 0.0
    for learnt, taught in zip(student, teacher, strict=True):
        axes = list(range(len(taught.shape) - 1))
        spread = tf.reduce_mean(tf.math.reduce_variance(taught, axes))
        total += tf.reduce_mean(tf.square(learnt - taught)) / tf.maximum(spread, _TINY)
    return total / max(len(student), 1)


# -- the task --------------------------------------------------------------------------------------

TaskLoss = Callable[[Sequence[Any], Sequence[Any]], Any]


def task_loss(graph: Graph, outputs: Sequence[Output], sample: tuple[Batch, Batch]) -> TaskLoss:
    """A function from outputs and labels (tensors) to the loss: the one that the model was compiled with, or by kind of output.

    By kind: cross-entropy for classes, squared error in units of the labels' variance for values,
    averaged over the outputs. ``sample`` holds outputs and labels to try the model's own loss on;
    UsageError when it does not take them.
    """
    import tensorflow as tf

    compiled = own_losses(graph)
    if compiled is None:
        return lambda found, wanted: _usual(outputs, found, wanted)

    def own(found: Sequence[Any], wanted: Sequence[Any]) -> Any:
        parts = [
            weight * tf.reduce_mean(loss(_fitted(y, x, loss), x))
            for (loss, weight), x, y in zip(compiled, found, wanted, strict=True)
            if loss is not None
        ]
        return sum(parts[1:], parts[0])

    try:
        float(own(*(tuple(np.asarray(a[:2]) for a in part) for part in sample)))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        names = ", ".join(_name(loss) for loss, _ in compiled if loss is not None)
        raise UsageError(
            f"the loss of model '{graph.name}' ({names}) does not take these labels:"
            f" {reason(error)}; compile the model with a loss that fits the data, or without one"
            " (the task's usual loss is taken then)"
        ) from error
    return own


def own_losses(graph: Graph) -> tuple[tuple[Any, float], ...] | None:
    """The Keras losses and weights of the outputs as the model was compiled with them; None when it was not, or with a loss for no output."""
    import keras

    config: Mapping[str, Any] = graph.compiled or {}
    given, weights = config.get("loss"), config.get("loss_weights")
    if given is None:
        return None
    given = keras.saving.deserialize_keras_object(given)
    losses, scales = _in_order(graph, given, None), _in_order(graph, weights, 1.0)
    found = tuple(
        (None if loss is None else keras.losses.get(loss), 1.0 if scale is None else float(scale))
        for loss, scale in zip(losses, scales, strict=True)
    )
    return found if any(loss is not None for loss, _ in found) else None


def _in_order(graph: Graph, given: Any, default: Any) -> list[Any]:
    """What is given for the outputs (once for all, in a list, or in a dict by key or layer) in the order of ``graph.outputs``."""
    import keras

    count = len(graph.outputs)
    if isinstance(given, Mapping):
        packed = graph.structure[1]
        keys = [ref.op for ref in graph.outputs]
        if isinstance(packed, Mapping):
            for key, slot in packed.items():
                keys[slot.port] = key
        return [
            given.get(key, given.get(ref.op, default))
            for key, ref in zip(keys, graph.outputs, strict=True)
        ]
    if isinstance(given, list | tuple):
        flat = keras.tree.flatten(given)
        return flat if len(flat) == count else [default] * count
    return [default if given is None else given] * count


def _fitted(target: Any, values: Any, loss: Any) -> Any:
    """Class indices as the loss wants them: as they are for a sparse loss, otherwise one-hot; with the axis of a single value."""
    import tensorflow as tf

    if len(target.shape) != len(values.shape) - 1 or "sparse" in _name(loss):
        return target
    return (
        tf.cast(target, tf.float32)[..., None]
        if values.shape[-1] == 1
        else tf.one_hot(target, values.shape[-1])
    )


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__))


def _usual(outputs: Sequence[Output], found: Sequence[Any], wanted: Sequence[Any]) -> Any:
    import tensorflow as tf

    total = 0.0
    for output, values, target in zip(outputs, found, wanted, strict=True):
        if output.kind == "values":
            total += (
                tf.reduce_mean(
                    tf.square(values - tf.reshape(tf.cast(target, values.dtype), tf.shape(values)))
                )
                / output.target_variance
            )
            continue
        known = _log_probabilities(output.kind, values)
        if output.kind in ("sigmoid", "logit"):
            one = tf.reshape(tf.cast(target, values.dtype), tf.shape(values))
            total -= tf.reduce_mean(one * known[..., 1] + (1 - one) * known[..., 0])
        elif len(target.shape) == len(values.shape) - 1:
            total += tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(target, tf.int64), known)
            )
        else:
            total -= tf.reduce_mean(tf.reduce_sum(tf.cast(target, values.dtype) * known, -1))
    return total / len(outputs)
