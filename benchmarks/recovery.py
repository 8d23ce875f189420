"""Accuracy after each step of recovery, compared with simpler methods at the same MACs.

    LRFC_DATA=... python benchmarks/recovery.py ladder resnet20_cifar10 [--kept 50 30]
        [--epochs 1 3 10] [--images 45000] [--test 10000]
    LRFC_DATA=... python benchmarks/recovery.py sources resnet20_cifar10 [--kept 60] [--epochs 3]
        [--images 45000] [--test 10000]
    LRFC_DATA=... python benchmarks/recovery.py ablation resnet20_cifar10 [--kept 28] [--epochs 10]
    LRFC_DATA=... python benchmarks/recovery.py depth resnet20_cifar10 [--kept 50 35 28]
        [--epochs 0 1 10] [--seeds 0 1 2]

The steps are bias correction, BatchNorm re-estimation, reconstruction in closed form, and the
fine-tune. ``ladder`` writes recovery_ladder_NET.csv to the folder of this file, a row for each
method and step. ``sources`` writes recovery_sources_NET.csv: the emitted file of a build with
labelled images, with the same images without labels, with 32 of them, and without any.
``ablation`` writes recovery_ablation_NET.csv: one plan, fine-tuned with one option changed at a
time. ``depth`` writes recovery_depth_NET.csv: the emitted file of builds with all training images,
by share of the MACs, epochs and seed. Rows are written one by one; those that a file already holds
are not run again.

The methods are lrfc's own (with distillation, and with the labels alone); a Tucker-2 network with
the same share of both ranks in every layer; and a network whose residual blocks have lost the inner
channels of least L1 norm (Li et al. 2017, arXiv 1608.08710). All have the same MACs and are
fine-tuned on the same images for as many epochs. The simpler methods are fine-tuned as lrfc is, but
from the labels alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from selection import at_ranks, cifar, score, selected, within
from table import Table

import lrfc
from lrfc.config.build import Budget
from lrfc.costs.totals import totals
from lrfc.engine.closest import closest
from lrfc.engine.package import Result
from lrfc.errors import NoGainError
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import divergence
from lrfc.state import Progress, State

HERE = Path(__file__).parent
RUNGS = ("before", "factorized", "recalibrated", "refitted", "finetuned", "artifact")
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
    table = Table(folder / f"recovery_ladder_{network}.csv")
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


# -- what the data are worth -----------------------------------------------------------------------


def sources(
    network: str, kept: list[int], epochs: list[int], images: int, test: int, folder: Path
) -> None:
    """Build with labelled images, with unlabelled ones, with 32, and without any."""
    shared = Path(os.environ["LRFC_DATA"])
    train, held_out = (np.load(shared / f"cifar10_{part}.npz") for part in ("train", "test"))
    x, y = train["x"][:images], train["y"][:images]
    exam = {"x": held_out["x"][:test], "y": held_out["y"][:test]}
    table = Table(folder / f"recovery_sources_{network}.csv")
    for share in kept:
        for name, data in {
            "labelled": {"x": x, "y": y},
            "unlabelled": {"x": x},
            "32 images": {"x": x[:32]},
            "none": None,
        }.items():
            key = {
                "network": network,
                "kept": share,
                "data": name,
                "images": 0 if data is None else len(data["x"]),
            }
            if table.knows(**key):
                continue
            table.add(
                key
                | built(
                    network, data, exam, max_macs=f"{share}%", max_drop="100pp", epochs=epochs[0]
                )
            )


def built(network: str, data: Any, exam: Any, **options: Any) -> dict[str, Any]:
    """The figures of a build: MACs, speed-up, and the accuracy by stage and of the file."""
    found: list[Result] = []
    # A file that is not faster on this machine has an accuracy, too.
    with tempfile.TemporaryDirectory() as place, suppress(NoGainError):
        lrfc.build(
            Path(os.environ["LRFC_DATA"], "models", f"{network}.keras"),
            data=data,
            test_data=exam,
            out=Path(place) / "out",
            progress=Progress(log=print),
            on_result=found.append,
            **options,
        )
    (result,) = found
    manifest = result.manifest
    rungs = {name: getattr(manifest.accuracy, name) for name in RUNGS}
    return {
        "macs_kept": f"{100 * manifest.after.macs / manifest.before.macs:.1f}",
        "speedup": f"{result.speedup.median:.2f}",
        **{name: "" if value is None else f"{100 * value:.2f}" for name, value in rungs.items()},
    }


# -- one option at a time --------------------------------------------------------------------------

CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "no mixtures": {"mixup": False},
    "no augmentation": {"augment": False},
    "no feature maps": {"features": 0.0},
    "labels only": PLAIN,
    "teacher only": {"distillation": 1.0},
    "temperature 4, distillation 0.9": {"temperature": 4.0, "distillation": 0.9},
    "BatchNorm trained": {"batchnorm": "trained"},
    "no decay": {"decay": 0.0},
}


def ablation(network: str, kept: list[int], epochs: list[int], folder: Path) -> None:
    """Fine-tune the same plan with one option changed at a time."""
    state = replace(cifar(network), progress=Progress(log=print))
    table = Table(folder / f"recovery_ablation_{network}.csv")
    explored: State | None = None
    for share in kept:
        made: State | None = None
        for (way, options), count in product(CHANGES.items(), epochs):
            key = {"network": network, "kept": share, "way": way, "epochs": count}
            if table.knows(**key):
                continue
            explored = explored or ExploreLayers(cached=True)(state)
            if made is None:
                select = closest(explored, SelectRanks(Budget(value=share / 100, relative=True)))
                made = Refit()(RecalibrateBatchNorm()(Factorize()(select(explored))))
            start = time.perf_counter()
            tuned = FineTune(epochs=count, patience=count, **options)(made)
            tuning, test = tuned.fact(Tuning), state.data.test
            outputs = [keras_io.predict(each.graph, test.inputs) for each in (made, tuned)]
            reference = keras_io.predict(state.original, test.inputs)
            table.add(
                key
                | {
                    "before": f"{score(made.graph, test, len(test)):.2f}",
                    "accuracy": f"{score(tuned.graph, test, len(test)):.2f}",
                    "divergence_before": f"{divergence(reference, outputs[0]):.4f}",
                    "divergence": f"{divergence(reference, outputs[1]):.4f}",
                    "validation": f"{tuning.scores[tuning.best]:.4f}",
                    "learning_rate": f"{tuning.learning_rate:.2g}",
                    "best_epoch": tuning.best,
                    "seconds": f"{time.perf_counter() - start:.0f}",
                }
            )


# -- few MACs, many epochs -------------------------------------------------------------------------


def depth(network: str, kept: list[int], epochs: list[int], seeds: list[int], folder: Path) -> None:
    """Build at every share of the MACs, with every number of epochs."""
    shared = Path(os.environ["LRFC_DATA"])
    data, exam = (str(shared / f"cifar10_{part}.npz") for part in ("train", "test"))
    table = Table(folder / f"recovery_depth_{network}.csv")
    for share, count, seed in product(kept, epochs, seeds):
        key = {"network": network, "kept": share, "epochs": count, "seed": seed}
        if table.knows(**key):
            continue
        start = time.perf_counter()
        row = built(
            network, data, exam, max_macs=f"{share}%", max_drop="100pp", epochs=count, seed=seed
        )
        table.add(key | row | {"seconds": f"{time.perf_counter() - start:.0f}"})


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("ladder", "sources", "ablation", "depth"))
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[50, 30])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    what = given.network, given.kept, given.epochs
    if given.command == "depth":
        depth(*what, given.seeds, given.out)
    elif given.command == "ablation":
        ablation(*what, given.out)
    else:
        run = ladder if given.command == "ladder" else sources
        run(*what, given.images, given.test, given.out)


if __name__ == "__main__":
    main()
