"""A plan carried out: its selection rewritten, repaired, trained and prepared for its precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from lrfc.config.formats import FORMATS
from lrfc.engine.baseline import Baseline
from lrfc.engine.candidate import Compressed
from lrfc.engine.job import Explored, Job, advanced, scored
from lrfc.engine.memo import Memo
from lrfc.engine.passes import pipeline, rounding, rung
from lrfc.engine.tuning import Plan
from lrfc.errors import ModelError
from lrfc.ir.fold import fold_batchnorm
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.fold_batchnorm import FoldBatchNorm
from lrfc.passes.quantize_aware import QuantizeAware, QuantizedModel
from lrfc.protocols import Pass, Target
from lrfc.pruning.facts import Selection
from lrfc.search.facts import DesignSpace
from lrfc.state import State


@dataclass(frozen=True)
class Trained:
    """A selection rewritten, repaired and fine-tuned, with the score after each rewrite."""

    state: State
    ladder: Mapping[str, float]


@dataclass(frozen=True)
class Shared:
    """Work that destinations share, each kind by all that it depends on.

    Values of None stand for work that ended at the pass after which the build stops.
    """

    weighed: Memo[State | None] = field(default_factory=Memo)
    trained: Memo[Trained | None] = field(default_factory=Memo)
    compressed: Memo[Compressed | None] = field(default_factory=Memo)
    baselines: Memo[Baseline] = field(default_factory=Memo)


def compress(
    job: Job,
    explored: Explored,
    weighed: State,
    chosen: Plan,
    target: Target,
    shared: Shared,
) -> Compressed | None:
    """The compressed graph of a plan; None where the build stops before.

    Destinations for which the same is chosen share the work on it.
    """
    state = advanced(job, chosen.state, [chosen.select], (DesignSpace,))
    if state is None:
        return None
    selection = state.fact(Selection)
    key = (
        *((c.layer, c.method, c.ranks) for c in selection.chosen),
        *((name, tuple(keep.units)) for name, keep in selection.keeps.items()),
    )
    rest = pipeline(job.config, chosen.select)[1:]
    trained = shared.trained.get(key, partial(_trained, job, explored, state, rest))
    if trained is None:
        return None
    steps = rounding(job.config, target.precision)
    correct = CorrectBiases(steps=FORMATS[target.name].weight_steps)
    make = partial(_finished, job, explored, trained, steps, correct)
    made = shared.compressed.get((key, steps, correct), make)
    if made is None:
        return None
    # What was selected is the same; why the other layers were not depends on the prices of this
    # destination.
    design = weighed.fact(DesignSpace)
    return replace(made, state=made.state.with_fact(selection), design=design)


def _trained(job: Job, explored: Explored, state: State, passes: Sequence[Pass]) -> Trained | None:
    """The selection of the state rewritten, repaired and fine-tuned."""
    ladder = dict(explored.ladder)

    def score(step: Pass, now: State) -> None:
        name = rung(step, now)
        if name is not None and explored.metric is not None:
            ladder[name] = scored(job, explored.metric, now)

    found = advanced(job, state, passes, (DesignSpace, Selection), score)
    return None if found is None else Trained(found, ladder)


def _finished(
    job: Job,
    explored: Explored,
    trained: Trained,
    steps: Sequence[Pass],
    correct: CorrectBiases,
) -> Compressed | None:
    """The trained network as it is emitted in a precision."""
    # Last, because BatchNorm has to be there while statistics are estimated or weights trained.
    state = advanced(job, trained.state, [FoldBatchNorm(), *steps])
    if state is not None and job.config.qat:
        state = _quantise_aware(job, state)
    if state is None:
        return None
    shipped: State | None = state
    # Only the file has these biases: they make good what rounding does to it, and would be wrong in
    # the float network.
    if steps and state.known(QuantizedModel) is None:
        shipped = advanced(job, state, [correct])
    if shipped is None:
        return None
    return Compressed(
        source=job.source,
        config=job.config,
        state=state,
        trainable=trained.state.graph,
        shipped=shipped.graph,
        original=fold_batchnorm(state.original),
        design=explored.state.fact(DesignSpace),
        ladder=trained.ladder,
        metric=explored.metric,
        seconds=explored.seconds,
    )


def _quantise_aware(job: Job, state: State) -> State | None:
    """The network trained with its rounding; where that cannot be done, as it is."""
    try:
        return advanced(job, state, [QuantizeAware(metric=job.config.metric)])
    except ModelError as error:
        job.progress.log(f"  not trained with its rounding, quantised as it is: {error}")
        return state
