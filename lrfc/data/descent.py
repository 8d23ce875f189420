"""Compiled descent of a few variables, for as long as it gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Steps without progress, after which a descent ends.
IDLE = 12


@dataclass(frozen=True)
class Adam:
    """Adam's step size and the decays of its two moments; ``annealed``: by a cosine, to a tenth."""

    rate: float
    first: float
    second: float
    annealed: bool


class Descent:
    """Adam steps on some variables as one compiled function.

    Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.

    ``values``: what is returned at the step of the least loss; ``loss``: a function of them.
    """

    def __init__(
        self,
        values: Callable[[], list[Any]],
        loss: Callable[[list[Any]], Any],
        variables: list[Any],
        adam: Adam,
    ) -> None:
        import tensorflow as tf

        moments = [
            tuple(tf.Variable(tf.zeros(v.shape), trainable=False) for _ in range(2))
            for v in variables
        ]

        def step(number: Any, size: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape() as tape:
                now = values()
                result = loss(now)
            gradients = tape.gradient(
                result, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            for variable, gradient, (mean, square) in zip(
                variables, gradients, moments, strict=True
            ):
                mean.assign(adam.first * mean + (1 - adam.first) * gradient)
                square.assign(adam.second * square + (1 - adam.second) * gradient**2)
                corrected = mean / (1 - adam.first**number)
                spread = tf.sqrt(square / (1 - adam.second**number)) + 1e-7
                variable.assign_sub(size * corrected / spread)
            return result, now

        def last() -> tuple[Any, list[Any]]:
            now = values()
            return loss(now), now

        self._adam, self._moments = adam, moments
        number = tf.TensorSpec((), tf.float32)
        self._step = tf.function(step, input_signature=(number, number), autograph=False)
        self._last = tf.function(last, input_signature=(), autograph=False)

    def run(self, steps: int, enough: float) -> list[NDArray[Any]]:
        """The values of the least loss, from where the variables are now, in so many steps.

        It ends early at a loss below ``enough``, or when ``IDLE`` steps have not lowered it by 1 %.
        """
        for moment in (variable for pair in self._moments for variable in pair):
            moment.assign(np.zeros(moment.shape, np.float32))
        best: list[NDArray[Any]] = []
        least, reference, idle = np.inf, np.inf, 0
        for number in range(steps + 1):
            if number < steps:
                share = 0.55 + 0.45 * np.cos(np.pi * number / steps) if self._adam.annealed else 1.0
                size = np.float32(self._adam.rate * share)
                loss, now = self._step(np.float32(number + 1), size)
            else:
                loss, now = self._last()
            if float(loss) < least or not best:
                best, least = [np.array(x) for x in now], float(loss)
            idle = 0 if least < 0.99 * reference else idle + 1
            reference = least if idle == 0 else reference
            if least < enough or idle == IDLE:
                break
        return best
