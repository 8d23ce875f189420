"""The networks of the evaluation: trained where they are not, and scored on their test sets.

    LRFC_DATA=... python -m benchmarks.zoo [NETWORK ...]

Prints a line for each: parameters, MACs, and the score of the float TFLite file on the test set.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.zoo.registry import NETWORKS, Network
from lrfc.costs.totals import totals
from lrfc.data.dataset import Split
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.metrics.metric import metric
from lrfc.targets.tflite.target import TFLite


def line(network: Network) -> str:
    """The name of a network with its parameters, MACs and score."""
    graph = keras_io.from_keras(keras_load.load(network.path()))
    sums, data, score = totals(graph), network.data(), "no labelled data"
    if data is not None:
        test = Split((data["x_test"],), (data["y_test"],))
        scored = metric(network.metric, graph, test)
        with tempfile.TemporaryDirectory() as folder:
            target = TFLite()
            file = target.emit(graph, Path(folder, "net.tflite"))
            score = f"{scored.shown(scored.score(target.load(file)(test.inputs), test))}"
    return f"{network.name}: {sums['params']:,} parameters, {sums['macs']:,} MACs, {score}"


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    for name in parser.parse_args().networks:
        sys.stdout.write(f"{line(NETWORKS[name])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
