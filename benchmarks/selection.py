"""Rank selection on real networks: rank correlation, accuracy of the plans, and run time.

    LRFC_DATA=... python benchmarks/selection.py accuracy resnet20_cifar10 [--kept 75 60 50 40 30]
        [--images 10000]
    LRFC_DATA=... python benchmarks/selection.py ranking resnet20_cifar10 [--plans 60]
    python benchmarks/selection.py correlations
    LRFC_DATA=... python benchmarks/selection.py speed resnet56_cifar10
    python benchmarks/selection.py growth VGG16

Each command writes a CSV file to the folder of this file, named after the command and the network;
only ``correlations`` reads one, selection_ranking_all_images.csv, and prints what ``ranking`` does.
Rows of ``accuracy`` and ``ranking`` that a file already holds are not computed again. Nothing is
trained: the accuracy is that of the factorized network with BatchNorm re-estimated, and with
reconstruction in closed form. Plans are chosen and reconstructed on training images, and scored on
test images.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from table import Table

from benchmarks.evbmf import evbmf_rank
from lrfc.config.build import METHODS, Budget
from lrfc.costs.totals import totals
from lrfc.data.dataset import Data, Split
from lrfc.data.load import load_data
from lrfc.errors import BudgetError
from lrfc.factorization import METHODS as ALL
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.metrics.metric import accuracy
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import fixed
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.facts import DesignSpace
from lrfc.search.similarity import MEASURES
from lrfc.search.statistics import SampleSize
from lrfc.state import Progress, State

HERE = Path(__file__).parent


def canonical(graph: Graph, data: Data) -> State:
    """Return the state before exploration."""
    state = Canonicalise()(State(graph, graph, data))
    return State(state.graph, state.graph, data)


def cifar(name: str) -> State:
    """Return a shared CIFAR-10 model with its data."""
    folder = Path(os.environ["LRFC_DATA"])
    graph = keras_io.from_keras(keras_load.load(folder / "models" / f"{name}.keras"))
    return canonical(
        graph,
        load_data(
            str(folder / "cifar10_train.npz"), graph, test=str(folder / "cifar10_test.npz"), seed=0
        ),
    )


def score(graph: Graph, split: Split, images: int) -> float:
    """Return the accuracy on the first test images, in percent."""
    few = split.take(np.arange(min(images, len(split))))
    return 100 * accuracy(keras_io.predict(graph, few.inputs), few)


# -- accuracy --------------------------------------------------------------------------------------


def selected(state: State, chosen: Mapping[str, Candidate]) -> State:
    """Return the state with a given selection; layers without an entry are unchanged."""
    spaces = state.fact(DesignSpace).spaces
    picked = tuple(chosen.get(s.op.name, s.whole) for s in spaces)
    factors = {
        s.op.name: s.factors[c.method]
        for s, c in zip(spaces, picked, strict=True)
        if c.method is not None
    }
    return state.with_fact(Selection(picked, {}, factors))


def within(
    state: State, limit: float, plan: Callable[[float], Mapping[str, Candidate]]
) -> Mapping[str, Candidate]:
    """Return the largest plan of a family within a limit of MACs.

    The family has one parameter in 0..1, where 1 is the original.
    """
    outside = fixed(state)["macs"]
    spaces = state.fact(DesignSpace).spaces
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        found = plan(middle)
        macs = outside + sum(found.get(s.op.name, s.whole).macs for s in spaces)
        low, high = (middle, high) if macs <= limit else (low, middle)
    return plan(low)


def at_ranks(space: LayerSpace, method: str, wanted: tuple[float, ...]) -> Candidate:
    """Return the candidate nearest to the ranks; the unchanged layer where they save nothing."""
    own = [c for c in space.candidates if c.method == method]
    if not own or all(w > max(c.ranks[i] for c in own) for i, w in enumerate(wanted)):
        return space.whole
    return min(
        own,
        key=lambda c: sum(
            abs(np.log(max(w, 0.5) / r)) for w, r in zip(wanted, c.ranks, strict=True)
        ),
    )


def spectrum(space: LayerSpace) -> Any:
    """Return the squared singular values of the unfolding that spatial SVD truncates."""
    kernel = np.asarray(space.op.weights["kernel"], np.float64)  # (h, w, S, T)
    return (
        np.linalg.svd(
            kernel.transpose(0, 2, 1, 3).reshape(kernel.shape[0] * kernel.shape[2], -1),
            compute_uv=False,
        )
        ** 2
    )


def baselines(state: State) -> Iterator[tuple[str, Callable[[float], Mapping[str, Candidate]]]]:
    """Yield selections that do not use feature maps, over the same candidates.

    Each has a name, and a function from a parameter in 0..1 to a plan.
    """
    spaces = [
        s
        for s in state.fact(DesignSpace).spaces
        if any(c.method == "spatial_svd" for c in s.candidates)
    ]
    spectra = {s.op.name: spectrum(s) for s in spaces}

    def energy(knob: float) -> Mapping[str, Candidate]:
        found = {}
        for s in spaces:
            share = np.cumsum(spectra[s.op.name]) / spectra[s.op.name].sum()
            found[s.op.name] = at_ranks(
                s, "spatial_svd", (float(np.searchsorted(share, 1 - (1 - knob) ** 3) + 1),)
            )
        return found

    def uniform(knob: float) -> Mapping[str, Candidate]:
        return {
            s.op.name: at_ranks(s, "spatial_svd", (knob * len(spectra[s.op.name]),)) for s in spaces
        }

    weights: dict[int, float] = {}
    for s in spaces:
        kernel = np.asarray(s.op.weights["kernel"])
        for c in s.candidates:
            if c.method == "spatial_svd":
                weights[id(c)] = float(
                    np.linalg.norm(s.factors["spatial_svd"].kernel(c.ranks) - kernel)
                    / np.linalg.norm(kernel)
                )

    def weight_error(knob: float) -> Mapping[str, Candidate]:
        """Return the plan with the same relative error of every layer's kernel."""
        found = {}
        for s in spaces:
            own = [c for c in s.candidates if id(c) in weights and weights[id(c)] <= 1 - knob]
            found[s.op.name] = min(own, key=lambda c: c.macs) if own else s.whole
        return found

    tuckers = [s for s in spaces if any(c.method == "tucker2" for c in s.candidates)]
    ranks = {}
    for s in tuckers:
        kernel = np.asarray(s.op.weights["kernel"])
        ranks[s.op.name] = tuple(
            max(1, evbmf_rank(np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)))
            for axis in (2, 3)
        )

    def evbmf(knob: float) -> Mapping[str, Candidate]:
        return {
            s.op.name: at_ranks(s, "tucker2", tuple(4 * knob * r for r in ranks[s.op.name]))
            for s in tuckers
        }

    yield "spatial_svd by energy", energy
    yield "spatial_svd uniform", uniform
    yield "spatial_svd by weight error", weight_error
    yield "tucker2 by EVBMF", evbmf


def accuracies(
    name: str, kept: list[int], images: int, refitted: list[str], wanted: list[str] | None
) -> None:
    """Measure accuracy at shares of the MACs: mixed methods, single methods, and baselines.

    ``refitted``: the names of the selections that are reconstructed, too. ``wanted``: those of the
    selections to measure; None for all.
    """
    state = cifar(name)
    start = time.perf_counter()
    state = ExploreLayers(methods=METHODS)(state)
    print(
        f"{name}: explored in {time.perf_counter() - start:.1f} s, {state.fact(DesignSpace).size}"
        " candidates"
    )
    whole = totals(state.original)["macs"]
    table = Table(HERE / f"selection_accuracy_{name}.csv")
    original = score(state.original, state.data.test, images)
    others = list(baselines(state))
    for share in kept:
        plans: list[tuple[str, State | None]] = []
        budget = Budget(value=share / 100, relative=True)
        for label, methods in [
            ("hybrid", METHODS),
            ("hybrid without cp", tuple(m for m in METHODS if m != "cp")),
            *((m, (m, "svd")) for m in METHODS[:-1]),
        ]:
            try:
                plans.append((label, SelectRanks(budget, methods=methods)(state)))
            except BudgetError:
                plans.append((label, None))
        plans += [
            (label, selected(state, within(state, budget.limit(whole), family)))
            for label, family in others
        ]
        for label, chosen in plans:
            if table.knows(budget=share, selection=label) or label not in (wanted or [label]):
                continue
            row: dict[str, Any] = {
                "network": name,
                "budget": share,
                "selection": label,
                "original": f"{original:.2f}",
            }
            if chosen is None:
                row |= {
                    "macs_kept": "",
                    "predicted": "",
                    "factorized": "",
                    "recalibrated": "",
                    "refitted": "",
                }
            else:
                factorized = Factorize()(chosen)
                recalibrated = RecalibrateBatchNorm(samples=1_000)(factorized)
                rungs = [("factorized", factorized), ("recalibrated", recalibrated)]
                if label in refitted:  # the others are about selection alone
                    rungs.append(("refitted", Refit(samples=500, patches=12_288)(recalibrated)))
                row["macs_kept"] = f"{100 * totals(factorized.graph)['macs'] / whole:.1f}"
                row["predicted"] = f"{chosen.fact(Selection).divergence:.5f}"
                row["refitted"] = ""
                for rung, each in rungs:
                    row[rung] = f"{score(each.graph, state.data.test, images):.2f}"
            table.add(row)


# -- ranking ---------------------------------------------------------------------------------------


def random_plan(spaces: tuple[LayerSpace, ...], rng: np.random.Generator) -> dict[str, Candidate]:
    """Return a random method for each layer, at a random share of its MACs.

    The range of the shares is drawn for the plan.
    """
    low = rng.uniform(0.15, 0.6)
    high = rng.uniform(low, 0.95)
    plan = {}
    for space in spaces:
        method = rng.choice(sorted({c.method for c in space.candidates if c.method}))
        wanted = rng.uniform(low, high) * space.whole.macs
        plan[space.op.name] = min(
            (c for c in space.candidates if c.method == method),
            key=lambda c: (abs(c.macs - wanted), c.error),
        )
    return plan


def ranking(name: str, plans: int, images: int) -> None:
    """Correlate predicted scores with the measured accuracy of random plans.

    Spearman's rank correlation, for each measure, with and without sensitivity.
    """
    table = Table(HERE / f"selection_ranking_{name}.csv")
    if not all(table.knows(plan=number) for number in range(plans)):
        _rank(name, plans, images, table)
    _correlations(name, [row for row in table.rows if int(row["plan"]) < plans])


def correlations() -> None:
    """Print what ``ranking`` does, of rows that checkouts measured on all test images."""
    rows = Table(HERE / "selection_ranking_all_images.csv").rows
    for commit, name in dict.fromkeys((row["commit"], row["network"]) for row in rows):
        own = [row for row in rows if (row["commit"], row["network"]) == (commit, name)]
        _correlations(f"{name} at {commit}", own)


def _correlations(name: str, rows: Sequence[Mapping[str, str]]) -> None:
    for rung in ("recalibrated", "factorized"):
        print(
            f"Spearman's correlation with the accuracy, {rung}, over {len(rows)} random plans of"
            f" {name}:"
        )
        for key in rows[0]:
            if key.endswith((" weighted", " unweighted")) or key == "weight error":
                found = spearmanr(
                    [-float(row[key]) for row in rows], [float(row[rung]) for row in rows]
                ).statistic
                print(f"  {key:24} {found:.3f}")


def _rank(name: str, plans: int, images: int, table: Table) -> None:
    """Add the rows of the plans that the table does not hold."""
    state = cifar(name)
    designs = {
        measure: ExploreLayers(methods=METHODS, measure=measure)(state).fact(DesignSpace)
        for measure in MEASURES
    }
    spaces = designs["relative_l2"].spaces
    known = {
        m: {(c.layer, c.method, c.ranks): c for s in d.spaces for c in s.candidates}
        for m, d in designs.items()
    }
    kernels = {s.op.name: np.asarray(s.op.weights["kernel"]) for s in spaces}
    state = state.with_fact(designs["relative_l2"])
    rng = np.random.default_rng(0)
    for number in range(plans):
        plan = random_plan(spaces, rng)
        if table.knows(plan=number):
            continue
        chosen = selected(state, plan)
        factorized = Factorize()(chosen)
        repaired = RecalibrateBatchNorm(samples=1_000)(factorized)
        factors = chosen.fact(Selection).factors
        row: dict[str, Any] = {
            "plan": number,
            "macs": sum(c.macs for c in plan.values()),
            "factorized": score(factorized.graph, state.data.test, images),
            "recalibrated": score(repaired.graph, state.data.test, images),
        }
        for measure in MEASURES:
            own = [known[measure][c.layer, c.method, c.ranks] for c in plan.values()]
            row[f"{measure} weighted"] = sum(c.divergence for c in own)
            row[f"{measure} unweighted"] = sum(
                c.error**2 if measure == "relative_l2" else c.error for c in own
            )
        errors = [
            np.linalg.norm(factors[n].kernel(c.ranks) - kernels[n]) / np.linalg.norm(kernels[n])
            for n, c in plan.items()
        ]
        row["weight error"] = float(np.sum(np.square(errors)))
        table.add(
            {key: value if isinstance(value, int) else f"{value:.6g}" for key, value in row.items()}
        )


# -- speed -----------------------------------------------------------------------------------------


def speed(name: str, samples: int = 4) -> None:
    """Time the exploration and the allocation, and compare with the naive method.

    The naive method rebuilds the model and runs the calibration set for each candidate. It is timed
    on a sample of candidates.
    """
    state = cifar(name)
    start = time.perf_counter()
    explored = ExploreLayers(methods=METHODS)(state)
    seconds = time.perf_counter() - start
    design = explored.fact(DesignSpace)
    rng = np.random.default_rng(0)
    naive = []
    for _ in range(samples):
        space = design.spaces[rng.integers(len(design.spaces))]
        candidate = space.candidates[rng.integers(1, len(space.candidates))]
        start = time.perf_counter()
        graph = state.graph.copy()
        factors = ALL[candidate.method or ""].decompose(
            space.op, graph.input_tensors(space.op.name)[0]
        )
        graph.splice(space.op.name, factors.stages(candidate.ranks))
        keras_io.predict(graph, tuple(x[:1_024] for x in state.data.train.inputs))
        naive.append(time.perf_counter() - start)
    each = float(np.median(naive))
    limit = 0.5 * totals(state.original)["macs"] - fixed(explored)["macs"]
    start = time.perf_counter()
    chosen = allocate([s.candidates for s in design.spaces], {"macs": limit})
    allocation = time.perf_counter() - start
    row = {
        "network": name,
        "layers": len(design.spaces),
        "candidates": design.size,
        "undominated": design.undominated,
        "seconds": f"{seconds:.1f}",
        "seconds_each": f"{seconds / design.size:.5f}",
        "naive_each": f"{each:.2f}",
        "ratio": f"{each * design.size / seconds:.0f}",
        "allocation_seconds": f"{allocation:.2f}",
        "allocation_impact": f"{sum(c.divergence for c in chosen):.6f}",
    }
    Table(HERE / f"selection_speed_{name}.csv", overwrite=True).add(row)


def growth(name: str) -> None:
    """Measure time and peak memory of exploring a large model of keras.applications.

    Inputs are 32 synthetic images of 224×224.
    """
    import keras

    keras.utils.set_random_seed(0)
    graph = keras_io.from_keras(
        getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
    )
    images = np.random.default_rng(0).random((32, 224, 224, 3), np.float32)
    split = Split((images,))
    state = canonical(graph, Data("noise", split, split, split, synthetic=True))
    state = State(state.graph, state.original, state.data, progress=Progress(log=print))
    start = time.perf_counter()
    design = ExploreLayers(
        methods=METHODS, size=SampleSize(images=24, held_out=8), sensitivity_images=8
    )(state).fact(DesignSpace)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "network": name,
        "layers": len(design.spaces),
        "candidates": design.size,
        "seconds": f"{seconds:.0f}",
        "seconds_each": f"{seconds / design.size:.4f}",
        "peak_gib": f"{peak:.2f}",
    }
    Table(HERE / f"selection_growth_{name}.csv", overwrite=True).add(row)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "command", choices=("accuracy", "ranking", "correlations", "speed", "growth")
    )
    parser.add_argument("network", nargs="?", help="not for correlations")
    parser.add_argument("--kept", type=int, nargs="+", default=[75, 60, 50, 40, 30])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument(
        "--refitted",
        nargs="+",
        default=["hybrid", *METHODS],
        help="selections that are refitted in closed form too",
    )
    parser.add_argument(
        "--selections", nargs="+", help="selections to measure, such as hybrid; by default all"
    )
    given = parser.parse_args()
    if given.command == "correlations":
        correlations()
        return
    if given.network is None:
        parser.error(f"{given.command} needs a network")
    if given.command == "accuracy":
        accuracies(given.network, given.kept, given.images, given.refitted, given.selections)
    elif given.command == "ranking":
        ranking(given.network, given.plans, given.images)
    elif given.command == "speed":
        speed(given.network)
    else:
        growth(given.network)


if __name__ == "__main__":
    main()
