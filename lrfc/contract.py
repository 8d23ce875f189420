"""The accuracy contract: what the emitted file lost against the original on the same samples, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lrfc.config import Drop

#: Confidence of the interval that is reported where the user demands none.
REPORTED = 0.95
#: Resamples of the bootstrap.
RESAMPLES = 2_000


@dataclass(frozen=True)
class Contract:
    """A drop of the score on ``samples`` samples, its two-sided ``confidence`` interval, and whether it is within what is ``allowed``.

    Where the user demands a confidence the whole interval has to be within: its upper end is the one-sided bound at (1 + confidence) / 2.
    """

    allowed: Drop | None
    drop: float
    low: float
    high: float
    confidence: float
    samples: int

    @property
    def met(self) -> bool:
        """Whether the contract holds; without one it does."""
        if self.allowed is None:
            return True
        return (self.drop if self.allowed.confidence is None else self.high) <= self.allowed.value + 1e-9

    def __str__(self) -> str:
        return f"{100 * self.drop:.2f}pp ({100 * self.confidence:g} % interval {100 * self.low:.2f} to {100 * self.high:.2f}pp, {self.samples:,} samples)"


def contract(before: NDArray[np.generic], after: NDArray[np.generic], allowed: Drop | None, looks: int = 1) -> Contract:
    """The contract on the samples' scores (N,), higher being better, of the original and of the emitted file.

    Scores of right or wrong (bool) are compared by the paired test of Agresti and Min (2005), any others by the percentile bootstrap of the mean
    difference. ``looks``: how many results have been held against the same samples; each makes the demanded confidence stricter (Bonferroni).
    """
    asked = REPORTED if allowed is None or allowed.confidence is None else allowed.confidence
    confidence = 1 - (1 - asked) / looks
    if before.dtype == bool:
        drop, low, high = _proportions(before.astype(bool), after.astype(bool), confidence)
    else:
        drop, low, high = _means(before.astype(float) - after.astype(float), confidence)
    return Contract(allowed, drop, low, high, asked, len(before))


def _proportions(before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float) -> tuple[float, float, float]:
    lost, gained = float(np.sum(before & ~after)), float(np.sum(~before & after))
    count = len(before) + 2
    centre = (lost - gained) / count
    spread = float(norm.ppf((1 + confidence) / 2) * np.sqrt(((lost + gained + 1) / count - centre**2) / count))
    drop = (lost - gained) / len(before)
    return drop, min(drop, centre - spread), max(drop, centre + spread)


def _means(differences: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    means = [float(np.mean(rng.choice(differences, len(differences)))) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.mean(differences)), float(low), float(high)
