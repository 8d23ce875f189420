"""Ethos-U: error of predicted cycles, and the gain of a search that knows cycles.

    LRFC_DATA=... python benchmarks/npu.py predict [--devices ethos-u55-128 ...] [--plans 20]
    LRFC_DATA=... python benchmarks/npu.py plans [--devices ethos-u55-128 ...] [--kept 75 60 45 30]
    LRFC_DATA=... python benchmarks/npu.py contract [--networks resnet20_cifar10 ...]
        [--devices ethos-u55-128 ...] [--drop 1pp] [--epochs 0]
    LRFC_DATA=... python benchmarks/npu.py rounding [--network resnet20_cifar10]
        [--kept 95 85 75 60 45]
    python benchmarks/npu.py profiles [--devices ethos-u55-128 ...]

The first two take ResNet-20 in int8 and, as do contract and rounding, write a CSV file to the
folder of this file. Vela is deterministic: the figures are the same each time.

predict: random plans (a random method and rank for each layer), compiled by Vela. 'profile' is the
prediction from the shipped cost profile alone, 'priced' that from ops that Vela priced in probe
networks together with the compiled original, 'fed back' that after the plan itself was compiled
once. plans: at equal predicted divergence, the plan with the fewest MACs and the one with the
fewest predicted cycles, both compiled. rounding: plans at shares of the MACs, chosen with and
without the rounding error of the candidates, both as int8 files. contract: whole builds with the
fewest cycles within the accuracy constraint. Accuracies are those of the emitted files, on the
whole test set. Rows that a file already holds are not computed again. profiles: writes the cost
profiles that ship.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from selection import cifar, random_plan, selected
from table import Table

import lrfc
from lrfc.config.build import METHODS, Budget
from lrfc.costs import latency, npu
from lrfc.costs.totals import totals
from lrfc.costs.workload import Workload
from lrfc.errors import BudgetError, NoGainError
from lrfc.factorization import METHODS as ALL
from lrfc.ir.batch import Batch
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.metric import accuracy
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.equalize_stages import EqualizeStages
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.fold_batchnorm import FoldBatchNorm
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.select_ranks import SelectRanks
from lrfc.passes.weigh_rounding import WeighRounding
from lrfc.protocols import Artifact
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import fixed
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import divergence
from lrfc.state import Progress, State
from lrfc.targets.devices import device
from lrfc.targets.ethos_u import vela
from lrfc.targets.ethos_u.pricing import observed, predicted, price, profile
from lrfc.targets.tflite.target import TFLite

HERE = Path(__file__).parent
DEVICES = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-512")


class Emitted:
    """The int8 files of plans of one network."""

    def __init__(self, state: State, folder: Path) -> None:
        self.state, self._folder, self._number = state, folder, 0
        self._images = tuple(x[:8] for x in state.data.train.inputs)

    def graph(self, plan: Mapping[str, Candidate]) -> Graph:
        """Return the graph of a plan as it is emitted; the original for an empty plan."""
        return fold_batchnorm(
            Factorize()(selected(self.state, plan)).graph if plan else self.state.graph
        )

    def file(self, graph: Graph) -> Artifact:
        """Return the int8 file of a graph."""
        self._number += 1
        return TFLite("int8").emit(graph, self._folder / f"{self._number}.tflite", self._images)


def from_profile(name: str, graph: Graph) -> float:
    """Return the cycles by the shipped cost profile alone; nan where there is none."""
    shipped = latency.load(name, "tflite", "int8", 1)
    return (
        float("nan")
        if shipped is None
        else shipped.predict(each for _, each in npu.workloads(graph))
    )


def predict(devices: Sequence[str], plans: int) -> None:
    """Compare predicted with compiled cycles of random plans."""
    state = ExploreLayers(methods=METHODS)(cifar("resnet20_cifar10"))
    spaces = state.fact(DesignSpace).spaces
    rng = np.random.default_rng(0)
    table = Table(HERE / "npu_predict.csv", overwrite=True)
    with tempfile.TemporaryDirectory() as folder:
        emitted = Emitted(state, Path(folder))
        graphs = [
            emitted.graph({}),
            *(emitted.graph(random_plan(spaces, rng)) for _ in range(plans)),
        ]
        files = [emitted.file(graph) for graph in graphs]
        for name in devices:
            connection = vela_of(name)
            start = time.perf_counter()
            prices = price(
                [each for graph in graphs for _, each in npu.workloads(graph)], connection
            )
            seconds = time.perf_counter() - start
            original = vela.compiled(files[0], connection)
            known = prices | observed(original, graphs[0], prices)
            own: list[dict[str, Any]] = []
            for number, (graph, file) in enumerate(zip(graphs, files, strict=True)):
                result = vela.compiled(file, connection)
                guesses = {
                    "profile": from_profile(name, graph),
                    "priced": predicted(graph, known),
                    "fed_back": predicted(graph, known | observed(result, graph, prices)),
                }
                row = {
                    "device": name,
                    "plan": number or "original",
                    "macs": totals(graph)["macs"],
                    "cycles": result.cycles,
                }
                row |= {"sram_bytes": result.sram_bytes, "flash_bytes": result.flash_bytes}
                row |= {
                    key: "" if np.isnan(value) else round(value) for key, value in guesses.items()
                }
                table.add(row)
                if number:
                    own.append(row)
            errors = {
                key: np.mean([abs(row[key] / row["cycles"] - 1) for row in own])
                for key in ("profile", "priced", "fed_back")
                if own[0][key] != ""
            }
            print(
                f"{name}: {len(prices)} ops priced in {seconds:.1f} s; mean error of {len(own)}"
                " plans: "
                + ", ".join(f"{key} {100 * error:.2f} %" for key, error in errors.items()),
                flush=True,
            )


def vela_of(name: str) -> device.Vela:
    """Return the connection of a device through Vela."""
    connection = device.load(name).connection
    assert isinstance(connection, device.Vela)
    return connection


def plans(devices: Sequence[str], kept: Sequence[int]) -> None:
    """Compare the plans with the fewest MACs and the fewest cycles at equal divergence."""
    explored = cifar("resnet20_cifar10")
    table = Table(HERE / "npu_plans.csv", overwrite=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in devices:
            connection = vela_of(name)
            state = ExploreLayers(methods=METHODS, rank_multiple=device.load(name).rank_multiple)(
                explored
            )
            spaces = state.fact(DesignSpace).spaces
            emitted = Emitted(state, Path(folder))
            whole = emitted.graph({})
            original = vela.compiled(emitted.file(whole), connection)
            parts = {id(c): ops(whole, s, c) for s in spaces for c in s.candidates}
            start = time.perf_counter()
            prices = price([each for own in parts.values() for each in own], connection)
            known = prices | observed(original, whole, prices)
            print(
                f"{name}: {len(known)} ops of {len(parts)} candidates priced in"
                f" {time.perf_counter() - start:.1f} s",
                flush=True,
            )
            choices = [
                [
                    replace(c, latency=sum(known[each] for each in parts[id(c)]))
                    for c in s.candidates
                ]
                for s in spaces
            ]
            for share in kept:
                limit = share / 100 * totals(whole)["macs"] - fixed(state)["macs"]
                try:
                    impact = sum(c.divergence for c in allocate(choices, {"macs": limit}))
                except BudgetError:
                    continue
                row: dict[str, Any] = {
                    "device": name,
                    "macs_budget": share,
                    "impact": f"{impact:.6f}",
                    "original": original.cycles,
                }
                for quantity in ("macs", "latency"):
                    chosen = allocate(choices, {"divergence": impact}, minimise=quantity)
                    graph = emitted.graph({c.layer: c for c in chosen})
                    result = vela.compiled(emitted.file(graph), connection)
                    row |= {
                        f"{quantity}_{key}": value
                        for key, value in figures(graph, result, known).items()
                    }
                table.add(row)


def figures(graph: Graph, result: vela.Compiled, known: Mapping[Workload, float]) -> dict[str, Any]:
    """Return the columns of a plan."""
    return {
        "macs": totals(graph)["macs"],
        "predicted": round(predicted(graph, known)),
        "cycles": result.cycles,
        "sram_bytes": result.sram_bytes,
        "flash_bytes": result.flash_bytes,
    }


def ops(graph: Graph, space: LayerSpace, candidate: Candidate) -> list[Workload]:
    """Return the workloads of the ops that replace a layer, at each of its calls."""
    source = graph.input_tensors(space.op.name)[0]
    found: list[Workload] = []
    for call in space.calls:
        stages = (
            [graph.op(call)]
            if candidate.method is None
            else ALL[candidate.method].outline(graph.op(call), source, candidate.ranks)
        )
        found += npu.chain(graph, call, stages)
    return found


def contract(networks: Sequence[str], devices: Sequence[str], drop: str, epochs: int) -> None:
    """Build under an accuracy constraint; a row for each build."""
    folder, table = Path(os.environ["LRFC_DATA"]), Table(HERE / "npu_contract.csv")
    for name, network in product(devices, networks):
        key = {"device": name, "network": network, "drop": drop, "epochs": str(epochs)}
        if table.knows(**key):
            continue
        (model,) = (folder / "models").glob(f"{network}.*")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            spec: dict[str, Any] = {
                "data": str(folder / "cifar10_train.npz"),
                "test_data": str(folder / "cifar10_test.npz"),
            }
            try:
                result = lrfc.build(
                    str(model),
                    device=name,
                    max_drop=drop,
                    epochs=epochs,
                    out=f"{out}/build",
                    progress=Progress(log=said),
                    **spec,
                )
            except (BudgetError, NoGainError) as error:
                print(error, flush=True)
                result = error.result
        table.add(
            key | outcome(result.manifest) | {"seconds": f"{time.perf_counter() - start:.0f}"}
        )


def rounding(kept: Sequence[int], network: str, images: int = 2_000) -> None:
    """Compare plans chosen with and without rounding errors, as float networks and int8 files."""
    explored = ExploreLayers(methods=METHODS, cached=True)(cifar(network))
    test = explored.data.test.take(np.arange(images))
    reference = above(keras_io.predict(explored.original, test.inputs))
    spaces = {0: explored, 1: WeighRounding(cached=True)(explored)}
    table = Table(HERE / f"npu_rounding_{network}.csv", overwrite=True)
    for share, (weighed, state) in product(kept, spaces.items()):
        plan = SelectRanks(Budget(value=share / 100, relative=True))(state)
        chosen = {c.layer: (c.method, c.ranks) for c in plan.fact(Selection).chosen}
        made = plan
        for step in (Factorize(), RecalibrateBatchNorm(), FoldBatchNorm()):
            made = step(made)
        exact = above(keras_io.predict(made.graph, test.inputs))
        ready = CorrectBiases()(EqualizeStages()(made))
        with tempfile.TemporaryDirectory() as folder:
            file = TFLite("int8").emit(
                ready.graph,
                Path(folder, "plan.tflite"),
                tuple(x[:200] for x in state.data.train.inputs),
            )
            found = above(TFLite("int8").load(file)(test.inputs))
        row: dict[str, Any] = {
            "network": network,
            "macs_budget": share,
            "weighed": weighed,
            "impact": f"{plan.fact(Selection).divergence:.6f}",
        }
        row |= {
            "divergence_float": f"{divergence(reference, exact):.5f}",
            "divergence_int8": f"{divergence(reference, found):.5f}",
        }
        row |= {
            "rounding": f"{divergence(exact, found):.5f}",
            "accuracy_int8": f"{100 * accuracy(found, test):.2f}",
        }
        counts = Counter(method or "none" for method, _ in chosen.values())
        table.add(
            row
            | {"methods": " ".join(f"{method}:{count}" for method, count in sorted(counts.items()))}
        )


def above(outputs: Batch) -> Batch:
    """Return the outputs with probabilities below the resolution of 8 bits raised to it.

    Otherwise, the rounding of the outputs themselves would be most of the divergence.
    """
    raised = [np.maximum(p, 1 / 512) for p in outputs]
    return tuple(p / p.sum(-1, keepdims=True) for p in raised)


def said(text: str) -> None:
    """Print a line of a build."""
    print(text, flush=True)


def outcome(manifest: Any) -> dict[str, Any]:
    """Return the columns of a build."""
    before, after, held = manifest.before, manifest.after, manifest.accuracy.kept
    found = {
        f"{quantity}_{side}": getattr(each, quantity)
        for quantity in ("cycles", "sram_bytes", "flash_bytes", "macs", "file_bytes")
        for side, each in (("before", before), ("after", after))
    }
    found |= {
        f"accuracy_{side}": f"{100 * each.accuracy:.2f}"
        for side, each in (("before", before), ("after", after))
    }
    methods = Counter(layer.method or "none" for layer in manifest.layers)
    return found | {
        "accuracy_float": f"{100 * manifest.accuracy.before:.2f}",
        "lost": "" if held is None else f"{100 * held.drop:.2f}",
        "met": "" if held is None else int(held.met),
        "attempts": len(manifest.search.attempts),
        "methods": " ".join(f"{method}:{count}" for method, count in sorted(methods.items())),
        "problem": manifest.problem or "",
    }


def profiles(devices: Sequence[str]) -> None:
    """Write the shipped cost profiles."""
    for name in devices:
        found = profile(device.load(name))
        latency.CostFile(profiles=(found,)).write(device.SHIPPED / f"{name}.cost.json")
        print(
            f"{name}: "
            + ", ".join(
                f"{family} {100 * error.mean:.0f} % ({error.n})"
                for family, error in found.held_out.items()
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("rounding").add_argument("--network", default="resnet20_cifar10")
    commands.choices["rounding"].add_argument(
        "--kept", type=int, nargs="+", default=[95, 85, 75, 60, 45]
    )
    for name in ("predict", "plans", "contract", "profiles"):
        command = commands.add_parser(name)
        command.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    commands.choices["predict"].add_argument("--plans", type=int, default=20)
    commands.choices["plans"].add_argument("--kept", type=int, nargs="+", default=[75, 60, 45, 30])
    commands.choices["contract"].add_argument(
        "--networks", nargs="+", default=["resnet20_cifar10", "mlperf_tiny_resnet8_cifar10"]
    )
    commands.choices["contract"].add_argument("--drop", default="1pp")
    commands.choices["contract"].add_argument("--epochs", type=int, default=0)
    given = parser.parse_args()
    if given.command == "profiles":
        profiles(given.devices)
        return
    if "LRFC_DATA" not in os.environ:
        parser.error("set LRFC_DATA to the folder with models/ and CIFAR-10")
    if given.command == "predict":
        predict(given.devices, given.plans)
    elif given.command == "rounding":
        rounding(given.kept, given.network)
    elif given.command == "contract":
        contract(given.networks, given.devices, given.drop, given.epochs)
    else:
        plans(given.devices, given.kept)


if __name__ == "__main__":
    main()
