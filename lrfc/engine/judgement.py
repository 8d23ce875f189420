"""The judgement of a plan, and how thorough it is."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.data.counts import FITTED, JUDGED
from lrfc.metrics.outcome import short
from lrfc.text import points


@dataclass(frozen=True)
class Judgement:
    """The evaluation of a plan on validation samples.

    ``divergence`` of the outputs from the original's; ``drop`` of the metric, and its one-sided
    90 % ``margin``. Times 100, both are in ``unit``.
    """

    divergence: float
    drop: float
    margin: float
    unit: str = "pp"

    def within(self, allowed: float) -> bool:
        """Whether the drop with its margin is at most that."""
        return self.drop + self.margin <= allowed

    def __str__(self) -> str:
        margin = f" ± {points(self.margin, short(self.unit))}" if self.margin else ""
        return f"drop {points(self.drop, self.unit)}{margin} before fine-tuning"


@dataclass(frozen=True)
class Depth:
    """How thoroughly a plan is judged.

    ``fitted`` inputs and ``patches`` rows that it is refitted to; samples by which the refit itself
    is accepted (``refit_judged``), and on which the plan is ``judged``. ``quick_fits``: fits of few
    sweeps, where each rank has a fit of its own.
    """

    fitted: int
    patches: int
    refit_judged: int
    judged: int
    quick_fits: bool


FULL = Depth(FITTED, 8_192, 250, JUDGED, quick_fits=False)
QUICK = Depth(128, 2_048, 100, 1_000, quick_fits=True)
