"""The memory of networks on microcontrollers, hosts and an Ethos-U, before and after compression.

    LRFC_DATA=... python benchmarks/activation_memory.py [NETWORK ...] [--ways 50% 1pp] [--ram 70%]
    python benchmarks/activation_memory.py --markdown

Each network is built in int8 for a microcontroller, at half of the MACs and with the least MACs
within 1pp, with the memory limit that holds by default and without it (``ram`` 'none'), or with
those of ``--ram``. Of the file of the original and of the compressed one: the bytes that are alive
at one time (``peak``), those of the plan in the file (``planned``), the head of the arena of
TensorFlow Lite Micro without the plan (``head_unplanned``) and with it, its tail, the workspace of
XNNPACK on this machine, the SRAM and the cycles by Vela (ethos-u55-128; where a limit holds, the
compressed file is compiled for the SRAM of the original, as in a build), and the score on the whole
test set. ``speed``: of the file against the original's by LiteRT on this machine, in turns. The
networks at 96×96 are trained on the traffic signs of GTSRB, enlarged to that size, and kept in
LRFC_DATA/trained. Their files read and write int8, as the image in float would be larger than all
that is behind it.

VGG-16 is built for a board with 2 MiB of flash, as no plan within 1pp fits into one.

Writes activation_memory.csv to the folder of this file, row by row; builds that it already holds
are not made again. ``--markdown`` prints its rows as the table of the README.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from contracts import arrays, scaled
from table import Table
from training import trained
from workspace import workspace_bytes

import lrfc
from lrfc.api import measure
from lrfc.data.dataset import Data, Split
from lrfc.data.synthetic import synthesise
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, NoGainError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.passes.canonicalise import Canonicalise
from lrfc.protocols import Artifact
from lrfc.state import State
from lrfc.targets.devices import device
from lrfc.targets.ethos_u.runner import VelaRunner
from lrfc.targets.micro import tflm
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import activations
from lrfc.targets.tflite.in_place import shared
from lrfc.targets.tflite.memory_plan import planned_bytes
from lrfc.targets.tflite.target import TFLite

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
#: Networks of keras.applications: their name there and the options that make them small.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "MobileNet 96": ("MobileNet", {"alpha": 0.25}),
    "MobileNetV2 96": ("MobileNetV2", {"alpha": 0.35}),
    "MobileNetV3Small 96": (
        "MobileNetV3Small",
        {"alpha": 0.75, "minimalistic": True, "include_preprocessing": False},
    ),
}
SIZE, CLASSES = 96, 43
#: Networks that no plan within 1pp brings into the 1 MiB of flash of the cortex-m7, and the flash
#: of the board that they are built for instead: that of an STM32H743.
LARGE = {"vgg16": 2 << 20}


def network(name: str) -> tuple[Path, Any]:
    """The model's file and its data."""
    if name == "digits":
        return ROOT / "examples" / "digits.keras", "digits"
    if name in SMALL:
        signs = arrays("gtsrb", enlarged)
        path = trained(name, partial(small_network, name), signs, 10, batch_size=32, rate=4e-3)
        return path, signs
    data = arrays("cifar10", scaled) if name == "mobilenetv2" else arrays("cifar10")
    return Path(os.environ["LRFC_DATA"], "models", FILES[name]), data


def enlarged(x: np.ndarray) -> np.ndarray:
    """Images at the size of the small networks, from -1 to 1."""
    import keras

    parts = np.array_split(x, len(x) // 500)
    sized = [keras.ops.image.resize(part.astype(np.float32), (SIZE, SIZE)) for part in parts]
    return np.concatenate([np.asarray(part) for part in sized]) / 127.5 - 1


def small_network(name: str) -> Any:
    """A network of keras.applications without weights."""
    import keras

    kind, options = SMALL[name]
    shape = (SIZE, SIZE, 3)
    model = getattr(keras.applications, kind)(
        input_shape=shape, weights=None, classes=CLASSES, **options
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # that of keras.applications is for longer training
    return model


def board(name: str, folder: Path) -> str:
    """The device that a network is built for: the cortex-m7, or the same with more flash."""
    if name not in LARGE:
        return "cortex-m7"
    text = device.path_of("cortex-m7").read_text(encoding="utf-8")
    flash = f"flash_bytes = {device.load('cortex-m7').flash_bytes}"
    assert flash in text
    path = folder / "board.toml"
    path.write_text(text.replace(flash, f"flash_bytes = {LARGE[name]}"), encoding="utf-8")
    return str(path)


def built(path: Path, data: Any, folder: Path, **options: Any) -> Result:
    """Build, and return the result, also where it does not ship."""
    found: list[Result] = []
    with suppress(BudgetError, NoGainError):
        lrfc.build(
            path,
            data=data,
            out=folder / "out",
            precision="int8",
            on_result=found.append,
            **options,
        )
    return found[0]


def memory(path: Path, folder: Path, sram: int | None) -> dict[str, Any]:
    """The memory of a file. ``sram``: that it is compiled for by Vela; None for no limit."""
    model = flatfile.unpack(path.read_bytes())
    arena, whole = shared(model, activations(model)).arena, tflm.arena(path)
    planned = planned_bytes(model)
    model.metadata = [entry for entry in model.metadata if b"Offline" not in entry.name]
    bare = folder / "bare.tflite"
    bare.write_bytes(flatfile.pack(model))
    with VelaRunner(device.load("ethos-u55-128")) as runner:
        if sram is not None:
            runner.hold(sram)
        compiled = runner.compiled(Artifact(path, "tflite", "int8"))
    return {
        "peak": arena.peak_bytes,
        "planned": planned,
        "head_unplanned": tflm.arena(bare).head_bytes,
        "head": whole.head_bytes,
        "tail": whole.tail_bytes,
        "workspace": workspace_bytes(path)[0],
        "sram": compiled.sram_bytes,
        "cycles": compiled.cycles,
    }


def rows(result: Result, original: Path, folder: Path, *, held: bool) -> Iterator[dict[str, Any]]:
    """The rows of the original's file and of the compressed one.

    ``held``: whether that is compiled by Vela for the SRAM of the original.
    """
    manifest = result.manifest
    timed = measure([original, result.artifact], device="host")
    sram: int | None = None
    for file, path, figures, time in (
        ("original", original, manifest.before, timed[0]),
        ("compressed", result.artifact, manifest.after, timed[1]),
    ):
        score, taken = figures.accuracy, memory(path, folder, sram)
        sram = taken["sram"] if held else None
        yield {
            "file": file,
            "macs": figures.macs,
            "score": "" if score is None else f"{100 * score:.2f}",
            **taken,
            "speed": f"{timed[0].median_ms / time.median_ms:.2f}",
        }


def original(path: Path, folder: Path, *, int8_io: bool) -> Path:
    """The original's file in int8, with its memory plan, of the graph that a build starts from."""
    graph = keras_io.from_keras(keras_load.load(path))
    samples = Split(synthesise(graph, 32, seed=0))
    state = State(graph, graph, Data("synthetic", samples, samples, samples, synthetic=True))
    file = folder / "original.tflite"
    target = TFLite("int8", int8_io=int8_io, memory_plan=True)
    target.emit(fold_batchnorm(Canonicalise()(state).graph), file, samples.inputs)
    return file


def markdown(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The lines of a table of builds: of each figure that of the original and of the file."""
    names = "network asked limit MACs head arena XNNPACK SRAM cycles score speed".split()
    yield f"| {' | '.join(names)} |"
    yield f"| --- | --- | --- |{' --: |' * (len(names) - 3)}"
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        macs = f"{100 * int(after['macs']) / int(before['macs']):.1f} %"
        pairs = [
            [f"{sum(int(row[name] or 0) for name in figures):,}" for row in (before, after)]
            for figures in (["head"], ["head", "tail"], ["workspace"], ["sram"], ["cycles"])
        ]
        pairs.append([f"{row['score']} %" for row in (before, after)])
        cells = [before["network"], before["way"], before["ram"], macs]
        cells += [" → ".join(pair) for pair in pairs] + [f"×{after['speed']}"]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Build the networks and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["digits", *FILES, *SMALL])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--ram", nargs="+", default=["none", "default"])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    table = Table(Path(__file__).with_suffix(".csv"))
    if given.markdown:
        print(*markdown(table.rows), sep="\n")
        return
    for name, way, ram in product(given.networks, given.ways, given.ram):
        run = {"network": name, "way": way, "ram": ram, "epochs": given.epochs}
        if table.knows(**run):
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            path, data = network(name)
            options = WAYS[way] | ({} if ram == "default" else {"max_ram": ram})
            options |= {"int8_io": name in SMALL, "device": board(name, folder)}
            result = built(path, data, folder, epochs=given.epochs, **options)
            before = original(path, folder, int8_io=name in SMALL)
            for row in rows(result, before, folder, held=ram != "none"):
                table.add(run | row)


if __name__ == "__main__":
    main()
