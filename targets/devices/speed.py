"""How many times faster one file is than another, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.metrics.source import MEASURED, Source
from lrfc.targets.devices.measure import Measurement


@dataclass(frozen=True)
class Ratio:
    """How many times faster one file is than another, and the 95 % interval of that.

    Of what is estimated or compiled both ends are the figure itself: there is nothing to be unsure
    of.
    """

    median: float
    low: float
    high: float
    source: Source = MEASURED


def speedup(before: Measurement, after: Measurement) -> Ratio:
    """How many times faster ``after`` is, from two measurements of one ``compare`` call.

    The figure is the median over the processes of the median of each one's turns. Turns of one
    process are alike, so the interval is that of the processes: Student's t of the logarithms of
    their medians (a cluster is one observation; Fieller's problem does not arise, as both are
    positive). Of a single process it is the percentile bootstrap of the median over its turns
    (Efron and Tibshirani 1993, ch. 13), with 2,000 resamples, and says nothing of another process.
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
            np.array([np.median(own) for own in np.split(ratios, np.cumsum(after.processes)[:-1])])
        )
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _over_processes(ratios: NDArray[np.float64]) -> Ratio:
    from scipy.special import stdtrit  # scipy.stats would take half a second to import

    logs, median = np.log(ratios), float(np.median(ratios))
    half = stdtrit(len(logs) - 1, 0.975) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    low, high = np.exp(np.mean(logs) + np.array([-half, half])).tolist()
    return Ratio(median, min(median, low), max(median, high))
