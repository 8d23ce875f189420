"""The accuracy contract: what the emitted file lost against the original on the same samples, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lrfc.config.build import Drop
from lrfc.data.dataset import Split
from lrfc.ir.batch import Batch
from lrfc.metrics.metric import Metric
from lrfc.metrics.outcome import short
from lrfc.text import confidence as level
from lrfc.text import minus, points

#: Confidence of the interval that is reported where the user demands none.
REPORTED = 0.95
#: Resamples of the bootstrap.
RESAMPLES = 2_000
#: The same, where each computes the figure anew.
FEW_RESAMPLES = 200


@dataclass(frozen=True)
class Contract:
    """A drop of the score on ``samples`` samples, its two-sided ``confidence`` interval, and whether it is within what is ``allowed``.

    Where the user demands a confidence the whole interval has to be within: its upper end is the
    one-sided bound at (1 + confidence) / 2. ``unit``: of these times 100, that of
    ``Metric.drop_unit``.
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
        """Whether the contract holds; without one it does."""
        if self.allowed is None:
            return True
        return (
            self.drop if self.allowed.confidence is None else self.high
        ) <= self.allowed.value + 1e-9

    @property
    def margin(self) -> float | None:
        """The drop that is still allowed, below zero where too much was lost; None without a limit.

        With a demanded confidence it is the end of the interval that counts.
        """
        if self.allowed is None:
            return None
        return self.allowed.value - (self.drop if self.allowed.confidence is None else self.high)

    def then(self, other: Contract) -> Contract:
        """This drop and another one on top of it, found independently of it: the halves of their intervals add up as their squares do."""
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
    """The contract on the outputs of the original and of the compressed model for a split; a drop is that of ``Metric.drop``.

    A figure that is no mean over samples (AUC, IoU, a function of the user's) is computed anew on
    each of the bootstrap's resamples.
    """
    one, two = metric.per_sample(before, split), metric.per_sample(after, split)
    if one is None or two is None:
        return replace(
            _resampled(metric, split, before, after, allowed, looks, confidence),
            unit=metric.drop_unit,
        )
    if metric.percent and np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all():
        return contract(one.astype(bool), two.astype(bool), allowed, looks, confidence)
    # What one more of the figure is worth as a drop: one for a share of what is good, less than
    # nothing for an error.
    scale = -metric.drop(metric.score(before, split), metric.score(before, split) + 1.0)
    return replace(
        contract(scale * one, scale * two, allowed, looks, confidence), unit=metric.drop_unit
    )


def contract(
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    allowed: Drop | None,
    looks: int = 1,
    confidence: float = REPORTED,
) -> Contract:
    """The contract on the samples' scores (N,), higher being better, of the original and of the emitted file.

    Scores of right or wrong (bool) are compared by the paired test of Agresti and Min (2005), any
    others by the percentile bootstrap of the mean difference. ``looks``: how many results have been
    held against the same samples; each makes the confidence stricter (Bonferroni). ``confidence``
    is that of the interval where ``allowed`` demands none.
    """
    asked = confidence if allowed is None or allowed.confidence is None else allowed.confidence
    strict = 1 - (1 - asked) / looks
    if before.dtype == bool:
        drop, low, high = _proportions(before.astype(bool), after.astype(bool), strict)
    else:
        drop, low, high = _means(before.astype(float) - after.astype(float), strict)
    return Contract(allowed, drop, low, high, asked, len(before))


def _resampled(
    metric: Metric,
    split: Split,
    before: Batch,
    after: Batch,
    allowed: Drop | None,
    looks: int,
    confidence: float,
) -> Contract:
    asked = confidence if allowed is None or allowed.confidence is None else allowed.confidence
    strict = 1 - (1 - asked) / looks
    drop = metric.drop(metric.score(before, split), metric.score(after, split))
    rng = np.random.default_rng(0)
    found = []
    for _ in range(FEW_RESAMPLES):
        rows = rng.integers(0, len(split), len(split))
        some = split.take(rows)
        scores = (
            metric.score(tuple(y[rows] for y in outputs), some) for outputs in (before, after)
        )
        found.append(metric.drop(*scores))
    low, high = np.quantile(found, [(1 - strict) / 2, (1 + strict) / 2])
    return Contract(allowed, drop, min(drop, float(low)), max(drop, float(high)), asked, len(split))


def _proportions(
    before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float
) -> tuple[float, float, float]:
    lost, gained = float(np.sum(before & ~after)), float(np.sum(~before & after))
    count = len(before) + 2
    centre = (lost - gained) / count
    spread = float(
        norm.ppf((1 + confidence) / 2) * np.sqrt(((lost + gained + 1) / count - centre**2) / count)
    )
    drop = (lost - gained) / len(before)
    return drop, min(drop, centre - spread), max(drop, centre + spread)


def _means(differences: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    means = [float(np.mean(rng.choice(differences, len(differences)))) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.mean(differences)), float(low), float(high)
