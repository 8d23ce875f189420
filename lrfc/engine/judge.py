"""Judgement of one plan: rewritten, refitted and run on validation samples."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lrfc.config import trust
from lrfc.data.counts import FITTED, JUDGED
from lrfc.data.dataset import Split
from lrfc.engine.judgement import FULL, Depth, Judgement
from lrfc.engine.judgements import Judgements
from lrfc.engine.plans import fitted_quickly, rewritten
from lrfc.factorization.warm import QUICK_SWEEPS, SWEEPS
from lrfc.ir.batch import Batch, head
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.contract import held
from lrfc.metrics.metric import metric
from lrfc.metrics.outcome import short
from lrfc.passes.refit import Refit
from lrfc.pruning.facts import Selection
from lrfc.search.sensitivity import divergence
from lrfc.state import State

#: Confidence of the two-sided interval of the drop: 80 %, that is 90 % on one side.
SURE = 0.8


class Judge:
    """Rewrites a state that has a Selection, refits it and runs it on validation samples.

    ``name``: of the metric. ``stored``: take the judgements of earlier builds, and store new ones.
    """

    def __init__(self, state: State, name: str | None = None, *, stored: bool = False) -> None:
        # Where there are few validation samples, training samples that no layer is fitted to join.
        train, validation = state.data.train, state.data.validation.head(JUDGED)
        first = min(FITTED, len(train))
        last = min(FITTED + JUDGED - len(validation), len(train))
        unseen = train.take(np.arange(first, last))
        self._samples = _joined(validation, unseen) if len(unseen) else validation
        self._state, self._unseen = state, unseen
        self._known: dict[tuple[Depth, tuple[object, ...]], Judgement] = {}
        self._metric = metric(name, state.original, self._samples)
        self.unit = short(self._metric.drop_unit)
        self._stored = _stored(state, self._samples, name) if stored else None

    @cached_property
    def _reference(self) -> Batch:
        """The original's outputs for the samples."""
        original, unseen = self._state.original, self._unseen
        reference = keras_io.first_outputs(original, self._state.data.validation.inputs, JUDGED)
        if not len(unseen):
            return reference
        others = keras_io.predict(original, unseen.inputs)
        return tuple(map(np.concatenate, zip(reference, others, strict=True)))

    def sure(self, allowed: float) -> bool:
        """Whether there are enough samples: without any drop, the margin is within ``allowed``."""
        same = held(self._metric, self._samples, self._reference, self._reference, confidence=SURE)
        return same.high <= allowed

    def __call__(self, planned: State, depth: Depth = FULL) -> Judgement:
        """The evaluation of the plan of a state; a plan that returns is not run again."""
        network = planned.fact(Selection).network
        if (FULL, network) in self._known:
            return self._known[FULL, network]
        if (depth, network) not in self._known:
            self._known[depth, network] = self._found(planned, depth)
        return self._known[depth, network]

    def known(self, planned: State) -> bool:
        """Whether the plan was judged fully."""
        return (FULL, planned.fact(Selection).network) in self._known

    def _found(self, planned: State, depth: Depth) -> Judgement:
        """The judgement of an earlier build at the same depth, or a new one.

        A full one does not stand in for a quick one: the search would take another course than
        it took without it, and end with another plan.
        """
        if self._stored is None:
            return self._evaluate(planned, depth)
        selection = planned.fact(Selection)
        found = self._stored.get(selection, depth)
        if found is None:
            found = self._evaluate(planned, depth)
            self._stored.put(selection, depth, found)
        return found

    def _evaluate(self, planned: State, depth: Depth) -> Judgement:
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
        far = divergence(reference, outputs)
        return Judgement(far, loss.drop, loss.high - loss.drop, loss.unit)


def _stored(state: State, samples: Split, name: str | None) -> Judgements | None:
    """The judgements of earlier builds; None for a metric of the user's, whose code may change."""
    if name is not None and trust.METRIC.fullmatch(name):
        return None
    train = state.data.train.head(FITTED)
    arrays = (*train.inputs, *samples.inputs, *(samples.targets or ()))
    rest = name, state.seed, len(state.data.train), len(state.data.validation)
    return Judgements(state.progress.log, state.original, *arrays, rest)


def _joined(one: Split, two: Split) -> Split:
    """The samples of both, with targets where both have them."""

    def together(a: Batch, b: Batch) -> Batch:
        return tuple(np.concatenate(pair) for pair in zip(a, b, strict=True))

    inputs = together(one.inputs, two.inputs)
    if one.targets is None or two.targets is None:
        return Split(inputs)
    return Split(inputs, together(one.targets, two.targets))
