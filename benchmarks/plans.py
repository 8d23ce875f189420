"""Gain of a search that knows the device.

At equal predicted divergence of the outputs: the plan with the fewest MACs, and the one with the
least latency.

    LRFC_DATA=... python benchmarks/plans.py [--kept 75 60 45 30] [--rounds 3]

ResNet-20 on CIFAR-10 in float32, by LiteRT and onnxruntime on one core of this machine. Prices
start from the shipped cost profile and are corrected by the original and by each measured plan, as
in a build: the plan with the least latency is the last of ``--rounds`` rounds. Both plans are then
timed in turns with the original. Writes plans.csv to the folder of this file; intervals are 95 %.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from selection import cifar
from table import Table

from lrfc.config.build import METHODS, Budget
from lrfc.costs.latency import corrected
from lrfc.costs.measurements import Store
from lrfc.engine.benchmark import Bench
from lrfc.engine.destinations import destination
from lrfc.engine.preflight import goals
from lrfc.errors import BudgetError
from lrfc.ir.fold import fold_batchnorm
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.price_layers import PriceLayers, executed
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import fixed
from lrfc.state import State
from lrfc.targets.devices.runners import runner
from lrfc.targets.devices.speed import speedup

HERE = Path(__file__).parent


def quickest(state: State, bench: Bench, impact: float, rounds: int) -> tuple[State, float, float]:
    """Return the plan of least time within a divergence, its predicted and its measured time."""
    seen, found = [(bench.ops, bench.time)], []
    read = executed(state, bench.reading)
    for _ in range(rounds):
        priced = PriceLayers(corrected(bench.profile, seen), executed=read)(state)
        chosen = SelectRanks(max_divergence=impact, minimise="latency")(priced)
        predicted = fixed(priced)["latency"] + sum(c.latency for c in chosen.fact(Selection).chosen)
        trial = bench(Factorize()(chosen).graph)
        found.append((trial.time, predicted, chosen))
        seen.append((trial.ops, trial.time))
    time, predicted, chosen = min(found, key=lambda each: each[0])
    return chosen, predicted, time


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=int, nargs="+", default=[75, 60, 45, 30])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    state = ExploreLayers(methods=METHODS, cached=True)(cifar("resnet20_cifar10"))
    table = Table(HERE / "plans.csv", overwrite=True)
    for goal in map(destination, goals(("tflite", "onnx"), (), "fp32", 1)):
        profile, _ = goal.profile()
        few = tuple(x[:8] for x in state.data.train.inputs)
        with tempfile.TemporaryDirectory() as folder, runner(goal.device) as reached:
            place = Path(folder)
            bench = Bench(
                goal.target,
                goal.device,
                reached,
                profile,
                state.original,
                few,
                1,
                place,
                Store(place / "measured.sqlite"),
            )
            for share in given.kept:
                try:
                    fewest = SelectRanks(Budget(value=share / 100, relative=True))(state)
                except BudgetError:
                    continue
                impact = fewest.fact(Selection).divergence
                fewest = SelectRanks(max_divergence=impact, minimise="macs")(state)
                quick, predicted, _ = quickest(state, bench, impact, given.rounds)
                graphs = [
                    fold_batchnorm(state.original),
                    *(fold_batchnorm(Factorize()(each).graph) for each in (fewest, quick)),
                ]
                files = [
                    goal.target.emit(graph, place / f"{number}.{goal.target.name}", few)
                    for number, graph in enumerate(graphs)
                ]
                original, by_macs, by_time = bench.measure(files, graphs)
                row: dict[str, Any] = {
                    "target": goal.target.name,
                    "kept": share,
                    "impact": f"{impact:.5f}",
                    "predicted_ms": f"{predicted:.3f}",
                }
                for name, first, second in (
                    ("macs_plan", original, by_macs),
                    ("time_plan", original, by_time),
                    ("time_over_macs", by_macs, by_time),
                ):
                    ratio = speedup(first, second)
                    row |= {
                        f"{name}_speedup": f"{ratio.median:.3f}",
                        f"{name}_low": f"{ratio.low:.3f}",
                        f"{name}_high": f"{ratio.high:.3f}",
                    }
                table.add(row)


if __name__ == "__main__":
    main()
