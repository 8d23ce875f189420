"""Judgement of one plan: rewritten, refitted and run on validation samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrfc.data.counts import FITTED, JUDGED
from lrfc.data.dataset import Split
from lrfc.engine.plans import fitted_quickly, rewritten
from lrfc.factorization.warm import QUICK_SWEEPS, SWEEPS
from lrfc.ir.batch import head
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.contract import held
from lrfc.metrics.metric import metric
from lrfc.metrics.outcome import short
from lrfc.passes.refit import Refit
from lrfc.pruning.facts import Selection
from lrfc.search.sensitivity import divergence
from lrfc.state import State
from lrfc.text import points

#: Confidence of the two-sided interval of the drop: 80 %, that is 90 % on one side.
SURE = 0.8


@dataclass(frozen=True)
class Verdict:
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


class Judge:
    """Rewrites a state that has a Selection, refits it and runs it on validation samples."""

    def __init__(self, state: State, name: str | None = None) -> None:
        # Where there are few validation samples, training samples that no layer is fitted to join.
        train, validation = state.data.train, state.data.validation.head(JUDGED)
        first = min(FITTED, len(train))
        last = min(FITTED + JUDGED - len(validation), len(train))
        unseen = train.take(np.arange(first, last))
        self._samples = _joined(validation, unseen) if len(unseen) else validation
        self._reference = keras_io.first_outputs(
            state.original, state.data.validation.inputs, JUDGED
        )
        if len(unseen):
            others = keras_io.predict(state.original, unseen.inputs)
            self._reference = tuple(map(np.concatenate, zip(self._reference, others, strict=True)))
        self._verdicts: dict[tuple[Depth, tuple[object, ...]], Verdict] = {}
        self._metric = metric(name, state.original, self._samples)
        self.unit = short(self._metric.drop_unit)

    def sure(self, allowed: float) -> bool:
        """Whether there are enough samples: without any drop, the margin is within ``allowed``."""
        same = held(self._metric, self._samples, self._reference, self._reference, confidence=SURE)
        return same.high <= allowed

    def __call__(self, planned: State, depth: Depth = FULL) -> Verdict:
        """The evaluation of the plan of a state; a plan that returns is not run again."""
        network = planned.fact(Selection).network
        if (FULL, network) in self._verdicts:
            return self._verdicts[FULL, network]
        if (depth, network) not in self._verdicts:
            self._verdicts[depth, network] = self._evaluate(planned, depth)
        return self._verdicts[depth, network]

    def known(self, planned: State) -> bool:
        """Whether the plan was judged fully."""
        return (FULL, planned.fact(Selection).network) in self._verdicts

    def _evaluate(self, planned: State, depth: Depth) -> Verdict:
        if depth.quick_fits:
            planned = fitted_quickly(planned)
        # The refit sets the statistics of BatchNorms, too.
        refit = Refit(
            depth.fitted,
            depth.patches,
            judged=depth.refit_judged,
            sweeps=QUICK_SWEEPS if depth.quick_fits else SWEEPS,
        )
        graph, samples = rewritten(planned, (refit,)), self._samples.head(depth.judged)
        outputs = keras_io.predict(graph, samples.inputs)
        reference = head(self._reference, depth.judged)
        loss = held(self._metric, samples, reference, outputs, confidence=SURE)
        return Verdict(divergence(reference, outputs), loss.drop, loss.high - loss.drop, loss.unit)


def _joined(one: Split, two: Split) -> Split:
    """The samples of both, with targets where both have them."""
    if one.targets is None or two.targets is None:
        return Split(
            tuple(np.concatenate(pair) for pair in zip(one.inputs, two.inputs, strict=True))
        )
    return Split(
        *(
            tuple(np.concatenate(pair) for pair in zip(a, b, strict=True))
            for a, b in ((one.inputs, two.inputs), (one.targets, two.targets))
        )
    )
