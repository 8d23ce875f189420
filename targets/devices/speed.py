"""The speedup of one file against another, with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.metrics.source import MEASURED, Source
from lrfc.targets.devices.measure import Measurement


@dataclass(frozen=True)
class Ratio:
    """The speedup of one file against another, and its 95 % interval.

    Of estimated and compiled figures the interval is the ratio itself.
    """

    median: float
    low: float
    high: float
    source: Source = MEASURED


def speedup(before: Measurement, after: Measurement) -> Ratio:
    """The speedup of ``after``, from two measurements of one ``compare`` call.

    The figure is the median over the processes of the median of each one's turns. Turns of one
    process are alike, so the interval is that of the processes: Student's t of the logarithms of
    their medians (a cluster is one observation; Fieller's problem does not arise, as both are
    positive). Of a single process it is the percentile bootstrap of the median over its turns
    (Efron and Tibshirani 1993, ch. 13), with 2,000 resamples, and does not hold for another
    process. UsageError when the two were not measured side by side.
    """
    if len(before.rounds_ms) != len(after.rounds_ms) or before.processes != after.processes:
        raise UsageError(
            f"{before.path.name} and {after.path.name} were not measured side by side:"
            f" {len(before.rounds_ms)} and {len(after.rounds_ms)} turns"
        )
    ratios = np.asarray(before.rounds_ms) / np.asarray(after.rounds_ms)
    if after.source != MEASURED:
        ratio = float(np.median(ratios))
        return Ratio(ratio, ratio, ratio, after.source)
    if len(after.processes) > 1:
        return _over_processes(
            np.array(
                [np.median(part) for part in np.split(ratios, np.cumsum(after.processes)[:-1])]
            )
        )
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _over_processes(ratios: NDArray[np.float64]) -> Ratio:
    """The ratio and its interval from one ratio for each process."""
    from scipy.special import stdtrit  # scipy.stats would take half a second to import

    logs, median = np.log(ratios), float(np.median(ratios))
    half = stdtrit(len(logs) - 1, 0.975) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    low, high = np.exp(np.mean(logs) + np.array([-half, half])).tolist()
    return Ratio(median, min(median, low), max(median, high))
