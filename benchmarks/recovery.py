"""Accuracy after each step of recovery, compared with simpler methods at the same MACs.

    LRFC_DATA=... python benchmarks/recovery.py resnet20_cifar10 [--kept 50 30] [--epochs 1 3 10]
        [--images 45000] [--test 10000]

The steps are bias correction, BatchNorm re-estimation, reconstruction in closed form, and the
fine-tune. Writes recovery_NET.csv to the folder of this file, a row for each method and step, as
soon as it is done; rows that the file already holds are not run again.

The methods are lrfc's own (with distillation, and with the labels alone); a Tucker-2 network with
the same share of both ranks in every layer; and a network whose residual blocks have lost the inner
channels of least L1 norm (Li et al. 2017, arXiv 1608.08710). All have the same MACs and are
fine-tuned on the same images for as many epochs. The simpler methods are fine-tuned as lrfc is, but
from the labels alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from selection import at_ranks, cifar, score, selected, within
from table import Table

from lrfc.config.build import Budget
from lrfc.costs.totals import totals
from lrfc.engine.closest import closest
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State

HERE = Path(__file__).parent
PLAIN: dict[str, Any] = {"distillation": 0.0, "features": 0.0}
#: A pruned network's statistics have no counterpart in the original to be moved by, so its
#: BatchNorm follows the batches.
PRUNED = {**PLAIN, "batchnorm": "trained"}
#: The steps without gradients of each method. The Tucker-2 network has the first one, too, since
#: fine-tuning from broken statistics would prove nothing.
REPAIRS = {
    "lrfc": (("recalibrated", RecalibrateBatchNorm()), ("refitted", Refit())),
    "uniform tucker2": (("recalibrated", RecalibrateBatchNorm()),),
    "l1 pruned": (),
}


# -- the simpler ways ------------------------------------------------------------------------------


def uniform_tucker(state: State, limit: float) -> State:
    """Return a Tucker-2 network with the same share of both ranks in every layer."""
    spaces = [
        s
        for s in state.fact(DesignSpace).spaces
        if any(c.method == "tucker2" for c in s.candidates)
    ]

    def plan(knob: float) -> dict[str, Any]:
        widths = {s.op.name: s.op.weights["kernel"].shape[2:] for s in spaces}
        return {
            s.op.name: at_ranks(s, "tucker2", tuple(knob * width for width in widths[s.op.name]))
            for s in spaces
        }

    return Factorize()(selected(state, within(state, limit, plan)))


def pruned(state: State, limit: float) -> State:
    """Cut the inner channels of all residual blocks to the same share, within a limit of MACs.

    The channels of least L1 norm are removed first.
    """
    for share in np.linspace(1, 0.02, 200):
        graph = prune(state.graph, float(share))
        if totals(graph)["macs"] <= limit:
            return state.with_graph(graph)
    return state.with_graph(graph)


def prune(graph: Graph, share: float) -> Graph:
    """Cut a share of the inner channels of each pair conv → BatchNorm → activation → conv."""
    twin = graph.copy()
    for first, norm, second in inner(graph):
        first, second = (
            twin.op(first.name),
            twin.op(second.name),
        )  # an earlier pair may have cut them
        norms = np.abs(first.weights["kernel"]).sum(axis=(0, 1, 2))
        kept = np.sort(np.argsort(-norms, kind="stable")[: max(1, round(share * len(norms)))])
        twin.replace(
            replace(
                first.with_attrs(filters=len(kept)),
                weights={name: w[..., kept] for name, w in first.weights.items()},
            )
        )
        if norm is not None:
            twin.replace(replace(norm, weights={name: w[kept] for name, w in norm.weights.items()}))
        twin.replace(
            replace(
                second, weights={**second.weights, "kernel": second.weights["kernel"][:, :, kept]}
            )
        )
    twin.check()
    return twin


def inner(graph: Graph) -> Iterator[tuple[Op, Op | None, Op]]:
    """Yield the pairs of convolutions with the BatchNorm between them.

    The second convolution is the only reader of the first.
    """
    for first in graph.layers():
        if first.kind != "Conv2D":
            continue
        norm, op = None, graph.only_consumer(first.name)
        while op is not None and op.kind in (
            "BatchNormalization",
            "ReLU",
            "Activation",
            "ZeroPadding2D",
        ):
            norm = op if op.kind == "BatchNormalization" else norm
            op = graph.only_consumer(op.name)
        if op is not None and op.kind == "Conv2D" and int(op["groups"]) == 1:
            yield first, norm, op


# -- the ladder ------------------------------------------------------------------------------------


def ladder(
    network: str, kept: list[int], epochs: list[int], images: int, test: int, folder: Path
) -> None:
    """Run every method at every share of the MACs."""
    state = cifar(network)
    train = state.data.train.take(np.arange(min(images, len(state.data.train))))
    state = replace(state, data=replace(state.data, train=train), progress=Progress(log=print))
    table = Table(folder / f"recovery_{network}.csv")
    explored = ExploreLayers(cached=True)(state)
    whole = totals(state.original)["macs"]
    original = score(state.original, state.data.test, test)
    for share in kept:
        budget = Budget(value=share / 100, relative=True)
        limit = budget.limit(whole)
        ways: list[tuple[str, Callable[[], State], dict[str, dict[str, Any]]]] = [
            (
                "lrfc",
                lambda budget=budget: Factorize()(closest(explored, SelectRanks(budget))(explored)),
                {"fine-tuned": {}, "fine-tuned, labels only": PLAIN},
            ),
            (
                "uniform tucker2",
                lambda limit=limit: uniform_tucker(explored, limit),
                {"fine-tuned, labels only": PLAIN},
            ),
            (
                "l1 pruned",
                lambda limit=limit: pruned(state, limit),
                {"fine-tuned, labels only": PRUNED},
            ),
        ]
        for way, make, recipes in ways:
            key = {"network": network, "kept": share, "way": way, "images": len(train)}
            made = climb(table, key, make(), original=original, whole=whole, test=test)
            for step, options in recipes.items():
                for count in epochs:
                    if table.knows(**key, step=step, epochs=count):
                        continue
                    start = time.perf_counter()
                    tuned = FineTune(epochs=count, **options)(made)
                    tuning = tuned.fact(Tuning)
                    table.add(
                        {
                            **key,
                            "step": step,
                            "epochs": count,
                            "macs_kept": f"{100 * totals(tuned.graph)['macs'] / whole:.1f}",
                            "original": f"{original:.2f}",
                            "accuracy": f"{score(tuned.graph, state.data.test, test):.2f}",
                            "learning_rate": f"{tuning.learning_rate:.2g}",
                            "best_epoch": tuning.best,
                            "seconds": f"{time.perf_counter() - start:.0f}",
                        }
                    )


def climb(
    table: Table, key: dict[str, Any], made: State, *, original: float, whole: int, test: int
) -> State:
    """Run the steps without gradients."""
    steps: list[tuple[str, Callable[[State], State]]] = [
        ("compressed", lambda state: state),
        *REPAIRS[key["way"]],
    ]
    corrected = RecalibrateBatchNorm(variances=False)
    for step, run in steps:
        if step == "recalibrated" and not table.knows(**key, step="means corrected"):
            accuracy = (  # a step of its own: re-estimation corrects the means too
                f"{score(corrected(made).graph, made.data.test, test):.2f}"
            )
            table.add(
                {
                    **key,
                    "step": "means corrected",
                    "accuracy": accuracy,
                    "original": f"{original:.2f}",
                }
            )
        made = run(made)
        if not table.knows(**key, step=step):
            kept = f"{100 * totals(made.graph)['macs'] / whole:.1f}"
            accuracy = f"{score(made.graph, made.data.test, test):.2f}"
            table.add(
                {
                    **key,
                    "step": step,
                    "macs_kept": kept,
                    "accuracy": accuracy,
                    "original": f"{original:.2f}",
                }
            )
    return made


def main() -> None:
    """Climb the ladder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[50, 30])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    ladder(given.network, given.kept, given.epochs, given.images, given.test, given.out)


if __name__ == "__main__":
    main()
