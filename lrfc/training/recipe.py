"""The options of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Options of a training.

    ``batch`` None: 128, less where an epoch would have fewer than 20 steps, but at least 16. The
    other options are described in ``lrfc.passes.finetune.FineTune``; ``clip`` bounds the norm of
    the gradients, None for no bound. ``mixup``: where images are augmented, they are mixed in
    pairs, too. ``balanced``: classes weigh the same in the task loss.
    ``own``: the optimizer that the model was compiled with, and the losses of its regularizers.
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
    balanced: bool = False
    own: bool = False
