"""Networks that are trained here: each once, and kept in LRFC_DATA/trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def trained(
    name: str,
    network: Callable[[], Any],
    data: dict[str, Any],
    epochs: int,
    batch_size: int = 128,
    rate: float = 1e-3,
) -> Path:
    """The file of a network, which is trained first where there is none.

    ``network``: makes the classifier. ``data``: its training samples ``x`` and their classes ``y``.
    ``rate``: the learning rate after the first tenth of the steps, from where on it falls.
    """
    import keras

    path = Path(os.environ["LRFC_DATA"], "trained", f"{name}.keras")
    if path.exists():
        return path
    keras.utils.set_random_seed(0)
    model = network()
    steps = epochs * (len(data["x"]) // batch_size)
    warm = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-5, steps - warm, warmup_target=rate, warmup_steps=warm
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.05),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    model.fit(data["x"], data["y"], batch_size=batch_size, epochs=epochs, verbose=2)
    path.parent.mkdir(exist_ok=True)
    model.save(path)
    return path
