"""Compression of real networks under an accuracy constraint, read from the emitted files.

    LRFC_DATA=... python benchmarks/contracts.py [NETWORK ...] [--epochs 0]

The networks are resnet8, mobilenetv2, gtsrb and autoencoder. resnet8: the MLPerf Tiny image
classification reference, with the fewest MACs that its quality target of 85 % allows, in float32
and int8. mobilenetv2: a MobileNetV2-shaped network on CIFAR-10, and gtsrb: a small traffic-sign
network, both with the least latency within 1pp. autoencoder: the MLPerf Tiny anomaly detection
reference without any data; its score is the fidelity of the file to the original (R² of the
outputs, on synthetic inputs other than those of the build) at shares of the parameters. Writes
contracts.csv to the folder of this file, row by row; networks that it already holds are not built
again. Output folders are temporary.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from table import Table

import lrfc
from lrfc.data.dataset import Split
from lrfc.data.synthetic import synthesise
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, NoGainError
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.metrics.metric import metric
from lrfc.protocols import Artifact
from lrfc.targets.catalog import target

HERE = Path(__file__).parent
DATA = Path(os.environ["LRFC_DATA"])


def arrays(name: str, change: Callable[[Any], Any] = lambda x: x) -> dict[str, Any]:
    """Return training and test samples of a shared set, with the model's input shape."""
    parts = {part: np.load(DATA / f"{name}_{part}.npz") for part in ("train", "test")}
    return {
        "x": change(parts["train"]["x"]),
        "y": parts["train"]["y"],
        "x_test": change(parts["test"]["x"]),
        "y_test": parts["test"]["y"],
    }


def scaled(x: Any) -> Any:
    """Return images scaled as for the training of the MobileNetV2-shaped network."""
    mean = np.array([125.307, 122.950, 113.865], np.float32)
    return (x - mean) / mean


def resized(x: Any) -> Any:
    """Return images of 30×30 pixels."""
    import keras

    return np.asarray(keras.ops.image.resize(x.astype(np.float32), (30, 30)))


def built(model: str, folder: Path, **options: Any) -> Result:
    """Build, and return the result, also where the contract is not met."""
    found: list[Result] = []
    with suppress(BudgetError, NoGainError):
        lrfc.build(DATA / "models" / model, out=folder / "out", on_result=found.append, **options)
    return found[0]


def row(network: str, precision: str, asked: str, result: Result) -> dict[str, Any]:
    """Return the row of a result."""
    manifest = result.manifest
    before, after, kept = manifest.before, manifest.after, manifest.accuracy.kept
    return {
        "network": network,
        "precision": precision,
        "asked": asked,
        "macs_kept": f"{100 * after.macs / before.macs:.1f}",
        "params_kept": f"{100 * after.params / before.params:.1f}",
        "file_kept": f"{100 * (after.file_bytes or 0) / (before.file_bytes or 1):.1f}",
        "original": (
            "" if manifest.accuracy.before is None else f"{100 * manifest.accuracy.before:.2f}"
        ),
        "file": "" if after.accuracy is None else f"{100 * after.accuracy:.2f}",
        "drop_low": "" if kept is None else f"{100 * kept.low:.2f}",
        "drop_high": "" if kept is None else f"{100 * kept.high:.2f}",
        "speedup": f"{result.speedup.median:.2f}",
        "problem": str(result.failure or ""),
    }


def classifiers(name: str, epochs: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Build a network with a constraint on its accuracy; yield its rows."""
    files = {
        "resnet8": "mlperf_tiny_resnet8_cifar10.h5",
        "mobilenetv2": "mini_mobilenetv2_cifar10.h5",
        "gtsrb": "gtsrb_cnn30_sivaprakash.h5",
    }
    data = {
        "resnet8": lambda: arrays("cifar10"),
        "mobilenetv2": lambda: arrays("cifar10", scaled),
        "gtsrb": lambda: arrays("gtsrb", resized),
    }[name]()
    for precision in ("fp32", "int8") if name == "resnet8" else ("fp32",):
        options: dict[str, Any] = (
            {"objective": "macs", "max_drop": "2.2pp"} if name == "resnet8" else {"max_drop": "1pp"}
        )
        result = built(
            files[name], folder, data=data, precision=precision, epochs=epochs, **options
        )
        yield row(
            name,
            precision,
            f"{options.get('objective', 'latency')} within {options['max_drop']}",
            result,
        )


def autoencoder(folder: Path) -> Iterator[dict[str, Any]]:
    """Build the fully connected autoencoder, without data; yield its rows."""
    graph = keras_io.from_keras(keras_load.load(DATA / "models" / "mlperf_tiny_autoencoder_ad.h5"))
    unseen = Split(synthesise(graph, 256, seed=7))
    fidelity = metric("fidelity", graph, unseen)
    for share in (75, 50, 30):
        result = built("mlperf_tiny_autoencoder_ad.h5", folder, max_params=f"{share}%")
        found = row("autoencoder", "fp32", f"{share}% of the parameters", result)
        loaded = target("tflite").load(Artifact(result.artifact, "tflite", "fp32"))
        yield found | {
            "original": "100.00",
            "file": f"{100 * fidelity.score(loaded(unseen.inputs), unseen):.2f}",
        }


def main() -> None:
    """Build the networks and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", default=["resnet8", "mobilenetv2", "gtsrb", "autoencoder"]
    )
    parser.add_argument("--epochs", type=int, default=0)
    given = parser.parse_args()
    table = Table(HERE / "contracts.csv")
    for name in given.networks:
        if table.knows(network=name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            for found in (
                autoencoder(Path(folder))
                if name == "autoencoder"
                else classifiers(name, given.epochs, Path(folder))
            ):
                table.add(found)


if __name__ == "__main__":
    main()
