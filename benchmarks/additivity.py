"""Do the effects of compressed layers add up, and is a plan better when they are measured anew in the midst of it?

    LRFC_DATA=... python benchmarks/additivity.py resnet20_cifar10 [--kept 50 40 30] [--images 2000]

Writes additivity_NETWORK.csv beside this file. Exploration measures what a layer's error does to
the output with that layer alone perturbed, and a plan's predicted divergence is the sum. Here the
plan that follows is run, the effect of each of its choices is measured inside it, the allocation is
solved again with the impacts so scaled, and both plans are judged by running them: output
divergence after BatchNorm re-estimation and refit, and accuracy.
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
from lrfc.engine.evaluate import Judge
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

#: Inputs that the divergences are measured on, and out of how many times as many they are drawn.
IMAGES, POOL = 128, 8
#: A layer's impact is taken for at most so many times more, or less, than it was predicted to be.
BOUND = 4.0


def remeasured(state: State) -> DesignSpace:
    """The design space with the impacts of every layer that is compressed scaled to what its choice does in the midst of all others.

    Errors of layers do not simply add up: one layer may hide or amplify another's. The network runs
    with all choices made (each layer's dense equivalent kernel, BatchNorm re-estimated), then with
    one layer after the other put back as it was; the fall of the divergence is what that layer's
    choice does here. All scales together leave the plan's predicted divergence as it is, so that
    bounds on it hold as they did.
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
    """The layer's weights with the kernel, and the bias, that the factors amount to."""
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
    """The layers that are as they were when one layer is: itself, and the BatchNorm that follows its output."""
    norm = epilogue_of(original, name).batchnorm
    names = [name] if norm is None else [name, norm.name]
    return [original.op(each).shared or each for each in names if each in compressed]


def _assign(segments: Segments, graph: Graph, layers: Sequence[str]) -> None:
    """Give the running Keras layers the weights that they have in a graph."""
    ops = {op.shared or op.name: op for op in graph.layers()}
    for name in layers:
        for layer in segments.layers(name):
            layer.set_weights(list(ops[name].weights.values()))


def _scaled(design: DesignSpace, seen: Mapping[str, tuple[float, float]]) -> DesignSpace:
    """``seen``: by layer, the measured and the predicted divergence of its choice."""
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
    """The plan as explored, and those from impacts measured anew, at each share of the MACs."""
    explored = ExploreLayers(cached=True)(cifar(name))
    judge = Judge(explored)
    table = Table(folder / f"additivity_{name}.csv", anew=True)
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
    """Run it."""
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
