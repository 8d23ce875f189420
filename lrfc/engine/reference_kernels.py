"""What an integer file is worth by LiteRT's reference kernels, beside the optimised ones that everything else is read from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrfc.config.precision import PRECISIONS
from lrfc.data.dataset import Split
from lrfc.ir.batch import Batch
from lrfc.metrics.contract import Contract, held
from lrfc.metrics.metric import Metric
from lrfc.protocols import Artifact
from lrfc.targets.catalog import target

#: MACs that the reference kernels are given: half a minute of one core. The change of the score is
#: small and paired, so it needs few samples.
MACS = 1e11
#: Samples that are looked at, whatever they take.
FEWEST = 16


@dataclass(frozen=True)
class Kernels:
    """The score of a file by the reference kernels and by the optimised ones, on the same ``samples``; ``change`` is what the former lose against the latter.

    XNNPACK rounds otherwise than the reference kernels do. Those are what Arm tests Vela against
    bit by bit (pypi.org/project/ethos-u-vela), and CMSIS-NN claims the same for itself: a
    microcontroller or an Ethos-U computes what they compute.
    """

    reference: float
    optimised: float
    samples: int
    change: Contract


def kernels(
    file: Artifact, metric: Metric, split: Split, optimised: Batch, macs: int
) -> Kernels | None:
    """The file by both kernels; None for what has no such: floats, and most formats.

    ``optimised``: its outputs on the split. ``macs``: what one sample takes.
    ModelError when the reference kernels do not run the file.
    """
    if not PRECISIONS[file.precision].integer:
        return None
    reference = target(file.format, file.precision).reference(file)
    if reference is None:
        return None
    count = min(len(split), max(FEWEST, int(MACS // max(1, macs))))
    rows = np.linspace(0, len(split) - 1, count).astype(
        np.intp
    )  # evenly: the samples may lie class by class
    some, seen = split.take(rows), tuple(y[rows] for y in optimised)
    found = reference(some.inputs)
    return Kernels(
        metric.score(found, some), metric.score(seen, some), count, held(metric, some, seen, found)
    )
