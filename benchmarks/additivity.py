"""Additivity of the errors of compressed layers, and plans from sensitivities measured in a plan.

    LRFC_DATA=... python benchmarks/additivity.py resnet20_cifar10 [--kept 50 40 30] [--images 2000]

Writes additivity_NETWORK.csv to the folder of this file. Exploration measures the sensitivity of
the output to each layer with that layer alone perturbed, and a plan's predicted divergence is the
sum over its layers. Here, the resulting plan is run, and the effect of each of its choices is
measured within it. The MILP is solved again with the impacts scaled accordingly. Both plans are
then run: output divergence after BatchNorm re-estimation and reconstruction, and accuracy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from selection import cifar, score
from table import Table

from lrfc.config.build import Budget
from lrfc.engine.judge import Judge
from lrfc.factorization.base import Factors, Ranks
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.search.candidates import LayerSpace
from lrfc.search.epilogue import epilogue_of
from lrfc.search.facts import DesignSpace
from lrfc.search.segments import Segments
from lrfc.search.sensitivity import divergence, telling
from lrfc.state import Progress, State

#: Number of inputs for the divergences, and of the inputs that they are drawn from, as a multiple.
IMAGES, POOL = 128, 8
#: Largest factor, or its inverse, between the measured and the predicted impact of a layer.
BOUND = 4.0


def remeasured(state: State) -> DesignSpace:
    """Scale the impacts of every compressed layer to the effect of its choice within the plan.

    Errors of layers do not simply add up: one layer may hide or amplify another's. The network runs
    with all choices applied (the dense equivalent kernel of each layer, BatchNorm re-estimated),
    and then with one layer at a time restored. The decrease of the divergence is the effect of that
    layer's choice. The scales together leave the plan's predicted divergence unchanged, so that
    bounds on it hold as before.
    """
    original, chosen = (
        state.original,
        {c.layer: c for c in state.fact(Selection).chosen if c.method is not None},
    )
    factors = state.fact(Selection).factors
    dense = original.with_weights(
        {name: _dense(original.op(name), factors[name], c.ranks) for name, c in chosen.items()}
    )
    silent = replace(state, graph=dense, progress=Progress())
    compressed = RecalibrateBatchNorm(samples=500)(silent).graph
    inputs, weights = _inputs(original, state.data.train.inputs)
    reference = Segments(original, 1).hold(inputs)
    segments = Segments(compressed)
    whole = divergence(reference, segments.hold(inputs), weights)
    fall = {}
    for name in chosen:
        changes = _restored(original, compressed, name)
        _assign(segments, original, changes)
        fall[name] = whole - divergence(reference, segments.outputs(changes), weights)
        _assign(segments, compressed, changes)
    return _scaled(
        state.fact(DesignSpace), {name: (fall[name], c.divergence) for name, c in chosen.items()}
    )


def _inputs(graph: Graph, inputs: Batch) -> tuple[Batch, Any]:
    pool = tuple(np.asarray(x[: POOL * IMAGES]) for x in inputs)
    chosen, weights = telling(Segments(graph, 1).predict(pool, IMAGES), IMAGES)
    return tuple(x[chosen] for x in pool), weights


def _dense(op: Op, factors: Factors, ranks: Ranks) -> Mapping[str, Array]:
    """Return the layer's weights with the dense kernel, and the bias, of the factors."""
    weights = {**op.weights, "kernel": factors.kernel(ranks).astype(op.weights["kernel"].dtype)}
    if "bias" in weights:
        bias = next(
            stage.weights["bias"]
            for stage in reversed(factors.stages(ranks))
            if "bias" in stage.weights
        )
        weights["bias"] = np.asarray(bias).reshape(op.weights["bias"].shape)
    return weights


def _restored(original: Graph, compressed: Graph, name: str) -> Sequence[str]:
    """Return the layers that are restored with one: itself, and the BatchNorm behind it."""
    norm = epilogue_of(original, name).batchnorm
    names = [name] if norm is None else [name, norm.name]
    return [original.op(each).shared or each for each in names if each in compressed]


def _assign(segments: Segments, graph: Graph, layers: Sequence[str]) -> None:
    """Assign the weights of a graph to the running Keras layers."""
    ops = {op.shared or op.name: op for op in graph.layers()}
    for name in layers:
        for layer in segments.layers(name):
            layer.set_weights(list(ops[name].weights.values()))


def _scaled(design: DesignSpace, seen: Mapping[str, tuple[float, float]]) -> DesignSpace:
    """Return the design space with scaled impacts.

    ``seen``: the measured and the predicted divergence of each layer's choice, by layer.
    """
    predicted = sum(p for _, p in seen.values())
    measured = sum(max(m, 0.0) for m, _ in seen.values())
    if predicted <= 0 or measured <= 0:
        return design
    ratios = {
        name: float(np.clip(m / measured / max(p / predicted, 1e-12), 1 / BOUND, BOUND))
        for name, (m, p) in seen.items()
    }
    level = sum(ratios[name] * p for name, (_, p) in seen.items()) / predicted
    return replace(
        design,
        spaces=tuple(
            _times(space, ratios.get(space.op.name, level) / level) for space in design.spaces
        ),
    )


def _times(space: LayerSpace, scale: float) -> LayerSpace:
    return replace(
        space,
        candidates=tuple(replace(c, divergence=c.divergence * scale) for c in space.candidates),
    )


def compare(name: str, kept: Sequence[int], images: int, rounds: int, folder: Path) -> None:
    """Compare the explored plan with those from remeasured impacts, at each share of the MACs."""
    explored = ExploreLayers(cached=True)(cifar(name))
    judge = Judge(explored)
    table = Table(folder / f"additivity_{name}.csv", overwrite=True)
    for share in kept:
        select = SelectRanks(Budget(value=share / 100, relative=True))
        plan = select(explored)
        for turn in range(rounds + 1):
            start = time.perf_counter()
            if turn:
                plan = select(explored.with_fact(remeasured(plan)))
            seconds = time.perf_counter() - start
            steps = [Factorize()(plan)]
            steps.append(RecalibrateBatchNorm(samples=1_000)(steps[-1]))
            steps.append(Refit(samples=500, patches=12_288)(steps[-1]))
            scores = [f"{score(each.graph, explored.data.test, images):.2f}" for each in steps]
            table.add(
                {
                    "network": name,
                    "kept": share,
                    "remeasured": turn,
                    "predicted": f"{plan.fact(Selection).divergence:.4f}",
                    "divergence": f"{judge(plan).divergence:.4f}",
                }
                | dict(zip(("factorized", "recalibrated", "refitted"), scores, strict=True))
                | {"seconds": f"{seconds:.1f}"}
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[50, 40, 30])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    compare(given.network, given.kept, given.images, given.rounds, given.out)


if __name__ == "__main__":
    main()
