"""Output error of every factorization at shares of the MACs, data-free and data-aware.

    LRFC_DATA=... python benchmarks/factorizations.py [--quick] [--images 1024] [--out PATH]

There are two sets of layers: all convolutions of the shared ResNet-20 on CIFAR-10; and layers of
VGG-16's shapes with random weights of a falling spectrum, whose inputs are rectified, spatially
correlated random maps (no trained VGG-16 is at hand). Of VGG-16's layers there is one for each
width up to 256 channels, and the last fully connected one. CP takes seconds for each rank there,
so it is run at half of the MACs only. The error is ‖y - ỹ‖ / ‖y - mean(y)‖ over patches
of held-out images, weighted by the BatchNorm behind the layer; its mean is subtracted where a bias
or that BatchNorm absorbs it.

The CSV file (by default benchmarks/factorizations.csv) is written row by row, with a row for each
layer, method and share of the MACs (at most that share, at the ranks in the row).
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.factorization import METHODS, Statistics, break_even, cost_of
from lrfc.factorization.layout import Layout
from lrfc.ir.op import Op, Tensor

KEPT = (0.25, 0.5, 0.75)
#: For layers with patches longer than this, CP is shown at the middle share only.
LONG = 700
COLUMNS = (
    "network",
    "layer",
    "method",
    "budget",
    "ranks",
    "macs_kept",
    "free",
    "aware",
    "gain",
    "seconds",
)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with the statistics of some patches, and held-out patches (N, G, D)."""

    network: str
    name: str
    op: Op
    source: Tensor
    statistics: Statistics
    held_out: Any
    scale: Any = None


def resnet20(images: int) -> Iterator[Layer]:
    """Yield the convolutions of the shared ResNet-20, on CIFAR-10's training images."""
    from lrfc.ir.keras import io as keras_io
    from lrfc.ir.keras import load as keras_load
    from lrfc.search.statistics import SampleSize, collect

    folder = Path(os.environ["LRFC_DATA"])
    graph = keras_io.from_keras(keras_load.load(folder / "models" / "resnet20_cifar10.keras"))
    layers = [op for op in graph.layers() if op.kind == "Conv2D"]
    inputs = np.load(folder / "cifar10_train.npz")["x"][:images].astype(np.float32)
    for name, samples in collect(
        graph, layers, (inputs,), SampleSize(images=images * 3 // 4, held_out=images // 4), seed=0
    ).items():
        yield Layer(
            "ResNet-20",
            name,
            graph.op(name),
            graph.input_tensors(name)[0],
            samples.statistics,
            samples.patches,
            samples.chain.scale,
        )


def vgg16(count: int) -> Iterator[Layer]:
    """Yield layers of VGG-16's shapes, at the map sizes of 224-pixel images."""
    rng = np.random.default_rng(0)
    for number, (inputs, outputs, length) in enumerate(
        [(64, 64, 224), (128, 128, 112), (256, 256, 56)]
    ):
        kernel = spectrum(rng, 9 * inputs, outputs).reshape(3, 3, inputs, outputs)
        op = Op(
            f"conv{number + 1}",
            "Conv2D",
            {"filters": outputs, "kernel_size": (3, 3), "padding": "same"},
            {"kernel": kernel, "bias": np.zeros(outputs, np.float32)},
        )
        rows = maps(rng, 2 * count, inputs)
        yield synthetic(op, Tensor((None, length, length, inputs)), rows)
    kernel = spectrum(rng, 4096, 1000)
    op = Op("fc3", "Dense", {"units": 1000}, {"kernel": kernel, "bias": np.zeros(1000, np.float32)})
    yield synthetic(
        op,
        Tensor((None, 4096)),
        np.maximum(rng.standard_normal((2 * count, 4096)) @ spectrum(rng, 4096, 4096) + 0.01, 0)[
            :, None
        ],
    )


def spectrum(rng: np.random.Generator, rows: int, columns: int) -> Any:
    """Return normal weights whose singular values fall with the power of -1/2."""
    size = min(rows, columns)
    left, right = (np.linalg.qr(rng.standard_normal((n, size)))[0] for n in (rows, columns))
    return ((left * np.arange(1, size + 1) ** -0.5) @ right.T).astype(np.float32)


def maps(rng: np.random.Generator, count: int, channels: int) -> Any:
    """Return patches (N, 1, 9·C) of rectified random maps.

    The channels are mixed with a falling spectrum; the correlation falls with the distance.
    """
    spots = np.indices((3, 3)).reshape(2, 9)
    near = np.linalg.cholesky(
        np.exp(-np.linalg.norm(spots[:, :, None] - spots[:, None, :], axis=0) / 1.5)
    )
    mixed = near @ rng.standard_normal((count, 9, channels)) @ spectrum(rng, channels, channels)
    return np.maximum(mixed / mixed.std() + 0.2, 0).reshape(count, 1, -1).astype(np.float32)


def synthetic(op: Op, source: Tensor, rows: Any) -> Layer:
    """Return a layer whose second half of patches is held out."""
    fitted = rows[: len(rows) // 2].astype(np.float64)
    mean = fitted.mean(0)
    moved = fitted[:, 0] - mean
    covariance = (moved.T @ moved / len(fitted))[None]
    return Layer(
        "VGG-16 shapes",
        op.name,
        op,
        source,
        Statistics(covariance, mean, len(fitted)),
        rows[len(rows) // 2 :][:2000].astype(np.float32),
    )


def measure(layer: Layer) -> Iterator[dict[str, Any]]:
    """Yield a row for each method and share of MACs."""
    layout, whole = Layout.of(layer.op, layer.source), cost_of(layer.op, layer.source).macs
    weights = (
        np.ones(layout.groups * layout.outputs) if layer.scale is None else np.abs(layer.scale)
    )
    exact = np.concatenate(
        [
            layer.held_out[:, group] @ matrix
            for group, matrix in enumerate(layout.matrix(layout.tensor()))
        ],
        axis=1,
    )
    if "bias" in layer.op.weights:
        exact = exact + layer.op.weights["bias"]
    norm = float(np.linalg.norm((exact - exact.mean(0)) * weights))
    for method in METHODS.values():
        if method.refuses(layer.op, layer.source) is not None:
            continue
        shares = KEPT[1:2] if method.name.startswith("cp") and layout.patch > LONG else KEPT
        ranks = [
            (kept, found)
            for kept in shares
            if (found := break_even(method, layer.op, layer.source, "macs", kept)) is not None
        ]
        errors: dict[str, list[float]] = {}
        start = time.perf_counter()
        for form, data in (
            ("free", {}),
            ("aware", {"scale": layer.scale, "statistics": layer.statistics}),
        ):
            factors = method.decompose(layer.op, layer.source, **data)
            found = factors.responses(layer.held_out, [each for _, each in ranks])
            missing = ((response - exact) * weights for response in found)
            errors[form] = [float(np.linalg.norm(each - each.mean(0))) / norm for each in missing]
        seconds = time.perf_counter() - start
        for (kept, each), free, aware in zip(ranks, errors["free"], errors["aware"], strict=True):
            macs = method.cost(layer.op, layer.source, each).macs / whole
            yield {
                "network": layer.network,
                "layer": layer.name,
                "method": method.name,
                "budget": kept,
                "ranks": "x".join(map(str, each)),
                "macs_kept": round(macs, 4),
                "free": round(free, 4),
                "aware": round(aware, 4),
                "gain": round(1 - aware / free, 4),
                "seconds": round(seconds, 2),
            }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table of mean errors by network, method and budget, and the gain from statistics."""
    groups: dict[tuple[str, str], dict[float, list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        groups[row["network"], row["method"]][row["budget"]].append(row)
    lines = [
        f"{'network':14s} {'method':16s} {'layers':>6s}"
        + "".join(f"   {share:.0%} of the MACs" for share in KEPT)
        + "   gain  worse"
    ]
    for (network, method), budgets in groups.items():
        cells = []
        for share in KEPT:
            found = budgets[share]
            cells.append(
                f"{np.mean([r['free'] for r in found]):.3f} →"
                f" {np.mean([r['aware'] for r in found]):.3f}"
                if found
                else "-"
            )
        each = [row for found in budgets.values() for row in found]
        gain = np.mean([row["gain"] for row in each])
        worse = sum(row["gain"] < 0 for row in each)
        lines.append(
            f"{network:14s} {method:16s} {len({row['layer'] for row in each}):6d}"
            + "".join(f" {cell:>17s}" for cell in cells)
            + f"  {gain:4.0%}  {worse}/{len(each)}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument(
        "--images", type=int, default=1024, help="images of CIFAR-10, a quarter of them held out"
    )
    parser.add_argument("--quick", action="store_true", help="five layers of ResNet-20 only")
    options = parser.parse_args()
    rows = []
    begun = time.perf_counter()
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for layer in (
            islice(resnet20(options.images), None, None, 4)
            if options.quick
            else chain(resnet20(options.images), vgg16(8000))
        ):
            start = time.perf_counter()
            rows += (found := list(measure(layer)))
            writer.writerows(found)
            file.flush()
            print(f"{layer.network} {layer.name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{len(rows)} rows in {options.out}, {time.perf_counter() - begun:.0f} s")
    if not options.quick:
        print(
            "VGG-16: one layer per width up to 256 channels, and fc3; CP of layers with patches"
            f" longer than {LONG} at {KEPT[1]:.0%} only"
        )
    print(
        "mean relative error on held-out images, data-free → data-aware; gain: mean reduction of"
        " the error; worse: cases where data-aware is worse"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
