"""The layers that can be factorized in the networks of keras.applications, and in small ones.

    python benchmarks/refusals.py [NETWORK ...]

Each network is brought into its canonical form, without weights of a training. Of its layers with
matrices of weights: how many have a method among the defaults, the share of the MACs that is in
them, and the reasons of the others with their number. The small networks are those of
tests/real_networks.py. Writes refusals.csv to the folder of this file, row by row; networks that it
already holds are left out.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from table import Table

from lrfc.config.build import METHODS
from lrfc.costs.totals import totals, totals_of
from lrfc.data.dataset import Data, Split
from lrfc.factorization import METHODS as ALL
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.passes.canonicalise import Canonicalise
from lrfc.search.candidates import selected
from lrfc.state import State

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tests.real_networks import NETWORKS as SMALL  # noqa: E402  behind the folder of the tests


def applications() -> dict[str, Any]:
    """The functions of keras.applications that make a network, by name."""
    import keras

    found = vars(keras.applications).items()
    return {name: make for name, make in found if name[0].isupper() and callable(make)}


def application(name: str) -> Any:
    """A network at its own size, or at 224×224 where it has none."""
    make = applications()[name]
    model = make(weights=None)
    return make(weights=None, input_shape=(224, 224, 3)) if None in model.input_shape[1:] else model


def canonical(model: Any) -> Graph:
    """The graph that a build of a model starts from."""
    graph = keras_io.from_keras(model)
    nothing = Split((np.zeros((1, 1), np.float32),))
    return Canonicalise()(
        State(graph, graph, Data("none", nothing, nothing, nothing, synthetic=True))
    ).graph


def row(graph: Graph) -> dict[str, Any]:
    """The counts of a graph."""
    taken, within, reasons = 0, 0, Counter[str]()
    for op, ruled_out in selected(graph, (), ()):
        source = graph.input_tensors(op.name)[0]
        refusals = [ruled_out] if ruled_out else [ALL[name].refuses(op, source) for name in METHODS]
        if None in refusals:
            taken += 1
            within += totals_of(graph, op.name)["macs"]
        else:
            reasons[f"{op.kind}: {'; '.join(dict.fromkeys(map(str, refusals)))}"] += 1
    macs = totals(graph)["macs"]
    return {
        "layers": taken + reasons.total(),
        "taken": taken,
        "macs": macs,
        "macs_taken": f"{100 * within / macs:.1f}",
        "refused": " | ".join(f"{count} × {reason}" for reason, count in reasons.most_common()),
    }


def main() -> None:
    """Add the rows that the table lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=[*applications(), *SMALL])
    given = parser.parse_args()
    table = Table(HERE / "refusals.csv")
    for name in given.networks:
        if table.knows(network=name):
            continue
        model = SMALL[name]() if name in SMALL else application(name)
        table.add({"network": name, **row(canonical(model))})
        gc.collect()


if __name__ == "__main__":
    main()
