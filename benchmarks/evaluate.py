"""Networks of several data sets, compressed in every way to the same share of their MACs.

    LRFC_DATA=... python -m benchmarks.evaluate [--networks har_conv ...] [--ways hybrid ...]
        [--kept 50 30] [--epochs 0]

The networks are those of ``benchmarks.zoo``; each is explored once. The ways are those of
``benchmarks.zoo.ways``, the hybrid as an int8 file too, and the original as both.
The score is that of the emitted TFLite file on the whole test set, with the 95 % interval of a
bootstrap over its samples; the latency is measured in turns with the original's file. Writes
evaluate.csv to the folder of this file, row by row; rows that it already holds are not made again.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from benchmarks.table import Table
from benchmarks.zoo import ways
from benchmarks.zoo.registry import NETWORKS, Network
from lrfc.costs.totals import totals
from lrfc.data.dataset import Data
from lrfc.data.load import load_data
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.metrics.metric import Metric, metric
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.equalize_stages import EqualizeStages
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.protocols import Artifact
from lrfc.pruning.facts import Selection
from lrfc.state import State
from lrfc.targets.devices.measure import compare
from lrfc.targets.devices.speed import speedup
from lrfc.targets.tflite.target import TFLite

HERE = Path(__file__).parent
#: Samples that an int8 file is calibrated with.
CALIBRATION = 200
#: Resamples of a bootstrap.
RESAMPLES = 1_000
#: Seconds that the timing of two files may take.
TIMEOUT = 120.0


class Bench:
    """A network with its data: what it takes to make the row of a plan."""

    def __init__(self, network: Network, folder: Path) -> None:
        graph = keras_io.from_keras(keras_load.load(network.path()))
        given = network.data()
        data: Data = load_data(given, graph, seed=0)
        state = Canonicalise()(State(graph, graph, data))
        self.network, self.state = network, State(state.graph, state.graph, data)
        self.metric: Metric = metric(network.metric, graph, data.test)
        self._folder = folder
        self._original = TFLite().emit(graph, folder / "original.tflite")

    def row(self, graph: Graph, precision: str) -> dict[str, Any]:
        """The figures of a network as a file, which is timed in turns with the original's."""
        target, sums = TFLite(precision), totals(graph)
        samples = self.state.data.train.head(CALIBRATION).inputs
        file = target.emit(graph, self._folder / f"{precision}.tflite", samples)
        before, after = compare([self._original, file], timeout=TIMEOUT)
        ratio = speedup(before, after)
        score, low, high = self._score(target, file)
        return {
            "score": f"{score:.4f}",
            "low": f"{low:.4f}",
            "high": f"{high:.4f}",
            "macs": sums["macs"],
            "params": sums["params"],
            "file_bytes": file.bytes,
            "arena_bytes": target.arena_bytes(file.path),
            "latency_ms": f"{after.median_ms:.4f}",
            "speedup": f"{ratio.median:.3f}",
            "speedup_low": f"{ratio.low:.3f}",
            "speedup_high": f"{ratio.high:.3f}",
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }

    def repaired(self, selected: State, epochs: int, precision: str) -> Graph:
        """The network of a selection, as a build makes it for files of that precision."""
        state = PruneFilters()(Factorize()(selected))
        state = Refit()(RecalibrateBatchNorm()(state))
        if epochs:
            state = FineTune(Tuning(epochs=epochs))(state)
        state = state.with_graph(inference_form(state.graph))
        return (CorrectBiases()(EqualizeStages()(state)) if precision == "int8" else state).graph

    def _score(self, target: TFLite, file: Artifact) -> tuple[float, float, float]:
        """The score on the test set, and its interval."""
        test = self.state.data.test
        outputs = target.load(file)(test.inputs)

        def scored(rows: Any) -> float:
            picked = np.asarray(rows, int)
            return self.metric.score(tuple(y[picked] for y in outputs), test.take(picked))

        rows = np.arange(len(test))
        found = bootstrap(
            (rows,), scored, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=0
        )
        interval = found.confidence_interval
        return self.metric.score(outputs, test), float(interval.low), float(interval.high)


def rows(
    bench: Bench, kept: list[int], epochs: int
) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """The key of each row of a network, and what makes the rest of it; None where it cannot be."""
    original = bench.state.original
    for precision, way in (("fp32", "original"), ("int8", "plain int8")):
        key = {"way": way, "kept": 100, "epochs": 0}
        yield key, lambda precision=precision: bench.row(original, precision)
    explored: list[State] = []

    def state() -> State:
        if not explored:
            explored.append(ways.explored(bench.state))
        return explored[0]

    for share in kept:
        for way in WAYS:

            def made(way: str = way, share: int = share) -> dict[str, Any] | None:
                name, _, precision = way.partition(", ")
                selected = dict(ways.plans(state(), share / 100)).get(name, lambda: None)()
                if selected is None:
                    return None
                divergence = selected.fact(Selection).divergence
                graph = bench.repaired(selected, epochs, precision or "fp32")
                return bench.row(graph, precision or "fp32") | {"predicted": f"{divergence:.5f}"}

            yield {"way": way, "kept": share, "epochs": epochs}, made


#: The ways of the rows.
WAYS = (
    "hybrid",
    "hybrid, int8",
    "all methods",
    *ways.CONV,
    *(f"{name} alone" for name in ways.FULL),
    "energy",
    "EVBMF",
    "uniform",
    "filters",
    "ranks and filters",
)


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--ways", nargs="+", choices=("original", "plain int8", *WAYS))
    parser.add_argument("--kept", type=int, nargs="+", default=[50, 30])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    table = Table(given.out / "evaluate.csv")
    for name in given.networks:
        network = NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(network, Path(folder))
            for key, made in rows(bench, given.kept, given.epochs):
                if table.knows(network=name, **key) or key["way"] not in (
                    given.ways or [key["way"]]
                ):
                    continue
                began = time.monotonic()
                found = made()
                if found is not None:
                    seconds = f"{time.monotonic() - began:.1f}"
                    start = {"network": name, "dataset": network.dataset, **key}
                    table.add(start | found | {"seconds": seconds})


if __name__ == "__main__":
    main()
