"""Compression by a plan: rewrite, repair, fine-tune, and prepare for the precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from lrfc.config.formats import FORMATS
from lrfc.engine.baseline import Baseline
from lrfc.engine.candidate import Compressed
from lrfc.engine.job import Explored, Job, advanced
from lrfc.engine.memo import Memo
from lrfc.engine.passes import pipeline, rounding, rung
from lrfc.engine.tuning import Plan
from lrfc.errors import ModelError
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.passes.correct_biases import CorrectBiases
from lrfc.passes.fold_batchnorm import FoldBatchNorm
from lrfc.passes.quantize_aware import QuantizeAware, QuantizedModel
from lrfc.protocols import Pass, Target
from lrfc.pruning.facts import Selection
from lrfc.pruning.space import FilterSpace
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from lrfc.system.spans import span


@dataclass(frozen=True)
class Trained:
    """A rewritten, repaired and fine-tuned network, with its accuracy by stage (``ladder``)."""

    state: State
    ladder: Mapping[str, float]


@dataclass(frozen=True)
class Shared:
    """Results that destinations share, by all the inputs that they depend on.

    A result is None where the build stops after a pass before it.
    """

    weighed: Memo[State | None] = field(default_factory=Memo)
    trained: Memo[Trained | None] = field(default_factory=Memo)
    compressed: Memo[Compressed | None] = field(default_factory=Memo)
    baselines: Memo[Baseline] = field(default_factory=Memo)
    filters: Memo[FilterSpace] = field(default_factory=Memo)


@span("compression")
def compress(
    job: Job,
    explored: Explored,
    weighed: State,
    chosen: Plan,
    target: Target,
    shared: Shared,
) -> Compressed | None:
    """The compressed graph of a plan; None where the build stops before.

    Destinations with the same selection share the result.
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
    # The shared result has the same candidates. The reasons for layers that were not factorized
    # depend on the latencies of this destination.
    design = weighed.fact(DesignSpace)
    return replace(made, state=made.state.with_fact(selection), design=design)


def _trained(job: Job, explored: Explored, state: State, passes: Sequence[Pass]) -> Trained | None:
    """Rewrite, repair and fine-tune the network by the state's selection."""
    ladder, scorer = dict(explored.ladder), explored.scorer
    # A file in fp32 computes what the last stage does, and is scored on all samples.
    rounded = any(goal.target.precision != "fp32" for goal in job.goals)
    seen: list[Graph] = []

    def score(step: Pass, now: State) -> None:
        if scorer is None:
            return
        stage, whole = rung(step, now), rounded and step is passes[-1]
        if stage is None and whole:  # the stage before it is the last one, and scored on all
            stage = list(ladder)[-1]
        if stage is not None:
            if seen and seen[-1] is now.graph and not whole:  # the pass had nothing to do
                ladder[stage] = list(ladder.values())[-1]
            else:
                ladder[stage] = (scorer.whole if whole else scorer.estimated)(now.graph)
            seen.append(now.graph)

    trained = advanced(job, state, passes, (DesignSpace, Selection), score)
    return None if trained is None else Trained(trained, ladder)


def _finished(
    job: Job,
    explored: Explored,
    trained: Trained,
    steps: Sequence[Pass],
    correct: CorrectBiases,
) -> Compressed | None:
    """Prepare the trained network for emission in a precision."""
    # Folded last: recalibration and training need the BatchNorms.
    state = advanced(job, trained.state, [FoldBatchNorm(), *steps])
    if state is not None and job.config.qat:
        state = _quantise_aware(job, state)
    if state is None:
        return None
    shipped: State | None = state
    # Only the file has corrected biases: they compensate its rounding, and would be wrong in the
    # float network.
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
        original=inference_form(state.original),
        design=explored.state.fact(DesignSpace),
        ladder=trained.ladder,
        metric=explored.metric,
        seconds=explored.seconds,
    )


def _quantise_aware(job: Job, state: State) -> State | None:
    """Train the network with its rounding; the state unchanged where that is not possible."""
    try:
        return advanced(job, state, [QuantizeAware(metric=job.config.metric)])
    except ModelError as error:
        job.progress.log(f"  not trained with its rounding, but quantised after training: {error}")
        return state
