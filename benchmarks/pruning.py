"""Pruning, factorization, and both in one MILP: accuracy and memory at the same MACs.

    LRFC_DATA=... python benchmarks/pruning.py resnet56_cifar10 [--kept 50 30] [--epochs 1]
        [--images 10000] [--test 10000]

All have the same fine-tune. Writes pruning_NETWORK.csv to the folder of this file, row by row; rows
that it already holds are not run again. 'both' is the plan of a build with ``--prune on``: the
joint plan, or one of its parts where that keeps the outputs closer to the original on validation
images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from selection import cifar, score
from table import Table

from lrfc.config.build import Budget
from lrfc.costs.arena import arena
from lrfc.costs.totals import totals
from lrfc.engine.closest import closest
from lrfc.ir.fold import fold_batchnorm
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.state import Progress

WAYS = ("low rank", "filters", "both")


def compare(network: str, kept: list[int], epochs: int, images: int, test: int, path: Path) -> None:
    """Run every variant at every share of the MACs."""
    table = Table(path)
    state = cifar(network)
    state = replace(
        state,
        data=replace(
            state.data, train=state.data.train.take(np.arange(min(images, len(state.data.train))))
        ),
        progress=Progress(log=print),
    )
    whole = totals(state.original)
    original = score(state.original, state.data.test, test)
    start = time.perf_counter()
    state = ExploreFilters()(ExploreLayers(cached=True)(state))
    explored = time.perf_counter() - start
    for share in kept:
        budget = Budget(value=share / 100, relative=True)
        for way in WAYS:
            if table.knows(way=way, kept=share):
                continue
            select = SelectRanks(
                budget, methods=() if way == "filters" else None, prune=way != "low rank"
            )
            made = closest(state, select)(state)
            selection = made.fact(Selection)
            steps = {"compressed": PruneFilters()(Factorize()(made))}
            steps["recalibrated"] = RecalibrateBatchNorm()(steps["compressed"])
            steps["refitted"] = Refit()(steps["recalibrated"])
            steps["fine-tuned"] = FineTune(epochs=epochs)(steps["refitted"])
            graph = steps["fine-tuned"].graph
            row = {
                "network": network,
                "kept": str(share),
                "way": way,
                "macs_kept": f"{100 * totals(graph)['macs'] / whole['macs']:.1f}",
            }
            row |= {
                "params_kept": f"{100 * totals(graph)['params'] / whole['params']:.1f}",
                "original": f"{original:.2f}",
            }
            row |= {
                step: f"{score(each.graph, state.data.test, test):.2f}"
                for step, each in steps.items()
            }
            row |= {
                "epochs": str(epochs),
                "images": str(len(state.data.train)),
                "predicted": f"{selection.divergence:.4f}",
            }
            row |= {"arena_kib": f"{arena(fold_batchnorm(graph)).planned_bytes() / 1024:.0f}"}
            row |= {
                "original_arena_kib": (
                    f"{arena(fold_batchnorm(state.original)).planned_bytes() / 1024:.0f}"
                )
            }
            row |= {
                "factorized": str(sum(c.method is not None for c in selection.chosen)),
                "groups_cut": str(len(selection.keeps)),
            }
            table.add(row | {"explored_seconds": f"{explored:.0f}"})


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[50, 30])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    compare(
        given.network,
        given.kept,
        given.epochs,
        given.images,
        given.test,
        given.out / f"pruning_{given.network}.csv",
    )


if __name__ == "__main__":
    main()
