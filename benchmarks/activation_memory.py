"""The memory of networks on microcontrollers, hosts and an Ethos-U, before and after compression.

    LRFC_DATA=... python benchmarks/activation_memory.py [NETWORK ...] [--ways 50% 1pp] [--epochs 0]

Each network is built in int8 for a microcontroller, at half of the MACs and with the least MACs
within 1pp, with the memory limit that holds by default and without it (``ram`` 'none'). Of the
original's file and of the compressed one: the bytes that are alive at one time (``peak``), those of
the plan in the file (``planned``), head and tail of the arena of TensorFlow Lite Micro without the
plan (``head_unplanned``) and with it, the SRAM and the cycles by Vela (ethos-u55-128), and the score
on the whole test set. ``speed``: of the file against the original's by LiteRT on this machine, in
turns. The networks at 96×96 have random weights and images, and no score.

Writes activation_memory.csv to the folder of this file, row by row; builds that it already holds
are not made again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from contracts import arrays, scaled
from table import Table

import lrfc
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, NoGainError
from lrfc.protocols import Artifact
from lrfc.targets.devices import device
from lrfc.targets.ethos_u.runner import VelaRunner
from lrfc.targets.micro import tflm
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import activations

ROOT = Path(__file__).parent.parent
WAYS: dict[str, dict[str, Any]] = {
    "50%": {"max_macs": "50%"},
    "1pp": {"max_drop": "1pp", "objective": "macs"},
}
FILES = {
    "resnet8": "mlperf_tiny_resnet8_cifar10.h5",
    "resnet20": "resnet20_cifar10.keras",
    "resnet56": "resnet56_cifar10.keras",
    "mobilenetv2": "mini_mobilenetv2_cifar10.h5",
    "vgg16": "vgg16_cifar10.keras",
}
RANDOM = {
    "MobileNet 96": ("MobileNet", {"alpha": 0.25}),
    "MobileNetV2 96": ("MobileNetV2", {"alpha": 0.35}),
    "MobileNetV3Small 96": ("MobileNetV3Small", {"alpha": 0.75, "minimalistic": True}),
}


def network(name: str, folder: Path) -> tuple[Path, Any]:
    """The model's file and its data."""
    if name == "digits":
        return ROOT / "examples" / "digits.keras", "digits"
    if name in RANDOM:
        import keras

        keras.utils.set_random_seed(0)
        kind, options = RANDOM[name]
        path = folder / "model.keras"
        make = getattr(keras.applications, kind)
        make(input_shape=(96, 96, 3), weights=None, classes=10, **options).save(path)
        return path, {"x": np.random.default_rng(0).random((256, 96, 96, 3), np.float32)}
    data = arrays("cifar10", scaled) if name == "mobilenetv2" else arrays("cifar10")
    return Path(os.environ["LRFC_DATA"], "models", FILES[name]), data


def built(path: Path, data: Any, folder: Path, **options: Any) -> Result:
    """Build, and return the result, also where it does not ship."""
    found: list[Result] = []
    with suppress(BudgetError, NoGainError):
        lrfc.build(
            path,
            data=data,
            out=folder / "out",
            device="cortex-m7",
            precision="int8",
            on_result=found.append,
            **options,
        )
    return found[0]


def memory(path: Path, folder: Path) -> dict[str, Any]:
    """The memory of a file."""
    model = flatfile.unpack(path.read_bytes())
    arena, whole = activations(model).arena, tflm.arena(path)
    model.metadata = [entry for entry in model.metadata if b"Offline" not in entry.name]
    bare = folder / "bare.tflite"
    bare.write_bytes(flatfile.pack(model))
    with VelaRunner(device.load("ethos-u55-128")) as runner:
        compiled = runner.compiled(Artifact(path, "tflite", "int8"))
    return {
        "peak": arena.peak_bytes,
        "planned": arena.planned_bytes(),
        "head_unplanned": tflm.arena(bare).head_bytes,
        "head": whole.head_bytes,
        "tail": whole.tail_bytes,
        "sram": compiled.sram_bytes,
        "cycles": compiled.cycles,
    }


def rows(result: Result, original: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the original's file and of the compressed one."""
    manifest = result.manifest
    timed = lrfc.measure([original, result.artifact], device="host")
    for file, path, figures, time in (
        ("original", original, manifest.before, timed[0]),
        ("compressed", result.artifact, manifest.after, timed[1]),
    ):
        score = figures.accuracy
        yield {
            "file": file,
            "macs": figures.macs,
            "score": "" if score is None else f"{100 * score:.2f}",
            **memory(path, folder),
            "speed": f"{timed[0].median_ms / time.median_ms:.2f}",
        }
