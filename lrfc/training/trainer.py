"""The steps of a training: batches in, updated weights out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrfc.data.dataset import Split
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.training import losses, rate
from lrfc.training.adam import Adam
from lrfc.training.augment import Augmentation, augmentation
from lrfc.training.decay import chains
from lrfc.training.features import block_ends, tapped

#: Samples by which outputs are described and augmentation is judged.
_SAMPLE = 512
#: Steps of one trial of a learning rate at most, batches that judge it, and the share of the
#: training's steps that a trial may take.
_TRIAL, _PROBE, _TRIAL_SHARE = 24, 4, 1 / 8


@dataclass(frozen=True)
class Recipe:
    """How to train.

    ``batch`` None: 128, less where an epoch would have fewer than 20 steps, at least 16.
    """

    batch: int | None = None
    temperature: float = 2.0
    distillation: float = 0.7
    features: float = 1.0
    decay: float = 1e-2
    clip: float = 1.0
    batchnorm: Literal["frozen", "trained"] = "frozen"
    augment: bool | None = None


class Trainer:
    """A graph as a Keras model, the original as its teacher, and a compiled step of Adam.

    Weights decay apart from the gradients (Loshchilov and Hutter 2019, arXiv 1711.05101), by the
    product of a layer's factors (Khodak et al. 2021, arXiv 2105.01029). Each step's randomness is
    drawn from the seed and the step's number, so a training can go on where another left off.
    """

    def __init__(
        self, graph: Graph, original: Graph, train: Split, recipe: Recipe, seed: int
    ) -> None:
        import keras

        from lrfc.ir.keras import io as keras_io

        self._recipe, self._train, self._seed = recipe, train, seed
        keras.utils.set_random_seed(seed)
        taps = block_ends(original, graph) if recipe.features > 0 else ()
        self.maps = len(taps)
        count = len(graph.outputs)
        self._model, self._teacher = (
            keras_io.to_keras(tapped(each, taps)) for each in (graph, original)
        )
        if recipe.batchnorm == "trained":
            for layer in self._model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.momentum = (
                        0.9  # a few epochs are too few steps for Keras' default of 0.99
                    )
        #: The model's and the original's own outputs, as ``keras_io.compiled`` gives them.
        self.run, self.teach = (
            keras_io.compiled(keras.Model(model.input, model.outputs[:count]))
            for model in (self._model, self._teacher)
        )
        self._graph = graph
        self.batch = _fixed_batch(graph) or recipe.batch or int(np.clip(len(train) // 20, 16, 128))
        few = train.take(np.unique(np.linspace(0, len(train) - 1, _SAMPLE).astype(np.intp)))
        taught = keras_io.predict(self.teach, few.inputs)
        self.augmentation: Augmentation = augmentation(
            original,
            few.inputs,
            few.targets,
            lambda batch: keras_io.predict(self.teach, batch),
            wanted=recipe.augment,
            seed=seed,
        )
        outputs = losses.describe(original, taught, few.targets)
        task = (
            None
            if few.targets is None
            else losses.task_loss(original, outputs, (taught, few.targets))
        )
        self._optimizer = Adam(self._model.trainable_variables)
        self._decayed = self._products()
        self._step, self._loss = self._functions(outputs, task)

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return bool(self._model.trainable_variables)

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return len(self._parts(np.arange(len(self._train))))

    def epoch(self, number: int) -> list[NDArray[np.intp]]:
        """The rows of each batch of that epoch, in a random order of its own."""
        return self._parts(
            np.random.default_rng((self._seed, number)).permutation(len(self._train))
        )

    def step(self, rows: NDArray[np.intp], learning_rate: float, number: int) -> float:
        """One update on the samples of those rows; gives their loss.

        ``number`` decides what is random about it.
        """
        return float(self._step(*self._samples(rows, number), np.float32(learning_rate)))

    def probe(self) -> float:
        """The mean loss of a few batches, always the same, in inference mode."""
        parts = self.epoch(0)[-_PROBE:]
        return float(
            np.mean(
                [float(self._loss(*self._samples(rows, -1 - i))) for i, rows in enumerate(parts)]
            )
        )

    def state(self) -> list[NDArray[Any]]:
        """Copies of everything that steps change: weights, statistics, random states, and what Adam remembers."""
        return [
            np.array(variable) for variable in (*self._model.variables, *self._optimizer.variables)
        ]

    def restore(self, state: Sequence[NDArray[Any]]) -> None:
        """Set what ``state`` gave. ValueError when it is of another training."""
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

    def seconds_per_step(self) -> float:
        """How long a step takes, after the first, which compiles. Nothing is changed."""
        before = self.state()
        rows = self.epoch(0)[0]
        self.step(rows, 0.0, 0)
        start = time.perf_counter()
        for _ in range(2):
            self.step(rows, 0.0, 0)
        self.restore(before)
        return (time.perf_counter() - start) / 2

    def find_rate(self, steps: int) -> tuple[float, int]:
        """A learning rate for a training of so many steps, and how many were tried.

        Nothing is changed.

        Each trial is the training in small: at most 24 steps with warm-up and cosine from the same
        start on the same batches, judged by ``probe``. After L. Smith's range test (2017, arXiv
        1506.01186), which lets the rate rise in one run.
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

        found, tried = rate.best(rate.candidates(self._graph), trial)
        self.restore(before)
        return found, len(tried)

    # -- what a step is made of --------------------------------------------------------------------

    def _parts(self, order: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        whole = _fixed_batch(self._graph) is not None
        parts = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        return [part for part in parts if len(part) == self.batch or not whole]

    def _samples(
        self, rows: NDArray[np.intp], number: int
    ) -> tuple[Batch, Batch, NDArray[np.int32]]:
        samples = self._train.take(np.sort(rows))  # rows in order are read faster from a file
        return (
            tuple(np.asarray(x) for x in samples.inputs),
            samples.targets or (),
            np.array([self._seed % 2**31, number], np.int32),
        )

    def _products(self) -> list[tuple[Any, list[Any]]]:
        from lrfc.ir.keras import io as keras_io

        trained = {id(variable) for variable in self._model.trainable_variables}
        found = []
        for chain in chains(self._graph) if self._recipe.decay > 0 else ():
            kernels = [keras_io.layer_of(self._model, op).kernel for op in chain.stages]
            if all(id(kernel) in trained for kernel in kernels):
                found.append((chain, kernels))
        return found

    def _functions(
        self, outputs: Sequence[losses.Output], task: losses.TaskLoss | None
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The compiled step and the compiled loss."""
        import keras
        import tensorflow as tf

        from lrfc.ir.keras import io as keras_io

        recipe, count = self._recipe, len(outputs)
        model, teacher, optimizer, decayed = (
            self._model,
            self._teacher,
            self._optimizer,
            self._decayed,
        )

        def total(inputs: Any, labels: Any, seed: Any, *, training: bool) -> Any:
            taught = keras.tree.flatten(keras_io.call(teacher, inputs, training=False))
            learnt = keras.tree.flatten(keras_io.call(model, inputs, training=training))
            loss = losses.distillation(outputs, learnt[:count], taught[:count], recipe.temperature)
            if task is not None:
                loss = recipe.distillation * loss + (1 - recipe.distillation) * task(
                    learnt[:count], labels
                )
            if learnt[count:]:
                loss += recipe.features * losses.features(learnt[count:], taught[count:])
            return loss

        def prepared(inputs: Any, seed: Any) -> Any:
            return self.augmentation(inputs, seed) if self.augmentation else inputs

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def step(inputs: Any, labels: Any, seed: Any, learning_rate: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = total(
                    prepared(inputs, seed), labels, seed, training=recipe.batchnorm == "trained"
                )
            variables = model.trainable_variables
            gradients = tape.gradient(
                loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            gradients, _ = tf.clip_by_global_norm(gradients, recipe.clip)
            if decayed:
                factors = [kernel.value for _, kernels in decayed for kernel in kernels]
                with tf.GradientTape() as tape:
                    tape.watch(factors)
                    size = tf.add_n(
                        [
                            tf.nn.l2_loss(chain.kernel([kernel.value for kernel in kernels]))
                            for chain, kernels in decayed
                        ]
                    )
                pulls = tape.gradient(size, factors)
                for factor, pull in zip(factors, pulls, strict=True):
                    factor.assign_sub(learning_rate * recipe.decay * pull)
            optimizer.apply(gradients, learning_rate)
            return loss

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def loss(inputs: Any, labels: Any, seed: Any) -> Any:
            return total(prepared(inputs, seed), labels, seed, training=False)

        return step, loss


def _fixed_batch(graph: Graph) -> int | None:
    return graph.tensors(graph.inputs[0])[0].shape[0]
