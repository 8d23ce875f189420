"""Error of predicted latencies, of whole and of factorized networks, with and without feedback.

    LRFC_DATA=... python benchmarks/latency.py [--plans 10] [--calibrate]

Networks: ResNet-20 on CIFAR-10, a VGG for CIFAR-10 and MobileNetV2 (width 0.5, 96 pixels), the last
two with random weights, by LiteRT and onnxruntime on one core. The cost profile is that of `lrfc
devices calibrate host`, which measured none of these networks; ``--calibrate`` fits it first. Each
plan factorizes four of five layers by a random method to a random share of its MACs. All plans of a
network and a format are timed in turns in one process.

Writes latency.csv to the folder of this file, a row for each plan: milliseconds measured,
predicted, predicted after the original was measured, and after the original and one plan were.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.costs import latency
from lrfc.costs.workload import Workload, workloads
from lrfc.data.dataset import Data, Split
from lrfc.factorization import METHODS
from lrfc.factorization.layout import refusal
from lrfc.ir import ops
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.passes.canonicalise import Canonicalise
from lrfc.search.candidates import grid
from lrfc.state import Progress, State
from lrfc.targets.calibrate import calibrate
from lrfc.targets.catalog import target
from lrfc.targets.devices import device as devices
from lrfc.targets.devices import measure

HERE = Path(__file__).parent
#: Methods that decompose in no time; the others' stages are of the same kinds.
QUICK = ("channel_svd", "channel_svd_1x1", "spatial_svd", "spatial_svd_w", "tucker2", "tt", "svd")


def vgg() -> Any:
    """Return a network of eight convolutions and two Dense layers."""
    import keras
    from keras import layers

    x = inputs = keras.Input((32, 32, 3))
    for width in (32, 64, 128, 256):
        for _ in range(2):
            x = layers.ReLU()(
                layers.BatchNormalization()(
                    layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
                )
            )
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(256, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="vgg")


def originals() -> Iterator[tuple[str, Graph]]:
    """Yield the canonical graphs."""
    import keras

    keras.utils.set_random_seed(0)
    resnet = keras_load.load(Path(os.environ["LRFC_DATA"]) / "models" / "resnet20_cifar10.keras")
    mobilenet = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=0.5, weights=None, classes=10
    )
    for name, model in (("ResNet-20", resnet), ("VGG", vgg()), ("MobileNetV2", mobilenet)):
        graph = keras_io.from_keras(model)
        nothing = Split(
            tuple(
                np.zeros((1, *(size or 1 for size in graph.tensors(i)[0].shape[1:])), np.float32)
                for i in graph.inputs
            )
        )
        yield (
            name,
            Canonicalise()(
                State(graph, graph, Data("none", nothing, nothing, nothing, synthetic=True))
            ).graph,
        )


def plan(graph: Graph, rng: np.random.Generator) -> Graph:
    """Return a graph with random methods at random shares of the MACs.

    The range of the shares is drawn for the plan.
    """
    made = graph.copy()
    low = rng.uniform(0.15, 0.6)
    high = rng.uniform(low, 0.95)
    for op in graph.layers():
        if (
            not op.info.has_kernel
            or refusal(op, *graph.input_tensors(op.name)) is not None
            or rng.random() < 0.2
        ):
            continue
        source = graph.input_tensors(op.name)[0]
        whole = ops.macs(op, (source,), graph.tensors(op.name))
        methods = [METHODS[name] for name in QUICK if METHODS[name].refuses(op, source) is None]
        if not methods:
            continue
        method = methods[rng.integers(len(methods))]
        costs = {
            ranks: method.cost(op, source, ranks).macs
            for ranks in grid(method.full(op, source), 32)
        }
        wanted = rng.uniform(low, high) * whole
        ranks = min(costs, key=lambda each: abs(costs[each] - wanted))
        if costs[ranks] < whole:
            made.splice(op.name, method.decompose(op, source).stages(ranks))
    return made


def main() -> None:
    """Measure, predict, write the rows, and print the mean errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--calibrate", action="store_true")
    given = parser.parse_args()
    host = devices.load("host")
    if given.calibrate:
        report = calibrate(host, formats=("tflite", "onnx"), progress=Progress(log=print))
        print(
            f"calibrated in {report.seconds:.0f} s: {report.measured} networks measured,"
            f" {report.reused} known, {report.ops} ops"
        )
    profiles = {form: latency.load("host", form, "fp32", 1) for form in ("tflite", "onnx")}
    for form, profile in profiles.items():
        assert profile is not None
        print(
            f"{form}, held-out error on small networks, by the family that takes most of their"
            " time:"
        )
        for family, error in profile.held_out.items():
            print(
                f"  {family:16} {error.n:4} networks, mean {100 * error.mean:5.1f} %, 90th"
                f" percentile {100 * error.p90:5.1f} %"
            )
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for name, graph in originals():
        graphs = [
            fold_batchnorm(each)
            for each in (graph, *(plan(graph, rng) for _ in range(given.plans)))
        ]
        work = [tuple(each for _, each in workloads(each)) for each in graphs]
        for form, profile in profiles.items():
            assert profile is not None
            rows += evaluated(name, form, profile, graphs, work)
        with (HERE / "latency.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def evaluated(
    name: str,
    form: str,
    profile: latency.CostProfile,
    graphs: list[Graph],
    work: list[tuple[Workload, ...]],
) -> Iterator[dict[str, Any]]:
    """Return measured and predicted times, without the graphs that corrected the profile."""
    with tempfile.TemporaryDirectory() as folder:
        files = [
            target(form).emit(graph, Path(folder) / f"{number}.{form}")
            for number, graph in enumerate(graphs)
        ]
        times = [float(np.median(each)) for each in measure.times(files, turns=20)]
    one = latency.corrected(profile, [(work[0], times[0])])
    two = latency.corrected(profile, [(work[i], times[i]) for i in (0, 1)])
    errors: dict[str, list[float]] = {"before": [], "after one": [], "after two": []}
    for number, (ops_, time) in enumerate(zip(work, times, strict=True)):
        row: dict[str, Any] = {
            "network": name,
            "format": form,
            "plan": number,
            "macs": sum(op.macs for op in ops_),
            "measured_ms": f"{time:.4f}",
        }
        for seen, (label, each) in enumerate(zip(errors, (profile, one, two), strict=True)):
            predicted = each.predict(ops_)
            row[f"predicted_ms_{label.replace(' ', '_')}"] = (
                f"{predicted:.4f}" if number >= seen else ""
            )
            if number >= seen:
                errors[label].append(abs(predicted / time - 1))
        yield row
    print(
        f"{name:12} {form:7} {times[0]:.3f} ms; mean error "
        + ", ".join(f"{k} {100 * np.mean(v):.1f} %" for k, v in errors.items()),
        flush=True,
    )


if __name__ == "__main__":
    main()
