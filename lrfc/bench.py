"""Plans measured on the target, beside the original."""

from __future__ import annotations

from pathlib import Path

from lrfc.ir.graph import Graph
from lrfc.passes.fold_batchnorm import fold_batchnorm
from lrfc.state import Batch, Target
from lrfc.targets.measure import Ratio, compare, speedup

#: Timings of each file: enough to see which is slower.
RUNS = 60


class Bench:
    """Emits a rewritten graph for one target and measures it beside the original's file. ``calibration``: a few inputs, for int8."""

    def __init__(self, target: Target, original: Graph, calibration: Batch, threads: int, folder: Path) -> None:
        self._target, self._calibration, self._threads, self._folder = target, calibration, threads, folder
        self.name = target.name
        self._original = target.emit(fold_batchnorm(original), folder / f"original.{target.name}", calibration)

    def __call__(self, graph: Graph) -> Ratio:
        """The speed-up over the original."""
        emitted = self._target.emit(fold_batchnorm(graph), self._folder / f"plan.{self._target.name}", self._calibration)
        return speedup(*compare([self._original, emitted], runs=RUNS, threads=self._threads))
