"""Losses: distillation from the original's outputs and feature maps, and the task's own loss."""

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

#: The meaning of an output's values: a softmax's probabilities, the logits of classes, a sigmoid's
#: probabilities, the logits of those, or plain values.
Kind = Literal["softmax", "logits", "sigmoid", "logit", "values"]
_TINY = 1e-7


@dataclass(frozen=True)
class Output:
    """One output of the model.

    ``kind``: the meaning of its values. ``variance``: of the original's values.
    ``target_variance``: of the labels, where they are values.
    """

    kind: Kind
    variance: float
    target_variance: float = 1.0


def describe(graph: Graph, outputs: Batch, targets: Batch | None) -> tuple[Output, ...]:
    """Describe each output of ``graph`` by its values for some samples and by their labels.

    Labels are int32 indices or float32 values.
    """
    described = []
    for number, (ref, values) in enumerate(zip(graph.outputs, outputs, strict=True)):
        target = None if targets is None else np.asarray(targets[number])
        last = graph.op(ref.op)
        sigmoid = "sigmoid" in (last.attrs.get("activation"), last.kind.lower())
        described.append(
            Output(
                _kind(values, target, sigmoid=sigmoid),
                _variance(values),
                1.0 if target is None else _variance(target),
            )
        )
    return tuple(described)


def _kind(values: NDArray[Any], target: NDArray[Any] | None, *, sigmoid: bool) -> Kind:
    if is_distribution(values):
        return "softmax"
    indices = target is not None and np.issubdtype(target.dtype, np.integer)
    unit = bool(values.min(initial=0) >= 0 and values.max(initial=1) <= 1)
    if indices and values.shape[-1] > 1:
        return "logits"
    if indices:
        return "sigmoid" if unit else "logit"
    # A sigmoid's values are probabilities only if the labels, where there are any, can be, too.
    possible = target is None or (target.min() >= 0 and target.max() <= 1)
    return "sigmoid" if sigmoid and unit and possible else "values"


def _variance(values: NDArray[Any]) -> float:
    variance = float(np.mean(np.var(np.asarray(values, np.float64), axis=0)))
    return variance if variance > 1e-12 else 1.0  # constant values have no scale of their own


# -- distillation ----------------------------------------------------------------------------------


def distillation(
    outputs: Sequence[Output], student: Sequence[Any], teacher: Sequence[Any], temperature: float
) -> Any:
    """The mean distance between the student's and the teacher's outputs, tensors (N, ...).

    For classes it is T²·KL of the softened distributions (Hinton, Vinyals, Dean 2015, arXiv
    1503.02531, section 2), for plain values the squared error in units of their variance.
    """
    import tensorflow as tf

    total = 0.0
    for output, values, targets in zip(outputs, student, teacher, strict=True):
        if output.kind == "values":
            total += tf.reduce_mean(tf.square(values - targets)) / output.variance
        else:
            target = _log_probabilities(output.kind, targets, temperature)
            predicted = _log_probabilities(output.kind, values, temperature)
            total += temperature**2 * tf.reduce_mean(
                tf.reduce_sum(tf.exp(target) * (target - predicted), -1)
            )
    return total / len(outputs)


def _log_probabilities(kind: Kind, values: Any, temperature: float = 1.0) -> Any:
    """Log-probabilities over the last axis; for a sigmoid that is a new axis of two classes."""
    import tensorflow as tf

    if kind in ("sigmoid", "logit"):
        logit = values
        if kind == "sigmoid":
            logit = tf.math.log(values + _TINY) - tf.math.log(1 - values + _TINY)
        return tf.stack(
            [tf.math.log_sigmoid(-logit / temperature), tf.math.log_sigmoid(logit / temperature)],
            -1,
        )
    logits = tf.math.log(values + _TINY) if kind == "softmax" else values
    return tf.nn.log_softmax(logits / temperature)


def features(student: Sequence[Any], teacher: Sequence[Any], variances: Sequence[float]) -> Any:
    """The mean over feature maps of the squared error, in units of the teacher's variance.

    ``variances``: of each map of the teacher, the mean over its channels.
    """
    import tensorflow as tf

    total = 0.0
    for values, targets, variance in zip(student, teacher, variances, strict=True):
        total += tf.reduce_mean(tf.square(values - targets)) / max(variance, _TINY)
    return total / max(len(student), 1)


# -- the task --------------------------------------------------------------------------------------

#: A function of outputs, labels and, where samples have weights, one tensor of them (N,).
TaskLoss = Callable[..., Any]


def task_loss(graph: Graph, outputs: Sequence[Output], sample: tuple[Batch, Batch]) -> TaskLoss:
    """The task loss, a function of outputs, labels and weights of the samples (tensors).

    It is the loss that the model was compiled with. A model without one has a loss by the kind of
    each output, averaged over the outputs: cross-entropy for classes, squared error in units of the
    labels' variance for values. ``sample`` holds outputs and labels to try the model's own loss on;
    UsageError when it does not take them.
    """
    import tensorflow as tf

    compiled = own_losses(graph)
    if compiled is None:
        return lambda predicted, labels, *weights: _usual(outputs, predicted, labels, *weights)

    def own(predicted: Sequence[Any], labels: Sequence[Any], *weights: Any) -> Any:
        parts = [
            weight * _mean(loss, _fitted(label, values, loss), values, *weights)
            for (loss, weight), values, label in zip(compiled, predicted, labels, strict=True)
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


def _mean(loss: Any, target: Any, values: Any, *weights: Any) -> Any:
    """The mean of a Keras loss over the samples, with their weights where there are any."""
    import keras
    import tensorflow as tf

    if isinstance(loss, keras.losses.Loss):
        return tf.reduce_mean(loss(target, values, *weights))
    values = loss(target, values)
    for weight in weights:
        values = weight * tf.reduce_mean(tf.reshape(values, (tf.shape(values)[0], -1)), -1)
    return tf.reduce_mean(values)


def own_losses(graph: Graph) -> tuple[tuple[Any, float], ...] | None:
    """The Keras loss and the weight of each output, with which the model was compiled.

    None when it was not compiled, or with no loss for any output.
    """
    import keras

    config: Mapping[str, Any] = graph.compiled or {}
    compiled, weights = config.get("loss"), config.get("loss_weights")
    if compiled is None:
        return None
    compiled = keras.saving.deserialize_keras_object(compiled)
    losses, scales = _in_order(graph, compiled, None), _in_order(graph, weights, 1.0)
    pairs = tuple(
        (None if loss is None else keras.losses.get(loss), 1.0 if scale is None else float(scale))
        for loss, scale in zip(losses, scales, strict=True)
    )
    return pairs if any(loss is not None for loss, _ in pairs) else None


def _in_order(graph: Graph, values: Any, default: Any) -> list[Any]:
    """The values of the outputs in the order of ``graph.outputs``.

    ``values`` is one for all outputs, a list, or a dict by key or layer.
    """
    import keras

    count = len(graph.outputs)
    if isinstance(values, Mapping):
        packed = graph.structure[1]
        keys = [ref.op for ref in graph.outputs]
        if isinstance(packed, Mapping):
            for key, slot in packed.items():
                keys[slot.port] = key
        return [
            values.get(key, values.get(ref.op, default))
            for key, ref in zip(keys, graph.outputs, strict=True)
        ]
    if isinstance(values, list | tuple):
        flat = keras.tree.flatten(values)
        return flat if len(flat) == count else [default] * count
    return [default if values is None else values] * count


def _fitted(target: Any, values: Any, loss: Any) -> Any:
    """Labels in the form that the loss takes.

    Class indices stay as they are for a sparse loss and become one-hot for others. A single value
    gets the axis that its output has.
    """
    import tensorflow as tf

    if len(target.shape) != len(values.shape) - 1 or "sparse" in _name(loss):
        return target
    if values.shape[-1] == 1:
        return tf.cast(target, tf.float32)[..., None]
    return tf.one_hot(target, values.shape[-1])


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__))


def _usual(
    outputs: Sequence[Output], predicted: Sequence[Any], labels: Sequence[Any], *weights: Any
) -> Any:
    """The mean over outputs of the loss that is usual for their kind."""
    import tensorflow as tf

    values = by_sample(outputs, predicted, labels)
    for weight in weights:
        values = weight * values
    return tf.reduce_mean(values)


def by_sample(outputs: Sequence[Output], predicted: Sequence[Any], labels: Sequence[Any]) -> Any:
    """The loss (N,) of each sample, the mean over outputs of the one usual for their kind."""
    import tensorflow as tf

    total = 0.0
    for output, values, target in zip(outputs, predicted, labels, strict=True):
        values = tf.convert_to_tensor(values)
        if output.kind == "values":
            fitted = tf.reshape(tf.cast(target, values.dtype), tf.shape(values))
            parts = tf.square(values - fitted) / output.target_variance
        elif output.kind in ("sigmoid", "logit"):
            logs = _log_probabilities(output.kind, values)
            share = tf.reshape(tf.cast(target, values.dtype), tf.shape(values))
            parts = -(share * logs[..., 1] + (1 - share) * logs[..., 0])
        elif len(target.shape) == len(values.shape) - 1:
            parts = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.cast(target, tf.int64), _log_probabilities(output.kind, values)
            )
        else:
            logs = _log_probabilities(output.kind, values)
            parts = -tf.reduce_sum(tf.cast(target, values.dtype) * logs, -1)
        total += tf.reduce_mean(tf.reshape(parts, (tf.shape(parts)[0], -1)), -1)
    return total / len(outputs)
