"""The accuracy contract: the drop of the score against the original, with its interval."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # scipy.stats would take half a second to import

from lrfc.config.build import Drop
from lrfc.data.dataset import Split
from lrfc.ir.batch import Batch
from lrfc.metrics.metric import Metric
from lrfc.metrics.outcome import short
from lrfc.text import confidence as level
from lrfc.text import minus, points

#: Confidence of the reported interval where the user demands none.
REPORTED = 0.95
#: Resamples of the bootstrap.
RESAMPLES = 2_000
#: Resamples of a bootstrap that computes the score of each.
FEW_RESAMPLES = 200


@dataclass(frozen=True)
class Contract:
    """A drop of the score, its two-sided interval, and the drop that is allowed.

    ``low`` and ``high``: the interval at ``confidence``. Where the user demands a confidence, its
    upper end has to be within ``allowed``: the one-sided bound at (1 + confidence) / 2. ``unit``:
    of the figures times 100, see ``Metric.drop_unit``.
    """

    allowed: Drop | None
    drop: float
    low: float
    high: float
    confidence: float
    samples: int
    unit: str = "pp"

    @property
    def met(self) -> bool:
        """Whether the contract holds; without a limit it does."""
        if self.allowed is None:
            return True
        return (
            self.drop if self.allowed.confidence is None else self.high
        ) <= self.allowed.value + 1e-9

    @property
    def margin(self) -> float | None:
        """The allowed drop less the drop; None without a limit.

        Where a confidence is demanded, the upper end of the interval counts as the drop.
        """
        if self.allowed is None:
            return None
        return self.allowed.value - (self.drop if self.allowed.confidence is None else self.high)

    def then(self, other: Contract) -> Contract:
        """The sum of this drop and of another, independent one.

        The squares of the halves of their intervals add up.
        """
        drop = self.drop + other.drop
        below, above = (
            np.hypot(getattr(self, end) - self.drop, getattr(other, end) - other.drop)
            for end in ("low", "high")
        )
        return replace(self, drop=drop, low=float(drop - below), high=float(drop + above))

    def __str__(self) -> str:
        sure = (
            f"{level(self.confidence)} interval {minus(f'{100 * self.low:.2f}')} to"
            f" {points(self.high, short(self.unit))}"
        )
        return f"{points(self.drop, self.unit)} ({sure}, {self.samples:,} samples)"


def held(
    metric: Metric,
    split: Split,
    before: Batch,
    after: Batch,
    allowed: Drop | None = None,
    *,
    looks: int = 1,
    confidence: float = REPORTED,
) -> Contract:
    """Test the contract on the outputs of the original and of the compressed model for a split.

    A score that is no mean over samples (AUC, IoU, a user's function) is computed on every resample
    of a bootstrap. ``looks`` and ``confidence``: see ``contract``.
    """
    original, compressed = metric.per_sample(before, split), metric.per_sample(after, split)
    if original is None or compressed is None:
        return replace(
            _resampled(metric, split, before, after, allowed, looks, confidence),
            unit=metric.drop_unit,
        )
    if metric.percent and np.isin(original, (0, 1)).all() and np.isin(compressed, (0, 1)).all():
        return contract(original.astype(bool), compressed.astype(bool), allowed, looks, confidence)
    # The gain for one more unit of the score: positive for an accuracy, negative for an error.
    scale = -metric.drop(metric.score(before, split), metric.score(before, split) + 1.0)
    return replace(
        contract(scale * original, scale * compressed, allowed, looks, confidence),
        unit=metric.drop_unit,
    )


def contract(
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    allowed: Drop | None,
    looks: int = 1,
    confidence: float = REPORTED,
) -> Contract:
    """Test the contract on the scores (N,) of samples by both models; higher is better.

    Right or wrong (bool) is compared by the paired interval of Agresti and Min (2005), any other
    score by the percentile bootstrap of the mean difference. ``looks``: number of results tested on
    the same samples; each makes the confidence stricter (Bonferroni). ``confidence``: of the
    interval where ``allowed`` demands none.
    """
    demanded = confidence if allowed is None or allowed.confidence is None else allowed.confidence
    strict = 1 - (1 - demanded) / looks
    if before.dtype == bool:
        drop, low, high = _proportions(before.astype(bool), after.astype(bool), strict)
    else:
        drop, low, high = _means(before.astype(float) - after.astype(float), strict)
    return Contract(allowed, drop, low, high, demanded, len(before))


def _resampled(
    metric: Metric,
    split: Split,
    before: Batch,
    after: Batch,
    allowed: Drop | None,
    looks: int,
    confidence: float,
) -> Contract:
    demanded = confidence if allowed is None or allowed.confidence is None else allowed.confidence
    strict = 1 - (1 - demanded) / looks
    drop = metric.drop(metric.score(before, split), metric.score(after, split))
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(FEW_RESAMPLES):
        rows = rng.integers(0, len(split), len(split))
        resample = split.take(rows)
        scores = (
            metric.score(tuple(y[rows] for y in outputs), resample) for outputs in (before, after)
        )
        drops.append(metric.drop(*scores))
    low, high = np.quantile(drops, [(1 - strict) / 2, (1 + strict) / 2])
    return Contract(
        allowed, drop, min(drop, float(low)), max(drop, float(high)), demanded, len(split)
    )


def _proportions(
    before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float
) -> tuple[float, float, float]:
    lost, gained = float(np.sum(before & ~after)), float(np.sum(~before & after))
    count = len(before) + 2
    centre = (lost - gained) / count
    spread = float(
        ndtri((1 + confidence) / 2) * np.sqrt(((lost + gained + 1) / count - centre**2) / count)
    )
    drop = (lost - gained) / len(before)
    return drop, min(drop, centre - spread), max(drop, centre + spread)


def _means(differences: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    means = [float(np.mean(rng.choice(differences, len(differences)))) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.mean(differences)), float(low), float(high)
