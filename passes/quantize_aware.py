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
from lrfc.training.loop import Epoch, History, Loop
from lrfc.training.rate import annealed
from lrfc.training.scoring import scorer


@dataclass(frozen=True, eq=False)
class QuantizedModel(Fact):
    """The network in tf_keras with its rounding inside, from which an int8 file is converted.

    ``model`` is annotated by tensorflow-model-optimization. ``scores``: the validation score of
    each epoch; entry 0 is before the first. ``best``: the entry whose weights were kept.
    """

    model: Any
    scores: tuple[float, ...]
    best: int


@dataclass(frozen=True)
class QuantizeAware:
    """Quantisation-aware training, with the original as the teacher.

    Jacob et al. 2018, arXiv 1712.05877, through tensorflow-model-optimization. The graph is
    converted to tf_keras and annotated layer by layer: kernels of 8 bits with a scale per output
    channel (one for all channels of a matrix, a depthwise or a transposed convolution), activations
    of 8 bits. Convolutions along three axes stay float, as in the file. Activation ranges start
    from calibration samples.

    A few epochs of Adam follow, with a small learning rate that falls on a cosine. The loss is the
    distance of the outputs and the task loss, mixed as in FineTune. The weights with the best
    validation score are kept, which may be those before the first epoch. FoldBatchNorm must come
    before: a BatchNorm would be trained in a form that no file computes.

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
        """Return the state with the trained weights and the model to convert.

        ModelError when the graph cannot be converted to tf_keras.
        """
        training = _Training(self, state)
        history = training()
        graph = raised(state.graph, training.weights())
        return state.with_graph(graph).with_fact(
            QuantizedModel(training.model, tuple(history.scores), history.best)
        )


class _Training:
    """The annotated model and its training."""

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
        sample = None
        if train.targets is not None:
            sample = (head(self._taught, 512), head(train.targets, 512))
        task = None if sample is None else losses.task_loss(state.original, outputs, sample)
        self._optimizer = tf_keras.optimizers.Adam(options.learning_rate)
        self._count = len(train)
        self._batch = options.batch or int(np.clip(self._count // 20, 16, 128))
        self._steps = -(-self._count // self._batch)
        self._first = train.take(np.arange(min(self._batch, self._count))).inputs
        self._report: Callable[[int], None] = lambda steps: None
        self._score = scorer(state.original, teach, state.data, options.metric)
        self._step, self._forward, self._run = self._functions(outputs, task)

    def __call__(self) -> History:
        """Train, and leave the model with the best weights."""
        progress, epochs = self._state.progress, self._options.epochs
        self._report = progress.stage("quantise-aware", max(1, self._steps * epochs))
        try:
            self._observe()
        except Exception as error:  # the first time that the layers compute in training mode
            raise annotate.refusal(self._state.graph, error) from error
        loop = Loop(
            epochs=epochs,
            train=self._epoch,
            score=lambda: self._score(self._run),
            weights=self.model.get_weights,
            text=self._text,
            log=progress.log,
            loss_format=".4g",
        )
        history = loop.start()
        progress.log(f"  before: validation {self._text(history.scores[0])}")
        loop.run(history)
        self.model.set_weights(history.weights)
        loop.log_best(history)
        return history

    def _epoch(self, number: int) -> Epoch:
        epoch, total = number - 1, 0.0
        order = np.random.default_rng((self._state.seed, epoch)).permutation(self._count)
        for step, start in enumerate(range(0, len(order), self._batch)):
            done = (epoch + step / self._steps) / self._options.epochs
            self._optimizer.learning_rate.assign(self._options.learning_rate * annealed(done))
            rows = np.sort(order[start : start + self._batch])
            total += float(self._step(*self._samples(rows)))
            self._report(1)
        self._observe()
        return Epoch(total / self._steps)

    def _observe(self) -> None:
        """Update the ranges of the kernels, which happens in training mode only."""
        self._forward(*self._tensors(self._first))

    def weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The trained arrays of each op, by tf_keras' names."""
        trained: dict[str, dict[str, NDArray[Any]]] = {}
        layers = {layer.name.removeprefix("quant_"): layer for layer in self.model.layers}
        for op, name in self._lowered.layers.items():
            if name in layers and layers[name].trainable_weights:
                trained[op] = {
                    weight.name.split(":")[0].rpartition("/")[2]: weight.numpy()
                    for weight in layers[name].trainable_weights
                }
        return trained

    def _text(self, score: float) -> str:
        return f"{self._score.text(score)} in int8"

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
        """The compiled step, and the model in training mode and in inference mode."""
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
        def forward(*inputs: Any) -> Any:
            return model(list(inputs), training=True)

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def infer(*inputs: Any) -> Any:
            return tf.nest.flatten(model(list(inputs), training=False))

        def run(batch: Batch) -> Batch:
            return tuple(np.asarray(y) for y in infer(*self._tensors(batch)))

        return step, forward, run
