"""Find which filters can go together, and what that does to the network's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrfc.errors import UsageError
from lrfc.pruning import effects
from lrfc.pruning.criteria import CRITERIA, Context
from lrfc.pruning.space import FilterSpace, Keep, counts, prunable
from lrfc.search.candidates import readable
from lrfc.search.sensitivity import POOL, Sensitivity
from lrfc.search.statistics import Sampler, SampleSize, repairable
from lrfc.state import Fact, State

#: Choices for a group's number of units, about.
LEVELS = 8


@dataclass(frozen=True)
class ExploreFilters:
    """Rank the units of every dependency group by a criterion, and measure what the output loses when the worst of them go.

    ``criterion``: one of lrfc.pruning.criteria. The layers that read a group are refitted in closed
    form to what is left before the output is looked at, so that a choice is judged as it will be
    built. ``multiple``: numbers of units step in multiples of it.
    """

    criterion: str = "reconstruction"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    multiple: int = 1
    size: SampleSize = SampleSize()
    images: int = 64

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (FilterSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its FilterSpace.

        UsageError where there is nothing to refit the layers on, so that nothing could make up for
        what goes.
        """
        if not repairable(state):
            raise UsageError(
                "filters are cut only where calibration samples can make up for them: give --data"
                " with at least 16 samples, or choose --prune off"
            )
        graph, inputs = (
            state.graph,
            state.data.train.head(
                max(self.size.images + self.size.held_out, POOL * self.images)
            ).inputs,
        )
        layers = readable(graph)
        found, wanted, refused = prunable(graph, {op.name for op in layers}, self.keep, self.only)
        choices: dict[str, tuple[Keep, ...]] = {}
        if wanted:
            read = {part.layer for group in wanted for part in group.consumers}
            samples = Sampler(
                graph, [op for op in layers if op.name in read], inputs, self.size, state.seed
            )
            context = Context(
                graph, found, inputs, lambda name: samples[name].statistics, state.seed
            )
            sensitivity = Sensitivity(graph, inputs, self.images)
            step = state.progress.stage("filters", len(wanted))
            for group in wanted:
                scores = CRITERIA[self.criterion](graph, group, context)
                kept = counts(group.width, self.multiple, LEVELS)
                choices[group.name] = effects.choices(
                    graph, group, scores, kept, sensitivity, samples.__getitem__
                )
                step(1)
        return state.with_fact(FilterSpace(found, choices, refused))
