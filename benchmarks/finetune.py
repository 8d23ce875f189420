"""Accuracy of the emitted file after the fine-tune: by epochs, options, and data.

    LRFC_DATA=... python benchmarks/finetune.py depth resnet20_cifar10 [--kept 50 35 28]
        [--epochs 0 1 10] [--seeds 0 1 2]
    LRFC_DATA=... python benchmarks/finetune.py contract resnet20_cifar10 [--epochs 0 10]
        [--seeds 0 1 2]
    LRFC_DATA=... python benchmarks/finetune.py ablation resnet20_cifar10 [--kept 28] [--epochs 10]
    LRFC_DATA=... python benchmarks/finetune.py sources resnet20_cifar10 [--kept 60] [--epochs 3]
        [--images 45000] [--test 10000]

``depth``: builds with all training images, by share of the MACs, epochs and seed. ``contract``:
builds for the least latency on this machine within 1pp, with all training images, by epochs and
seed. ``ablation``: one plan, fine-tuned with one option changed at a time. ``sources``: a build
with labelled images, with the same images without labels, with 32 of them, and without any. Each
writes finetune_COMMAND_NET.csv to the folder of this file, row by row; rows that a file already
holds are not run again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from contracts import scaled
from selection import cifar, score
from table import Table

import lrfc
from lrfc.config.build import Budget
from lrfc.engine.closest import closest
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, NoGainError
from lrfc.ir.keras import io as keras_io
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.select_ranks import SelectRanks
from lrfc.search.sensitivity import divergence
from lrfc.state import Progress, State

HERE = Path(__file__).parent
RUNGS = ("before", "factorized", "recalibrated", "refitted", "finetuned", "artifact")
#: Networks that never saw the validation images of cifar10_split.npz.
HELD_OUT = frozenset({"vgg16_cifar10", "mobilenetv2_cifar10", "shufflenetv2_cifar10"})
#: The network that reads images of another scale.
SCALED = "mini_mobilenetv2_cifar10"
LABELS: dict[str, Any] = {"distillation": 0.0, "features": 0.0}


# -- what the data are worth -----------------------------------------------------------------------


def sources(
    network: str, kept: list[int], epochs: list[int], images: int, test: int, folder: Path
) -> None:
    """Build with labelled images, with unlabelled ones, with 32, and without any."""
    shared = Path(os.environ["LRFC_DATA"])
    train, held_out = (np.load(shared / f"cifar10_{part}.npz") for part in ("train", "test"))
    x, y = train["x"][:images], train["y"][:images]
    exam = {"x": held_out["x"][:test], "y": held_out["y"][:test]}
    table = Table(folder / f"finetune_sources_{network}.csv")
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
    # A file that is not faster here has an accuracy, too, and so has one that fails its contract.
    with tempfile.TemporaryDirectory() as place, suppress(BudgetError, NoGainError):
        lrfc.build(
            next(Path(os.environ["LRFC_DATA"], "models").glob(f"{network}.*")),
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
    "labels only": LABELS,
    "teacher only": {"distillation": 1.0},
    "temperature 4, distillation 0.9": {"temperature": 4.0, "distillation": 0.9},
    "BatchNorm trained": {"batchnorm": "trained"},
    "no decay": {"decay": 0.0},
}


def ablation(network: str, kept: list[int], epochs: list[int], folder: Path) -> None:
    """Fine-tune the same plan with one option changed at a time."""
    state = replace(cifar(network), progress=Progress(log=print))
    table = Table(folder / f"finetune_ablation_{network}.csv")
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
    table = Table(folder / f"finetune_depth_{network}.csv")
    for share, count, seed in product(kept, epochs, seeds):
        key = {"network": network, "kept": share, "epochs": count, "seed": seed}
        _row(table, key, max_macs=f"{share}%", max_drop="100pp", epochs=count, seed=seed)


def contract(network: str, epochs: list[int], seeds: list[int], folder: Path) -> None:
    """Build for the least latency within 1pp, with every number of epochs."""
    table = Table(folder / f"finetune_contract_{network}.csv")
    for count, seed in product(epochs, seeds):
        key = {"network": network, "epochs": count, "seed": seed}
        _row(table, key, max_drop="1pp", epochs=count, seed=seed)


def _row(table: Table, key: dict[str, Any], **options: Any) -> None:
    """The row of a build with all training images, unless the table has it."""
    if table.knows(**key):
        return
    network, start = key["network"], time.perf_counter()
    row = built(network, *images(network), **options)
    table.add(key | row | {"seconds": f"{time.perf_counter() - start:.0f}"})


def images(network: str) -> tuple[Any, Any]:
    """All training images for a network, and the test set."""
    part = "split" if network in HELD_OUT else "train"
    files = [Path(os.environ["LRFC_DATA"], f"cifar10_{name}.npz") for name in (part, "test")]
    if network != SCALED:
        return str(files[0]), str(files[1])
    train, exam = ({**np.load(file)} for file in files)
    return train | {"x": scaled(train["x"])}, exam | {"x": scaled(exam["x"])}


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("depth", "contract", "ablation", "sources"))
    parser.add_argument("network")
    parser.add_argument("--kept", type=int, nargs="+", default=[50, 35, 28])
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 10])
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    what = given.network, given.kept, given.epochs
    if given.command == "depth":
        depth(*what, given.seeds, given.out)
    elif given.command == "contract":
        contract(given.network, given.epochs, given.seeds, given.out)
    elif given.command == "ablation":
        ablation(*what, given.out)
    else:
        sources(*what, given.images, given.test, given.out)


if __name__ == "__main__":
    main()
