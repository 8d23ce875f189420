"""Networks with depthwise convolutions, with and without cut filters.

    LRFC_DATA=... python benchmarks/depthwise.py [NETWORK ...] [--ways 1pp 60%]
        [--prune off auto] [--epochs 0]

Each network is built for the least latency on this machine within 1pp, or at a share of its MACs,
with all training images and by each value of ``--prune``. ``cpu_seconds``: of the whole build, user
and system. The score is that of the emitted file on the whole test set.

Writes depthwise.csv to the folder of this file, row by row; rows that it already holds are not run
again.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path
from typing import Any

from finetune import SCALED, built, images
from table import Table

NETWORKS = (SCALED, "mobilenetv2_cifar10", "shufflenetv2_cifar10")


def main() -> None:
    """Add the rows that the table lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=["1pp", "60%"])
    parser.add_argument("--prune", nargs="+", default=["off", "auto"])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    table = Table(given.out / "depthwise.csv")
    for network, way, prune in product(given.networks, given.ways, given.prune):
        key = {"network": network, "way": way, "prune": prune, "epochs": given.epochs}
        if table.knows(**key):
            continue
        start = _cpu_seconds()
        row = built(network, *images(network), prune=prune, epochs=given.epochs, **_budget(way))
        table.add(key | row | {"cpu_seconds": f"{_cpu_seconds() - start:.0f}"})


def _budget(way: str) -> dict[str, Any]:
    if way.endswith("pp"):
        return {"max_drop": way}
    return {"max_macs": way, "max_drop": "100pp"}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
