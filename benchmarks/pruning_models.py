"""Every network of keras.applications, pruned to half of its MACs and run as TFLite.

    PYTHONPATH=. python benchmarks/pruning_models.py [NAME ...]

Random weights, inputs of 96×96 (or the size that the network needs), ten classes. Every dependency
group loses the same share of its units, those of least L1 norm. Writes pruning_models.csv to the
folder of this file, a row for each network; rows that it already holds are skipped. ``exact`` is
the largest difference in Keras between the pruned network and the original with the removed
filters' inputs set to zero, relative to the original's largest output; ``tflite`` is that between
the emitted file and the pruned Keras model. Each network runs in its own process.
"""

from __future__ import annotations

import csv
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.pruning.labels import Ids

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "model",
    "input",
    "params",
    "params_after",
    "macs",
    "macs_after",
    "groups",
    "stay",
    "exact",
    "tflite",
    "seconds",
    "ok",
)
#: One of each family, then the others, smallest first.
NAMES = (
    *(
        "MobileNetV3Small",
        "MobileNetV2",
        "MobileNet",
        "EfficientNetB0",
        "NASNetMobile",
        "EfficientNetV2B0",
        "DenseNet121",
        "ResNet50",
        "Xception",
    ),
    *("ConvNeXtTiny", "VGG16", "InceptionV3", "ResNet50V2", "InceptionResNetV2"),
    *(
        "MobileNetV3Large",
        "EfficientNetB1",
        "EfficientNetV2B1",
        "EfficientNetB2",
        "EfficientNetV2B2",
        "EfficientNetB3",
        "DenseNet169",
        "EfficientNetV2B3",
    ),
    *(
        "DenseNet201",
        "EfficientNetB4",
        "EfficientNetV2S",
        "EfficientNetB5",
        "ResNet101",
        "ResNet101V2",
        "ConvNeXtSmall",
        "EfficientNetB6",
    ),
    *(
        "EfficientNetV2M",
        "ResNet152",
        "ResNet152V2",
        "EfficientNetB7",
        "VGG19",
        "ConvNeXtBase",
        "NASNetLarge",
        "EfficientNetV2L",
        "ConvNeXtLarge",
    ),
    "ConvNeXtXLarge",
)
SHARE = 0.5


def row(name: str) -> dict[str, object]:
    """Return the row of a network."""
    import keras

    from lrfc.ir import ops
    from lrfc.ir.keras import io as keras_io
    from lrfc.pruning.criteria import Context, keep_best, l1
    from lrfc.pruning.cut import cut
    from lrfc.pruning.groups import groups
    from lrfc.targets.tflite.target import TFLite
    from tests.helpers import difference, random_weights
    from tests.pruned import zeroed

    make = getattr(keras.applications, name)
    try:
        model = make(weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None)
    except ValueError:  # it takes one size only
        model = make(weights=None, classes=10, classifier_activation=None)
    shape = model.input_shape[1:]
    graph = keras_io.from_keras(random_weights(model))
    del model
    gc.collect()  # Keras models are cycles, and the largest take gigabytes
    start = time.perf_counter()
    found = groups(graph)
    scores = {group.name: l1(graph, group, Context(graph, found)) for group in found.groups}

    def pruned(share: float) -> tuple[dict[str, Ids], Graph]:
        kept = {
            g.name: keep_best(scores[g.name], max(1, round(share * g.width))) for g in found.groups
        }
        return kept, cut(graph, kept, found)

    def macs(of: Graph) -> int:
        return sum(ops.macs(op, of.input_tensors(op.name), of.tensors(op.name)) for op in of)

    low, high = 0.0, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if macs(pruned(middle)[1]) > SHARE * macs(graph) else (middle, high)
        )
    kept, smaller = pruned(low)
    seconds = time.perf_counter() - start
    smaller.check()
    batch = (np.random.default_rng(0).uniform(-1, 1, (1, *shape)).astype(np.float32),)
    answer = keras_io.predict(smaller, batch)
    exact = difference(keras_io.predict(zeroed(graph, found, kept), batch), answer)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        target = TFLite()
        emitted = target.emit(smaller, Path(folder) / "pruned.tflite")
        parity = difference(answer, target.load(emitted)(batch))
    reached = macs(smaller) <= SHARE * macs(graph)
    return {
        "model": name,
        "input": shape[0],
        "params": graph.params,
        "params_after": smaller.params,
        "macs": macs(graph),
        "macs_after": macs(smaller),
        "groups": len(found.groups),
        "stay": len(found.refused),
        "exact": f"{exact:.1e}",
        "tflite": f"{parity:.1e}",
        "seconds": f"{seconds:.1f}",
        "ok": "yes" if reached else "its filters that can be cut are too few",
    }


def main(names: list[str]) -> None:
    if not TABLE.exists():
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(COLUMNS)
    for name in names or NAMES:
        with TABLE.open(newline="", encoding="utf-8") as file:
            if any(line["model"] == name for line in csv.DictReader(file)):
                continue
        done = subprocess.run(  # noqa: S603
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False
        )
        failed = {
            "model": name,
            "ok": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
        }
        cells = list(csv.reader(done.stdout.splitlines()[-1:]))
        with TABLE.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(
                cells[0] if done.returncode == 0 else [failed.get(column, "") for column in COLUMNS]
            )
        print(name, "done" if done.returncode == 0 else failed["ok"], flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        csv.DictWriter(sys.stdout, COLUMNS).writerow(row(sys.argv[2]))
    else:
        main(sys.argv[1:])
