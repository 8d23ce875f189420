"""Memory of a process that builds one model after another.

    python benchmarks/memory.py [--builds 50]

Builds a small classifier (two convolutions, a few hundred random images, one epoch of fine-tuning)
again and again in one process, each time with another budget. Writes memory.csv to the folder of
this file: the resident memory of the process in MiB after each build. The first builds import and
compile code that later ones reuse.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from table import Table

import lrfc
from lrfc.errors import BudgetError, NoGainError

PAGE = 4096


def resident() -> float:
    """Return the resident memory of the process in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE / 2**20


def model() -> Any:
    """Return a small, untrained classifier."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.ReLU(name="relu0")(
        layers.BatchNormalization(name="norm0")(
            layers.Conv2D(24, 3, padding="same", name="conv0")(image)
        )
    )
    x = layers.ReLU(name="relu1")(
        layers.BatchNormalization(name="norm1")(layers.Conv2D(32, 3, strides=2, name="conv1")(x))
    )
    return keras.Model(
        image, layers.Dense(5, "softmax", name="head")(layers.Flatten(name="flat")(x)), name="small"
    )


def main() -> None:
    """Build, and write the resident memory after each build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--builds", type=int, default=50)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    data = {"x": rng.random((320, 12, 12, 3), np.float32), "y": rng.integers(0, 5, 320)}
    table = Table(Path(__file__).with_suffix(".csv"), overwrite=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.keras"
        model().save(path)
        for number in range(1, given.builds + 1):
            with suppress(BudgetError, NoGainError):
                lrfc.build(
                    path,
                    target="tflite",
                    data=data,
                    max_macs=f"{40 + number % 40}%",
                    max_drop="100pp",
                    epochs=1,
                    resume=False,
                    out=Path(folder) / "out",
                )
            table.add({"build": number, "resident_mib": f"{resident():.0f}"})


if __name__ == "__main__":
    main()
