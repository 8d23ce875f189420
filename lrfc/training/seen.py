"""Whether the original was trained on the validation samples, whose score then says little."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lrfc.data.dataset import Data
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.training import losses
from lrfc.training.augment import Augmentation, applied

#: Samples whose losses are compared.
SAMPLES = 2_000
#: The least ratio of the losses of unseen and of seen samples, of augmented and of plain samples,
#: and the least difference in standard errors. (CIFAR-10 networks: 40 and 4.6 on samples that they
#: were trained on, 1.0 and 1.1 on others.)
RATIO, AUGMENTED, ERRORS = 1.5, 2.0, 3.0


def seen(
    original: Graph, run: Callable[[Batch], Batch], data: Data, augmentation: Augmentation
) -> str | None:
    """The evidence that the original was trained on the validation samples; None without any.

    ``run``: the original. Its loss on the validation samples is compared with that on the test
    samples; where there are none, on the same validation samples with the augmentation. A network
    tells samples that it has learnt by heart from all others: membership inference by loss (Yeom et
    al. 2018, arXiv 1709.01604). Labels are needed, and without test samples an augmentation.
    """
    validation = data.validation.head(SAMPLES)
    if data.synthetic or validation.targets is None:
        return None
    outputs = run(validation.inputs)
    kinds = losses.describe(original, outputs, validation.targets)

    def loss(outputs: Batch, targets: Batch) -> NDArray[np.float64]:
        return np.asarray(losses.by_sample(kinds, outputs, targets), np.float64)

    known = loss(outputs, validation.targets)
    if not data.test_is_validation:
        test = data.test.head(SAMPLES)
        if test.targets is None:
            return None
        other, least, place = loss(run(test.inputs), test.targets), RATIO, "on the test samples"
    elif augmentation:
        moved = run(applied(augmentation, validation.inputs, 0))
        other, least, place = loss(moved, validation.targets), AUGMENTED, "when they are augmented"
    else:
        return None
    if not _larger(other, known, least):
        return None
    return f"its loss on them is {known.mean():.2g}, {place} {other.mean():.2g}"


def _larger(other: NDArray[np.float64], known: NDArray[np.float64], least: float) -> bool:
    """Whether the mean of ``other`` is larger by that factor, and not by chance."""
    error = np.hypot(*(np.std(values) / np.sqrt(len(values)) for values in (other, known)))
    gap = np.mean(other) - np.mean(known)
    return bool(np.mean(other) > least * np.mean(known) and gap > ERRORS * error)
