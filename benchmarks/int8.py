"""Accuracy of int8 files: plain quantisation, equalisation with bias correction, and QAT.

    LRFC_DATA=... python benchmarks/int8.py resnet20_cifar10 [--kept 100 60 40] [--images 8000]
        [--epochs 2] [--tune 0] [--test 10000]

Writes int8_NET.csv to the folder of this file, a row for each file, as soon as it is known; rows
that it already holds are not run again. For comparison there are float32 files, too. The networks
are factorized, re-estimated and reconstructed, and fine-tuned for --tune epochs.
Quantisation-aware training takes --images training images and --epochs epochs. Integer TFLite files
are also run by LiteRT's reference kernels on the first --reference test images: their accuracy
there, that of the optimised kernels on the same images, and the share of images with equal
predictions. Other columns are the share of test images on which the file predicts the class of the
float network, which is more sensitive than the accuracy of a few thousand images, and the mean
divergence of the outputs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from selection import canonical
from table import Table

from lrfc.config.build import Budget
from lrfc.config.precision import PRECISIONS
from lrfc.costs.totals import totals
from lrfc.data.dataset import Split
from lrfc.data.load import load_data
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.metrics.metric import accuracy
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.equalize_stages import EqualizeStages
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune
from lrfc.passes.fold_batchnorm import FoldBatchNorm
from lrfc.passes.quantize_aware import QuantizeAware, QuantizedModel
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Artifact
from lrfc.search.sensitivity import divergence
from lrfc.state import Progress, State
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite.target import TFLite

HERE = Path(__file__).parent
#: Calibration images, as in a build.
CALIBRATED = 200
FILES = (
    "tflite fp32",
    "tflite fp16",
    "tflite dynamic",
    "tflite int16x8",
    "ptq",
    "balanced",
    "biases",
    "balanced + biases",
    "qat",
    "onnx fp32",
    "onnx int8",
)


def loaded(name: str) -> State:
    """Return a shared CIFAR-10 model with its data."""
    folder = Path(os.environ["LRFC_DATA"])
    (path,) = (folder / "models").glob(f"{name}.*")
    graph = keras_io.from_keras(keras_load.load(path))
    return canonical(
        graph,
        load_data(
            str(folder / "cifar10_train.npz"), graph, test=str(folder / "cifar10_test.npz"), seed=0
        ),
    )


def compressed(state: State, kept: int, tune: int) -> State:
    """Return the float network at a share of the MACs."""
    if kept < 100:
        state = SelectRanks(Budget(value=kept / 100, relative=True))(
            ExploreLayers(cached=True)(state)
        )
        for step in (
            Factorize(),
            RecalibrateBatchNorm(),
            Refit(),
            *([FineTune(epochs=tune)] if tune else []),
        ):
            state = step(state)
    return FoldBatchNorm()(state)


def emitted(state: State, folder: Path, file: str, images: int, epochs: int) -> Artifact:
    """Emit one of the files."""
    calibration = tuple(x[:CALIBRATED] for x in state.data.train.inputs)
    path = folder / "network.bin"
    if file.startswith("onnx"):
        ready = CorrectBiases()(EqualizeStages()(state)) if file.endswith("int8") else state
        return ONNX(file.split()[1]).emit(ready.graph, path, calibration)
    if file.startswith("tflite"):
        bits = {"tflite int16x8": (EqualizeStages(bits=16), CorrectBiases())}.get(file, ())
        for step in bits:
            state = step(state)
        return TFLite(file.split()[1]).emit(state.graph, path, calibration)
    if file == "qat":
        train = state.data.train.take(
            np.sort(np.random.default_rng(0).permutation(len(state.data.train))[:images])
        )
        few = replace(
            EqualizeStages(convolutions=True)(state), data=replace(state.data, train=train)
        )
        trained = QuantizeAware(epochs=epochs)(few)
        return TFLite("int8").emit_trained(trained.graph, trained.fact(QuantizedModel).model, path)
    for step in {
        "balanced": (EqualizeStages(),),
        "biases": (CorrectBiases(),),
        "balanced + biases": (EqualizeStages(), CorrectBiases()),
    }.get(file, ()):
        state = step(state)
    return TFLite("int8").emit(state.graph, path, calibration)


def answers(file: Artifact, test: Split) -> Batch:
    """Return the outputs of a file."""
    return (ONNX() if file.format == "onnx" else TFLite()).load(file)(test.inputs)


def referenced(file: Artifact, test: Split, found: Batch, count: int) -> dict[str, str]:
    """Return the columns of the reference kernels; none for files without them."""
    if file.format == "onnx" or not PRECISIONS[file.precision].integer:
        return {}
    some, seen = test.take(np.arange(min(count, len(test)))), tuple(y[:count] for y in found)
    by_reference = TFLite().reference(file)(some.inputs)
    same = float(np.mean(by_reference[0].argmax(-1) == seen[0].argmax(-1)))
    figures = {
        "reference": accuracy(by_reference, some),
        "optimised": accuracy(seen, some),
        "kernels_agree": same,
    }
    return {
        "reference_images": str(len(some)),
        **{name: f"{100 * value:.2f}" for name, value in figures.items()},
    }


def reference(graph: Graph, test: Split) -> Batch:
    """Return the outputs of the float network."""
    return keras_io.predict(graph, test.inputs)


def main() -> None:
    """Emit and run every file at every share of the MACs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[100, 60, 40])
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tune", type=int, default=0)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--reference", type=int, default=500)
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    table = Table(given.out / f"int8_{given.network}.csv")
    state = replace(
        loaded(given.network), progress=Progress(log=lambda line: print(line, flush=True))
    )
    test = state.data.test.take(np.arange(min(given.test, len(state.data.test))))
    whole = totals(state.original)["macs"]
    for kept in given.kept:
        key = {
            "network": given.network,
            "kept": str(kept),
            "test": str(len(test)),
            "tuned": str(given.tune),
        }
        wanted = [file for file in given.files if not table.knows(**key, file=file)]
        if not wanted:
            continue
        made = compressed(state, kept, given.tune)
        expected = reference(made.graph, test)
        for file in wanted:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                artifact = emitted(made, Path(folder), file, given.images, given.epochs)
                found, size = answers(artifact, test), artifact.bytes
                by_reference = referenced(artifact, test, found, given.reference)
            same = float(np.mean(found[0].argmax(-1) == expected[0].argmax(-1)))
            extra = (
                by_reference | {"qat_images": str(given.images), "qat_epochs": str(given.epochs)}
                if file == "qat"
                else by_reference
            )
            table.add(
                {
                    **key,
                    **extra,
                    "file": file,
                    "accuracy": f"{100 * accuracy(found, test):.2f}",
                    "agreement": f"{100 * same:.2f}",
                    "divergence": f"{divergence(expected, found):.5f}",
                    "bytes": str(size),
                    "macs_kept": f"{100 * totals(made.graph)['macs'] / whole:.1f}",
                    "seconds": f"{time.perf_counter() - start:.0f}",
                }
            )


if __name__ == "__main__":
    main()
