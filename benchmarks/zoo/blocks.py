"""Parts that networks of the evaluation have in common."""

from __future__ import annotations

from typing import Any

from keras import layers


def normalised(x: Any, name: str) -> Any:
    """BatchNorm, whose statistics follow a short training, and ReLU."""
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
