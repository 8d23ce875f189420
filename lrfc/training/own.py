"""Training as the model was compiled: its optimizer, its loss, its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrfc.data.dataset import Data
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph

_OPTION = "--training compiled"


def check(graph: Graph, data: Data) -> None:
    """Raise UsageError where the model cannot be trained as it was compiled.

    It has to have an optimizer and a loss that Keras can restore, and the data labels.
    """
    compiled = graph.compiled or {}
    for part in ("loss", "optimizer"):
        if compiled.get(part) is None:
            raise UsageError(
                f"{_OPTION}: model '{graph.name}' has no {part} that can be restored; compile it"
                " with one of Keras' own before it is saved, or leave the option out"
            )
    if data.synthetic or data.train.targets is None:
        raise UsageError(f"{_OPTION}: the data have no labels; leave the option out")
    optimizer = Optimizer(graph, ())
    if optimizer.averages:
        raise UsageError(
            f"{_OPTION}: the optimizer of model '{graph.name}' averages the weights (use_ema),"
            " which is not supported; compile the model without it"
        )


class Optimizer:
    """The optimizer that a model was compiled with; ``apply`` is called inside a tf.function.

    Keras keeps each compiled step, with its models, for the life of the process.
    """

    def __init__(self, graph: Graph, variables: Sequence[Any]) -> None:
        import keras

        assert graph.compiled is not None
        self._optimizer = keras.optimizers.get(graph.compiled["optimizer"])
        self._trained = list(variables)
        self._optimizer.build(self._trained)

    @property
    def averages(self) -> bool:
        """Whether it keeps a moving average of the weights."""
        return bool(self._optimizer.use_ema)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._optimizer.learning_rate)

    @property
    def variables(self) -> list[Any]:
        """All that a step changes beside the weights."""
        return list(self._optimizer.variables)

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        """Take one step against the gradients, of the optimizer's own size."""
        del rate
        self._optimizer.apply(list(gradients), self._trained)
