"""Adam that can be freed.

Keras' own keeps every compiled step that applies it, with its models, for the life of the process
(Keras 3.15 on TensorFlow 2.21).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Adam:
    """Adam on a model's trainable variables; ``apply`` is called inside a tf.function.

    Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    def __init__(
        self, variables: Sequence[Any], first: float = 0.9, second: float = 0.99, tiny: float = 1e-7
    ) -> None:
        import tensorflow as tf

        self._trained, self._first, self._second, self._tiny = list(variables), first, second, tiny
        self._count = tf.Variable(0.0, trainable=False)
        self._means, self._squares = (
            [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables] for _ in range(2)
        )

    @property
    def variables(self) -> list[Any]:
        """The step count and the two moments of each trained variable."""
        return [self._count, *self._means, *self._squares]

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        """Take one step against the gradients, of the size ``rate`` (a scalar tensor)."""
        import tensorflow as tf

        count = self._count.assign_add(1.0)
        rate = rate * tf.sqrt(1 - tf.pow(self._second, count)) / (1 - tf.pow(self._first, count))
        for variable, gradient, mean, square in zip(
            self._trained, gradients, self._means, self._squares, strict=True
        ):
            gradient = tf.convert_to_tensor(gradient)  # an embedding's gradient is sparse
            mean.assign(self._first * mean + (1 - self._first) * gradient)
            square.assign(self._second * square + (1 - self._second) * tf.square(gradient))
            updated = variable.value - rate * mean / (tf.sqrt(square) + self._tiny)
            variable.assign(
                updated if variable.constraint is None else variable.constraint(updated)
            )
