"""The steps of a training, each from a batch of samples to updated weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data.dataset import Split
from lrfc.ir.batch import Batch
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.training import own, rate, sample_weights
from lrfc.training.adam import Adam
from lrfc.training.augment import Augmentation, augmentation
from lrfc.training.balance import balanced
from lrfc.training.decay import Decay
from lrfc.training.features import block_ends, tapped
from lrfc.training.mixup import mixed
from lrfc.training.objective import Goal, Objective
from lrfc.training.recipe import Recipe
from lrfc.training.replicas import Replicas
from lrfc.training.teacher import Teacher

#: Samples by which outputs are described and augmentation is judged.
_SAMPLE = 512
#: The most steps of one trial of a learning rate, the batches that judge it, and the share of the
#: training's steps that a trial may take.
_TRIAL, _PROBE, _TRIAL_SHARE = 24, 4, 1 / 8


class Trainer:
    """A graph as a Keras model, the original as its teacher, and a compiled step of Adam.

    Weights decay apart from the gradients (Loshchilov and Hutter 2019, arXiv 1711.05101), by the
    product of a layer's factors (Khodak et al. 2021, arXiv 2105.01029). The randomness of a step
    comes from the seed and the step's number, so that a training can be continued.
    """

    def __init__(
        self, graph: Graph, original: Graph, train: Split, recipe: Recipe, seed: int
    ) -> None:
        import keras

        from lrfc.ir.keras import io as keras_io

        self._recipe, self._train, self._seed = recipe, train, seed
        keras.utils.set_random_seed(seed)
        if recipe.batchnorm == "frozen":
            # The same function: apart, the scales and shifts of maps and their gradients take a
            # fifth of a student's step (ResNet-20 at 28 % of the MACs: 224 and 180 ms).
            graph = balanced(fold_batchnorm(graph))
        taps = block_ends(original, graph) if recipe.features > 0 else ()
        self.maps = len(taps)
        count = len(graph.outputs)
        # Keras' own optimizers and a prescribed number of samples take one device.
        self._replicas = Replicas(single=recipe.as_compiled or _fixed_batch(graph) is not None)
        with self._replicas.scope():
            self._model = keras_io.to_keras(tapped(graph, taps))
            self._teacher = Teacher(original, taps)
        if recipe.batchnorm == "trained" and not recipe.as_compiled:
            for layer in self._model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.momentum = 0.9  # a few epochs are too short for Keras' default of 0.99
        #: The network in training, with its own outputs.
        self.model = keras.Model(self._model.input, self._model.outputs[:count])
        #: The network and the original with their own outputs, as functions of a batch.
        self.run = keras_io.compiled(self.model)
        self.teach = self._teacher.run
        self._graph = graph
        self.batch = _fixed_batch(graph) or recipe.batch or int(np.clip(len(train) // 20, 16, 128))
        sample = train.take(np.unique(np.linspace(0, len(train) - 1, _SAMPLE).astype(np.intp)))
        self.augmentation: Augmentation = augmentation(
            original,
            sample.inputs,
            sample.targets,
            lambda batch: keras_io.predict(self.teach, batch),
            wanted=recipe.augment,
            seed=seed,
        )
        #: Whether samples are mixed in pairs: only where all inputs are images.
        images = len(self.augmentation.images) == len(graph.inputs)
        self.mixes = bool(self.augmentation) and images and recipe.mixup and not recipe.as_compiled
        if not (self.augmentation or recipe.as_compiled):
            self._teacher.keep(train.inputs)
        self._weights = sample_weights.weights(train, by_class=recipe.class_weights == "balanced")
        self._objective = Objective.of(recipe, original, self._teacher, sample)
        variables = self._model.trainable_variables
        with self._replicas.scope():
            self._optimizer: Adam | own.Optimizer = (
                own.Optimizer(original, variables) if recipe.as_compiled else Adam(variables)
            )
        self._decay = Decay(graph, self._model, recipe.decay)
        self._step, self._loss = self._functions()

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return bool(self._model.trainable_variables)

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return len(self._parts(np.arange(len(self._train))))

    def epoch(self, number: int) -> list[NDArray[np.intp]]:
        """The rows of each batch of that epoch, in a random order by its number."""
        return self._parts(
            np.random.default_rng((self._seed, number)).permutation(len(self._train))
        )

    def step(self, rows: NDArray[np.intp], learning_rate: float, number: int) -> float:
        """Update the weights on the samples of those rows, and return their loss.

        ``number`` is the seed of the step's randomness.
        """
        return float(self._step(*self._samples(rows, number), np.float32(learning_rate)))

    def probe(self) -> float:
        """The mean loss of a few batches, always the same ones, in inference mode."""
        parts = self.epoch(0)[-_PROBE:]
        return float(
            np.mean(
                [float(self._loss(*self._samples(rows, -1 - i))) for i, rows in enumerate(parts)]
            )
        )

    def state(self) -> list[NDArray[Any]]:
        """Copies of all that a step changes: weights, statistics, random states, Adam's moments."""
        return [
            np.array(variable) for variable in (*self._model.variables, *self._optimizer.variables)
        ]

    def restore(self, state: Sequence[NDArray[Any]]) -> None:
        """Restore a result of ``state``. ValueError when it belongs to another training."""
        variables = (*self._model.variables, *self._optimizer.variables)
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)

    def weights(self) -> list[NDArray[Any]]:
        """Copies of the model's weights."""
        return [np.array(weight) for weight in self._model.get_weights()]

    def absorbed(self, weights: Sequence[NDArray[Any]]) -> Graph:
        """The graph with those weights."""
        from lrfc.ir.keras import io as keras_io

        self._model.set_weights(weights)
        return keras_io.absorb(self._graph, self._model)

    @property
    def own_rate(self) -> float | None:
        """The learning rate of the optimizer that the model was compiled with; None for Adam."""
        return None if isinstance(self._optimizer, Adam) else self._optimizer.learning_rate

    def seconds_per_step(self) -> float:
        """The duration of a step after the first, which compiles. Nothing is changed."""
        before = self.state()
        rows = self.epoch(0)[0]
        self.step(rows, 0.0, 0)
        start = time.perf_counter()
        for _ in range(2):
            self.step(rows, 0.0, 0)
        self.restore(before)
        return (time.perf_counter() - start) / 2

    def find_rate(self, steps: int) -> tuple[float, int]:
        """The best learning rate for a training of ``steps`` steps, and the number of trials.

        Each trial is a short training: at most 24 steps with warm-up and cosine, from the same
        start on the same batches, judged by ``probe``. It follows L. Smith's range test (2017,
        arXiv 1506.01186), which lets the rate rise in one run. Nothing is changed.
        """
        before = self.state()
        length = int(np.clip(steps * _TRIAL_SHARE, 4, _TRIAL))
        order = self.epoch(0)

        def trial(learning_rate: float) -> float:
            self.restore(before)
            for number in range(length):
                self.step(
                    order[number % len(order)],
                    learning_rate * rate.annealed(number / length),
                    number,
                )
            return self.probe()

        best, tried = rate.best(rate.candidates(self._graph), trial)
        self.restore(before)
        return best, len(tried)

    # -- parts of a step ---------------------------------------------------------------------------

    def _parts(self, order: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """The rows of each batch; a part of a batch only where the graph takes any number.

        And only where it has a sample for each device.
        """
        whole = _fixed_batch(self._graph) is not None
        parts = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        least = self.batch if whole else self._replicas.count
        return [part for part in parts if len(part) >= least]

    def _samples(
        self, rows: NDArray[np.intp], number: int
    ) -> tuple[tuple[Batch, ...], NDArray[np.int32]]:
        """The arguments of a step: a batch, and the seed of that number.

        A batch is inputs, labels, weights and what the teacher has kept; empty where there is none.
        """
        rows = np.sort(rows)  # rows in order are read faster from a file
        samples = self._train.take(rows)
        batch = (
            tuple(np.asarray(x) for x in samples.inputs),
            samples.targets or (),
            () if self._weights is None else (self._weights[rows],),
            self._teacher.known(rows),
        )
        return batch, np.array([self._seed % 2**31, number], np.int32)

    def _specs(self) -> tuple[Any, ...]:
        """The types of ``_samples`` for a batch of any size, or of the one that the graph takes."""
        import tensorflow as tf

        size = _fixed_batch(self._graph)
        batch, seed = self._samples(np.arange(1), 0)
        specs = tuple(
            tuple(tf.TensorSpec((size, *array.shape[1:]), array.dtype) for array in arrays)
            for arrays in batch
        )
        return specs, tf.TensorSpec(seed.shape, seed.dtype)

    def _functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The compiled step and the compiled loss."""
        import tensorflow as tf

        recipe, model, replicas = self._recipe, self._model, self._replicas
        samples, rate_spec = self._specs(), tf.TensorSpec((), tf.float32)

        def augmented(batch: Any, seed: Any) -> Any:
            inputs, labels, weights, known = batch
            goals: tuple[Goal, ...] = ((labels, weights),)
            if self.augmentation:
                inputs = tuple(self.augmentation(inputs, seed))
            if self.mixes:
                inputs, goals = mixed(inputs, goals[0], seed)
            return inputs, goals, known

        def still(*batch: Any) -> Any:
            return self._total(*batch, training=False)

        def descent(*batch: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self._total(*batch, training=recipe.batchnorm == "trained")
            # The variables of TensorFlow: it cannot make zeros for those of Keras.
            variables = [variable.value for variable in model.trainable_variables]
            return loss, tape.gradient(
                loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )

        # Traced once: a trace of a step costs as much as hundreds of steps of a small model.
        @tf.function(input_signature=(*samples, rate_spec), autograph=False)  # type: ignore[untyped-decorator]
        def step(batch: Any, seed: Any, learning_rate: Any) -> Any:
            loss, gradients = replicas.mean(descent, *augmented(batch, seed))
            if recipe.clip is not None:
                gradients, _ = tf.clip_by_global_norm(gradients, recipe.clip)
            self._decay(learning_rate)
            self._optimizer.apply(gradients, learning_rate)
            return loss

        @tf.function(input_signature=samples, autograph=False)  # type: ignore[untyped-decorator]
        def loss(batch: Any, seed: Any) -> Any:
            return replicas.mean(still, *augmented(batch, seed))

        return step, loss

    def _total(self, inputs: Any, goals: Any, known: Any, *, training: bool) -> Any:
        """The loss of a batch, with those of the model's regularizers where they count."""
        import keras

        from lrfc.ir.keras import io as keras_io

        values = keras.tree.flatten(keras_io.call(self._model, inputs, training=training))
        loss = self._objective(values, lambda: self._teacher(inputs, known), goals)
        return sum(self._model.losses, loss) if self._recipe.as_compiled else loss


def _fixed_batch(graph: Graph) -> int | None:
    """The batch size that the graph prescribes; None when it takes any."""
    return graph.tensors(graph.inputs[0])[0].shape[0]
