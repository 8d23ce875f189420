"""The loss of a batch: distillation, the task and feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.data.dataset import Split
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.training import losses
from lrfc.training.recipe import Recipe
from lrfc.training.teacher import Teacher

#: Labels of samples, and none or one tensor (N,) of their weights in the loss of the task.
Goal = tuple[Sequence[Any], Sequence[Any]]


@dataclass(frozen=True)
class Objective:
    """The loss of a batch by a recipe.

    ``outputs``: the meaning of the model's outputs. ``task``: the loss of the task, None without
    labels. ``variances``: of the teacher's feature maps.
    """

    recipe: Recipe
    outputs: Sequence[losses.Output]
    task: losses.TaskLoss | None
    variances: Sequence[float]

    @staticmethod
    def of(recipe: Recipe, original: Graph, teacher: Teacher, sample: Split) -> Objective:
        """The loss for a model, whose outputs are described by those of a sample."""
        taught = keras_io.predict(teacher.run, sample.inputs)
        outputs = losses.describe(original, taught, sample.targets)
        task = None
        if sample.targets is not None:
            task = losses.task_loss(original, outputs, (taught, sample.targets))
        return Objective(recipe, outputs, task, teacher.variances(sample.inputs))

    def __call__(
        self,
        values: Sequence[Any],
        teach: Callable[[], Sequence[Any]],
        goals: Sequence[Goal],
    ) -> Any:
        """The loss (a scalar tensor) of a batch.

        ``values``: outputs and feature maps of the student. ``teach`` returns those of the teacher,
        and is called only where they count. ``goals``: one, for mixtures of two samples two.
        """
        recipe, count = self.recipe, len(self.outputs)
        share = 1.0 if self.task is None else recipe.distillation
        loss = 0.0
        if self.task is not None:
            losses_of = [self.task(values[:count], labels, *w) for labels, w in goals]
            loss = (1 - share) * sum(losses_of[1:], losses_of[0])
        if share or values[count:]:
            taught = teach()
            loss += share * losses.distillation(
                self.outputs, values[:count], taught[:count], recipe.temperature
            )
            if values[count:]:
                loss += recipe.features * losses.features(
                    values[count:], taught[count:], self.variances
                )
        return loss
