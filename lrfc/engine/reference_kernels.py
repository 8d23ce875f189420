"""The score of an integer file by LiteRT's reference kernels, against its optimised kernels.

All other scores of a build are read from the optimised kernels.
"""

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

#: MACs that the reference kernels may compute: half a minute of one core. The change of the score
#: is small and paired, so it needs few samples.
MACS = 1e11
#: Fewest samples that are run, whatever their cost.
FEWEST = 16


@dataclass(frozen=True)
class Kernels:
    """Scores of a file by the reference kernels and by the optimised ones, on the same samples.

    ``samples``: their number. ``change``: the drop of the former against the latter.

    XNNPACK rounds differently from the reference kernels. Arm tests Vela against these bit by bit
    (pypi.org/project/ethos-u-vela), and CMSIS-NN claims the same for itself. TensorFlow Lite
    Micro's own kernels gave other outputs for 0 to 8 of 120 samples of five files, and the same
    label for each; see ``lrfc.targets.tflite.target.TFLite.reference``.
    """

    reference: float
    optimised: float
    samples: int
    change: Contract


def kernels(
    file: Artifact, metric: Metric, split: Split, optimised: Batch, macs: int
) -> Kernels | None:
    """Score a file by both kernels; None for a float file or a format with one set of kernels.

    ``optimised``: outputs of the optimised kernels on the split. ``macs``: MACs of one sample.
    ModelError when the reference kernels do not run the file.
    """
    if not PRECISIONS[file.precision].integer:
        return None
    reference = target(file.format, file.precision).reference(file)
    if reference is None:
        return None
    count = min(len(split), max(FEWEST, int(MACS // max(1, macs))))
    # Evenly spaced, because the samples may be sorted by class.
    rows = np.linspace(0, len(split) - 1, count).astype(np.intp)
    part, expected = split.take(rows), tuple(y[rows] for y in optimised)
    outputs = reference(part.inputs)
    return Kernels(
        metric.score(outputs, part),
        metric.score(expected, part),
        count,
        held(metric, part, expected, outputs),
    )
