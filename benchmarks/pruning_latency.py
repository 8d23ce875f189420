"""Error of the predicted latency of plans of ranks and filters, without feedback.

    LRFC_DATA=... python benchmarks/pruning_latency.py [--network resnet20_cifar10]
        [--devices host ethos-u55-128 ethos-u85-512] [--kept 75 60 45 30]

Plans of least predicted divergence within a latency budget, with ranks and filters or with filters
alone (``--prune only``), are emitted and measured. 'macs': the time of a layer with fewer channels
is proportional to its MACs; 'widths': it is that of its ops at other widths, as the cost profile
predicts it. Nothing but the original was measured before. Writes pruning_latency.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from selection import cifar
from table import Table

from lrfc.config.build import Budget
from lrfc.costs.latency import corrected
from lrfc.costs.totals import totals
from lrfc.engine.destinations import destination
from lrfc.engine.driver import bench_of
from lrfc.engine.preflight import goals
from lrfc.errors import BudgetError
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.price_layers import PriceLayers, executed
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.costs import narrower
from lrfc.pruning.facts import Selection
from lrfc.pruning.kept_fractions import Shares
from lrfc.pruning.selection import fixed
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import Price
from lrfc.state import Progress

HERE = Path(__file__).parent


def main() -> None:
    """Run every device, budget and kind of prediction."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10")
    parser.add_argument("--devices", nargs="+", default=["host", "ethos-u55-128", "ethos-u85-512"])
    parser.add_argument("--kept", type=int, nargs="+", default=[75, 60, 45, 30])
    given = parser.parse_args()
    table = Table(HERE / "pruning_latency.csv", overwrite=True)
    data = replace(cifar(given.network), progress=Progress())
    for goal in map(destination, goals(("tflite",), given.devices, None, 1)):
        multiple = goal.device.rank_multiple
        explored = ExploreFilters(multiple=multiple)(
            ExploreLayers(rank_multiple=multiple, cached=True)(data)
        )
        with (
            tempfile.TemporaryDirectory() as folder,
            bench_of(goal, explored, Path(folder)) as bench,
        ):
            ops = executed(explored, bench.reading)
            alone = bench.prices(
                [
                    *ops.distinct(),
                    *narrower(
                        explored.graph, Shares(explored.graph, explored.fact(FilterSpace)), ops
                    ),
                ]
            )
            profile = corrected(bench.profile, [(bench.ops, bench.time)])
            priced = PriceLayers(
                profile, {**alone, **bench.known}, alone, bench.ms_per_unit, executed=ops
            )(explored)
            ways = {
                "macs": priced.with_fact(replace(priced.fact(Price), prices=None)),
                "widths": priced,
            }
            for methods in (None, ()):
                for kept in given.kept:
                    for way, state in ways.items():
                        budget = Budget(value=kept / 100, relative=True)
                        try:
                            found = SelectRanks(max_latency=budget, methods=methods)(state)
                        except BudgetError as error:
                            print(goal.device.name, way, kept, error)
                            continue
                        selection = found.fact(Selection)
                        predicted = fixed(state)["latency"] + selection.cost("latency")
                        plan = PruneFilters()(Factorize()(found)).graph
                        macs = totals(plan)["macs"]
                        trial = bench(plan)
                        table.add(
                            {
                                "device": goal.device.name,
                                "choices": "ranks and filters" if methods is None else "filters",
                                "kept": kept,
                                "time": way,
                                "predicted_ms": f"{predicted * bench.ms_per_unit:.5g}",
                                "measured_ms": f"{trial.time * bench.ms_per_unit:.5g}",
                                "original_ms": f"{bench.time * bench.ms_per_unit:.5g}",
                                "error": f"{predicted / trial.time - 1:+.4f}",
                                "impact": f"{selection.divergence:.5f}",
                                "groups": len(selection.keeps),
                                "macs_kept": f"{100 * macs / totals(state.original)['macs']:.1f}",
                            }
                        )
        for way in ways:
            own = [
                abs(float(row["error"]))
                for row in table.rows
                if row["device"] == goal.device.name and row["time"] == way
            ]
            print(f"{goal.device.name}, {way}: mean error {100 * np.mean(own):.1f} %", flush=True)


if __name__ == "__main__":
    main()
