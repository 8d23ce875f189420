"""Train the compressed model once, with the original as its teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lrfc.data import Split
from lrfc.ir.graph import Graph
from lrfc.metrics import accuracy, classifies, labels
from lrfc.search.sensitivity import divergence, is_distribution
from lrfc.state import Batch, Fact, State, batches


@dataclass(frozen=True)
class Tuning(Fact):
    """What each epoch gave: the mean training loss, and the validation score (higher is better); entry 0 is before the first epoch.

    The score is the accuracy where the data have class labels, otherwise minus the divergence from the original's outputs.
    """

    about_graph: ClassVar[bool] = False

    losses: tuple[float | None, ...]
    scores: tuple[float, ...]
    best: int


@dataclass(frozen=True)
class FineTune:
    """One run of distillation from the original (Hinton et al. 2015, arXiv 1503.02531), with the task loss where there are labels.

    Adam with a cosine schedule after a short warm-up. The weights of the best epoch by the validation score are kept, which may be those
    before the first: fine-tuning never ends worse than it began.
    """

    epochs: int = 3
    batch: int = 128
    learning_rate: float = 1e-3
    temperature: float = 2.0
    distillation: float = 0.7

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Tuning,)
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the trained weights and its Tuning."""
        import keras

        from lrfc.ir import keras_io

        train, validation = state.data.train, state.data.validation
        teacher = keras_io.compiled(state.original)
        targets = keras_io.predict(teacher, train.inputs)
        score = scorer(state.original, teacher, validation)
        model = keras_io.to_keras(state.graph)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.9  # a few epochs are too few steps for Keras' default of 0.99
        steps = -(-len(train) // self.batch) * self.epochs
        truth = labels(train) if classifies(state.original, train) and targets[0].shape[-1] > 1 else None
        step = self._trainer(model, targets, train, truth, steps)
        run = keras_io.compiled(model)
        best, weights = 0, [np.array(w) for w in model.get_weights()]
        losses: list[float | None] = [None]
        scores = [score(run)]
        rng = np.random.default_rng(state.seed)
        keras.utils.set_random_seed(state.seed)
        report = state.progress.stage("fine-tune", steps)
        for epoch in range(1, self.epochs + 1):
            total = 0.0
            for index in batches((rng.permutation(len(train)),), self.batch):
                total += float(step(*index)) * len(index[0])
                report(1)
            losses.append(total / len(train))
            scores.append(score(run))
            state.progress.log(f"  epoch {epoch}/{self.epochs}: loss {losses[-1]:.4f}, validation score {scores[-1]:.4f}")
            # Broken weights are no improvement, even where class 0, the guess of an output full of NaN, is the most frequent.
            if scores[-1] > scores[best] and all(np.isfinite(w).all() for w in model.get_weights()):
                best, weights = epoch, [np.array(w) for w in model.get_weights()]
        model.set_weights(weights)
        tuned = state.with_graph(keras_io.absorb(state.graph, model))
        return tuned.with_fact(Tuning(tuple(losses), tuple(scores), best))

    def _trainer(
        self, model: Any, targets: Batch, train: Split, truth: np.ndarray[Any, Any] | None, steps: int
    ) -> Callable[[np.ndarray[Any, Any]], float]:
        """A function that trains on the samples of an index array and returns their loss. ``truth``: the class indices, if there are any."""
        import keras
        import tensorflow as tf

        from lrfc.ir import keras_io

        warm = max(1, min(steps // 10, 200))
        rate = keras.optimizers.schedules.CosineDecay(
            self.learning_rate * 0.05, max(1, steps - warm), warmup_target=self.learning_rate, warmup_steps=warm
        )
        optimizer = keras.optimizers.Adam(rate)
        optimizer.build(model.trainable_variables)
        scales = [max(float(np.var(t)), 1e-12) for t in targets]
        soft = [is_distribution(t) for t in targets]

        def logits(values: Any, probabilities: bool) -> Any:
            return tf.math.log(values + 1e-9) if probabilities else values

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def train_step(inputs: Any, taught: Any, label: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = keras.tree.flatten(keras_io.call(model, inputs, training=True))
                loss = 0.0
                for output, target, scale, probabilities in zip(outputs, taught, scales, soft, strict=True):
                    if probabilities or truth is not None:
                        t = self.temperature
                        teach = tf.nn.softmax(logits(target, probabilities) / t)
                        learn = tf.nn.log_softmax(logits(output, probabilities) / t)
                        known = tf.nn.log_softmax(logits(target, probabilities) / t)
                        loss += t * t * tf.reduce_mean(tf.reduce_sum(teach * (known - learn), -1))
                    else:
                        loss += tf.reduce_mean(tf.square(output - target)) / scale
                if truth is not None:
                    task = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits(outputs[0], soft[0]))
                    loss = self.distillation * loss + (1 - self.distillation) * tf.reduce_mean(task)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        def step(index: np.ndarray[Any, Any]) -> float:
            chosen = np.sort(index)
            inputs = tuple(np.asarray(x[chosen]) for x in train.inputs)
            label = truth[chosen] if truth is not None else np.zeros(len(chosen), np.int64)
            return float(train_step(inputs, tuple(t[chosen] for t in targets), label))

        return step


def scorer(original: Graph, teacher: Any, split: Split) -> Callable[[Any], float]:
    """A function that scores a runner on a split: the accuracy, or without class labels minus the divergence from the original."""
    from lrfc.ir import keras_io

    if classifies(original, split):
        return lambda run: accuracy(keras_io.predict(run, split.inputs), split)
    reference = keras_io.predict(teacher, split.inputs)
    return lambda run: -divergence(reference, keras_io.predict(run, split.inputs))
