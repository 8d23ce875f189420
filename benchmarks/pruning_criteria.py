"""Accuracy after pruning by each criterion.

    LRFC_DATA=... python benchmarks/pruning_criteria.py resnet56_cifar10 [--kept 75 50]
        [--criteria l1 ...] [--keep "*_add"] [--images 2000]

Every dependency group loses the same share of its units, so that the criteria differ only in the
choice of units. Writes pruning_criteria_NET.csv to the folder of this file: the test accuracy of
the pruned network, and with the layers that read the filters reconstructed in closed form. Nothing
is trained, and BatchNorm statistics do not change.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lrfc.data.load import load_data
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.ir.op import Array
from lrfc.metrics.metric import accuracy
from lrfc.passes.canonicalise import Canonicalise
from lrfc.pruning.compensate import refitted
from lrfc.pruning.criteria import CRITERIA, Context, Scores, keep_best
from lrfc.pruning.cut import cut
from lrfc.pruning.groups import Dependencies, groups
from lrfc.pruning.labels import Ids
from lrfc.search.statistics import Sampler, SampleSize
from lrfc.state import State

HERE = Path(__file__).parent


def macs(graph: Graph) -> int:
    return sum(ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph)


def uniform(
    graph: Graph, found: Dependencies, scores: dict[str, Scores], limit: float
) -> dict[str, Ids]:
    """Return the best filters of each group, the same share of each, within a limit of MACs."""

    def kept(share: float) -> dict[str, Ids]:
        return {
            group.name: keep_best(scores[group.name], max(1, round(share * group.width)))
            for group in found.groups
        }

    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if macs(cut(graph, kept(middle), found)) > limit else (middle, high)
        )
    return kept(low)


def refit(graph: Graph, found: Dependencies, kept: dict[str, Ids], context: Context) -> Graph:
    """Return the uncut graph with each consumer reconstructed to the original's output."""
    assert context.statistics is not None
    removed: dict[str, Ids] = {}
    for group in found.groups:
        gone = np.delete(np.arange(group.width), kept[group.name])
        for part in group.consumers:
            removed[part.layer] = np.union1d(
                removed.get(part.layer, np.empty(0, np.intp)), part.where(gone)
            )
    weights: dict[str, dict[str, Array]] = {}
    for layer, rows in removed.items():
        op = graph.op(layer)
        new = refitted(op, graph.input_tensors(layer)[0], context.statistics(layer), rows)
        weights[layer] = {
            **op.weights,
            "kernel": new.kernel,
            **({} if new.bias is None else {"bias": new.bias}),
        }
    return graph.with_weights(weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[75, 50])
    parser.add_argument("--criteria", nargs="+", choices=tuple(CRITERIA), default=tuple(CRITERIA))
    parser.add_argument("--keep", nargs="*", default=[], help="layers that stay whole")
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    folder = Path(os.environ["LRFC_DATA"])
    graph = keras_io.from_keras(keras_load.load(folder / "models" / f"{given.network}.keras"))
    data = load_data(
        str(folder / "cifar10_train.npz"), graph, test=str(folder / "cifar10_test.npz"), seed=0
    )
    graph = Canonicalise()(State(graph, graph, data)).graph
    test = data.test.take(np.arange(given.images))
    inputs = data.train.inputs
    found = groups(graph, given.keep)
    readers = dict.fromkeys(part.layer for group in found.groups for part in group.consumers)
    sampler = Sampler(
        graph, [graph.op(name) for name in readers], inputs, replace(SampleSize(), held_out=1), 0
    )
    context = Context(graph, found, inputs, lambda name: sampler[name].statistics)

    def score(of: Graph) -> str:
        return f"{100 * accuracy(keras_io.predict(of, test.inputs), test):.2f}"

    with (HERE / f"pruning_criteria_{given.network}.csv").open(
        "w", newline="", encoding="utf-8"
    ) as file:
        table = csv.writer(file)
        table.writerow(("criterion", "macs_kept", "seconds", "cut", "refitted"))
        table.writerow(("none", 100, "", score(graph), ""))
        print(score(graph), flush=True)
        for name in given.criteria:
            start = time.perf_counter()
            scores = {group.name: CRITERIA[name](graph, group, context) for group in found.groups}
            seconds = time.perf_counter() - start
            for share in given.kept:
                kept = uniform(graph, found, scores, share / 100 * macs(graph))
                better = cut(refit(graph, found, kept, context), kept, found)
                row = (name, share, f"{seconds:.1f}", score(cut(graph, kept, found)), score(better))
                table.writerow(row)
                file.flush()
                print(*row, flush=True)


if __name__ == "__main__":
    main()
