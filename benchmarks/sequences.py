"""Networks of attention and of sequences: trained here, and compressed within 1pp.

    LRFC_DATA=... python benchmarks/sequences.py [NETWORK ...] [--targets tflite onnx]
        [--objectives latency macs] [--epochs 0]

vit: a vision transformer of 136,394 weights (four blocks of four heads) on Fashion-MNIST. lstm: a
convolution and two LSTM layers on the sensors of HAR. gru: two layers of GRU in both directions on
spectra of spoken digits. The trained networks are kept in LRFC_DATA/trained, and are not trained
again. Each is built for the least latency on this machine or the fewest MACs within 1pp, by LiteRT
and by onnxruntime; the scores are those of the emitted files on the whole test set. Writes
sequences.csv to the folder of this file, row by row; builds that it already holds are not made
again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from contracts import arrays
from table import Table
from training import trained

import lrfc
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, NoGainError
from lrfc.state import Progress

HERE = Path(__file__).parent


def vit(width: int = 64, blocks: int = 4, heads: int = 4) -> Any:
    """A vision transformer on 28×28 images in 49 patches.

    A depthwise convolution encodes the positions (Chu et al. 2021, arXiv 2102.10882).
    """
    from keras import Input, Model, layers

    image = Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255, name="scale")(image)
    x = layers.Conv2D(width, 4, strides=4, name="patches")(x)
    x = layers.Add(name="placed")([x, layers.DepthwiseConv2D(3, padding="same", name="place")(x)])
    x = layers.Reshape((-1, width), name="sequence")(x)
    for n in range(blocks):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm{n}a")(x)
        y = layers.MultiHeadAttention(heads, width // heads, dropout=0.1, name=f"attention{n}")(
            y, y
        )
        x = layers.Add(name=f"attended{n}")([x, y])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm{n}b")(x)
        y = layers.Dense(2 * width, activation="gelu", name=f"wide{n}")(y)
        x = layers.Add(name=f"mixed{n}")([x, layers.Dense(width, name=f"narrow{n}")(y)])
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="classes")(x), name="vit")


def lstm(units: int = 64) -> Any:
    """A convolution and two LSTM layers on 128 steps of nine sensors."""
    from keras import Input, Model, layers

    sensors = Input((128, 9), name="sensors")
    x = layers.Conv1D(units, 5, strides=4, activation="relu", name="frames")(sensors)
    x = layers.LSTM(units, return_sequences=True, name="first")(x)
    x = layers.LSTM(units, name="second")(x)
    return Model(sensors, layers.Dense(6, activation="softmax", name="classes")(x), name="lstm")


def gru(units: int = 64) -> Any:
    """Two layers of GRU in both directions on 48 spectra of 40 bands."""
    from keras import Input, Model, layers

    spectra = Input((48, 40, 1), name="spectra")
    x = layers.Reshape((48, 40), name="sequence")(spectra)
    first = layers.GRU(units, return_sequences=True)
    x = layers.Bidirectional(first, name="first")(layers.LayerNormalization(name="norm")(x))
    x = layers.Bidirectional(layers.GRU(units), name="second")(layers.Dropout(0.2, name="drop")(x))
    return Model(spectra, layers.Dense(10, activation="softmax", name="classes")(x), name="gru")


#: What makes each network, its data set, and the epochs of its training.
NETWORKS = {
    "vit": (vit, "fashion_mnist", 4),
    "lstm": (lstm, "har", 20),
    "gru": (gru, "spoken_digits", 40),
}


def row(path: Path, data: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The figures of a build."""
    found: list[Result] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, suppress(BudgetError, NoGainError):
        lrfc.build(
            path,
            data=data,
            out=Path(place) / "out",
            progress=Progress(log=print),
            on_result=found.append,
            max_drop="1pp",
            **options,
        )
    (result,) = found
    manifest = result.manifest
    before, after = manifest.before, manifest.after
    return {
        "macs": f"{before.macs:,} → {after.macs:,}",
        "params": f"{before.params:,} → {after.params:,}",
        "file_bytes": f"{before.file_bytes:,} → {after.file_bytes:,}",
        "score": f"{100 * (before.accuracy or 0):.2f} → {100 * (after.accuracy or 0):.2f}",
        "speedup": f"{result.speedup.median:.2f} ({result.speedup.low:.2f} to"
        f" {result.speedup.high:.2f})",
        "seconds": f"{time.perf_counter() - start:.0f}",
        "problem": str(result.failure or ""),
    }


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", default=["tflite", "onnx"])
    parser.add_argument("--objectives", nargs="+", default=["latency", "macs"])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    table = Table(given.out / "sequences.csv")
    for name, objective, target in product(given.networks, given.objectives, given.targets):
        options = {"target": target, "objective": objective, "epochs": given.epochs}
        if table.knows(network=name, **options):
            continue
        network, dataset, epochs = NETWORKS[name]
        data = arrays(dataset)
        path = trained(name, network, data, epochs)
        table.add({"network": name} | options | row(path, data, **options))


if __name__ == "__main__":
    main()
