"""The options of a training that its steps follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Options of the steps of a training.

    The loss is ``distillation`` · (distance of the outputs, softened by ``temperature``) + (1 -
    ``distillation``) · (task loss) + ``features`` · (distance of the feature maps at block ends).
    The task loss is the loss that the model was compiled with, otherwise one by kind of output;
    without labels there is none. ``class_weights`` 'balanced': all classes weigh the same in it, by
    ``lrfc.training.sample_weights``.

    ``batch`` None: 128, less where an epoch would have fewer than 20 steps, but at least 16.
    ``decay`` acts on the product of a layer's factors. ``clip`` bounds the norm of the gradients,
    None for no bound. ``batchnorm``: with 'frozen' they are folded into the layers before them,
    with 'trained' their statistics follow the batches. ``augment`` None: flips and shifts for
    classifiers of natural images; with ``mixup`` they are mixed in pairs, too.

    ``training`` 'lrfc': by Adam; 'compiled': by the optimizer that the model was compiled with, and
    with the losses of its regularizers.
    """

    batch: int | None = None
    temperature: float = 2.0
    distillation: float = 0.7
    features: float = 1.0
    decay: float = 1e-2
    clip: float | None = 1.0
    batchnorm: Literal["frozen", "trained"] = "frozen"
    augment: bool | None = None
    mixup: bool = True
    class_weights: Literal["none", "balanced"] = "none"
    training: Literal["lrfc", "compiled"] = "lrfc"

    @property
    def as_compiled(self) -> bool:
        """Whether the model is trained as it was compiled."""
        return self.training == "compiled"
