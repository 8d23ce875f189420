"""Train the network with the rounding of its int8 file simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lrfc.data.counts import CALIBRATED
from lrfc.ir.batch import Batch, head
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras.tf_keras_lower import lower, raised
from lrfc.state import Fact, State
from lrfc.training import annotate, losses
from lrfc.training.rate import annealed
from lrfc.training.scoring import scorer, shown


@dataclass(frozen=True, eq=False)
class QuantizedModel(Fact):
    """The network in tf_keras with its rounding inside, as tensorflow-model-optimization has annotated it: what an int8 file is converted from.

    ``scores``: the validation score before the first epoch and after each; ``best``: of the epoch
    whose weights were kept.
    """

    model: Any
    scores: tuple[float, ...]
    best: int


@dataclass(frozen=True)
class QuantizeAware:
    """Quantisation-aware training (Jacob et al.

    2018, arXiv 1712.05877) through tensorflow-model-optimization, with the original as the teacher.

    The graph is carried over to tf_keras and annotated layer by layer: kernels of 8 bits with a
    scale per output channel (one for all channels of a matrix, a depthwise or a transposed
    convolution), activations of 8 bits. Convolutions along three axes stay float, as in the file.
    Activation ranges begin with those of calibration inputs. Then a few epochs of Adam with a small
    learning rate, which falls on a cosine, on the distance of the outputs and the task loss, mixed
    as in FineTune. The best weights by the validation score are kept, which may be those before the
    first epoch. To be run behind FoldBatchNorm: a BatchNorm would be trained on what no file
    computes.

    Given and result: the graph keeps its ops and shapes; weights change.
    """

    epochs: int = 2
    learning_rate: float = 3e-5
    batch: int | None = None
    temperature: float = 2.0
    distillation: float = 0.7
    metric: str | None = None

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (QuantizedModel,)
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the trained weights, and the model to convert.

        ModelError when the graph cannot be carried over.
        """
        training = _Training(self, state)
        scores = training()
        graph = raised(state.graph, training.weights())
        return state.with_graph(graph).with_fact(
            QuantizedModel(training.model, tuple(scores), int(np.argmax(scores)))
        )


class _Training:
    """The annotated model, and how it is trained."""

    def __init__(self, options: QuantizeAware, state: State) -> None:
        import tf_keras

        self._options, self._state = options, state
        tf_keras.utils.set_random_seed(state.seed)
        with annotate.tools() as tools:
            self._lowered = lower(state.graph)
            self.model = annotate.annotated(tools, state.graph, self._lowered)
        annotate.calibrate(
            self.model, state.graph, self._lowered, state.data.train.head(CALIBRATED).inputs
        )
        train = state.data.train
        teach = keras_io.compiled(state.original)
        self._taught = keras_io.predict(teach, train.inputs)
        outputs = losses.describe(state.original, self._taught, train.targets)
        few = None if train.targets is None else (head(self._taught, 512), head(train.targets, 512))
        task = None if few is None else losses.task_loss(state.original, outputs, few)
        self._optimizer = tf_keras.optimizers.Adam(options.learning_rate)
        self._size = options.batch or int(np.clip(len(train) // 20, 16, 128))
        self._score = scorer(state.original, teach, state.data.validation, options.metric)
        self._shown = shown(state.original, state.data.validation, options.metric)
        self._step, self._look, self._run = self._functions(outputs, task)

    def __call__(self) -> list[float]:
        """Train; the model is left with the best weights.

        The scores of all epochs, the first entry before the first one.
        """
        progress, train = self._state.progress, self._state.data.train
        steps = -(-len(train) // self._size)
        report = progress.stage("quantise-aware", max(1, steps * self._options.epochs))
        first = train.take(np.arange(min(self._size, len(train)))).inputs
        try:
            self._look(
                *self._tensors(first)
            )  # the ranges of kernels are seen in training mode only
        except Exception as error:  # the first time that the layers compute in it
            raise annotate.refusal(self._state.graph, error) from error
        best = self.model.get_weights()
        scores = [self._score(self._run)]
        progress.log(f"  before: validation {self._shown(scores[0])} in int8")
        for epoch in range(self._options.epochs):
            order = np.random.default_rng((self._state.seed, epoch)).permutation(len(train))
            total = 0.0
            for number, start in enumerate(range(0, len(order), self._size)):
                done = (epoch + number / steps) / self._options.epochs
                self._optimizer.learning_rate.assign(self._options.learning_rate * annealed(done))
                total += float(
                    self._step(*self._samples(np.sort(order[start : start + self._size])))
                )
                report(1)
            self._look(*self._tensors(first))
            scores.append(self._score(self._run))
            if scores[-1] > max(scores[:-1]):
                best = self.model.get_weights()
            progress.log(
                f"  epoch {epoch + 1}/{self._options.epochs}: loss {total / steps:.4g}, validation"
                f" {self._shown(scores[-1])} in int8"
            )
        self.model.set_weights(best)
        kept = int(np.argmax(scores))
        progress.log(
            f"  kept: {'the weights before the first epoch' if kept == 0 else f'epoch {kept}'},"
            f" validation {self._shown(scores[kept])} in int8"
        )
        return scores

    def weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Op → its trained arrays, by tf_keras' names."""
        found: dict[str, dict[str, NDArray[Any]]] = {}
        layers = {layer.name.removeprefix("quant_"): layer for layer in self.model.layers}
        for op, name in self._lowered.layers.items():
            if name in layers and layers[name].trainable_weights:
                found[op] = {
                    weight.name.split(":")[0].rpartition("/")[2]: weight.numpy()
                    for weight in layers[name].trainable_weights
                }
        return found

    def _tensors(self, inputs: Batch) -> list[Any]:
        import tensorflow as tf

        return [
            tf.cast(tf.constant(np.asarray(x)), tensor.dtype)
            for x, tensor in zip(inputs, self.model.inputs, strict=True)
        ]

    def _samples(self, rows: NDArray[np.intp]) -> tuple[list[Any], Batch, Batch]:
        part = self._state.data.train.take(rows)
        return self._tensors(part.inputs), tuple(y[rows] for y in self._taught), part.targets or ()

    def _functions(
        self, outputs: Any, task: Any
    ) -> tuple[Callable[..., Any], Callable[..., Any], Callable[[Batch], Batch]]:
        """The compiled step, a pass that shows the model its ranges, and the model in inference mode."""
        import tensorflow as tf

        options, model, optimizer = self._options, self.model, self._optimizer

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def step(inputs: Any, taught: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                learnt = tf.nest.flatten(model(inputs, training=True))
                loss = losses.distillation(outputs, learnt, taught, options.temperature)
                if task is not None:
                    loss = options.distillation * loss + (1 - options.distillation) * task(
                        learnt, labels
                    )
            variables = model.trainable_variables
            gradients, _ = tf.clip_by_global_norm(
                tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO),
                1.0,
            )
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def look(*inputs: Any) -> Any:
            return model(list(inputs), training=True)

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def infer(*inputs: Any) -> Any:
            return tf.nest.flatten(model(list(inputs), training=False))

        def run(batch: Batch) -> Batch:
            return tuple(np.asarray(y) for y in infer(*self._tensors(batch)))

        return step, look, run
