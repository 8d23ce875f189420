"""Score the filters of every dependency group, and measure the effect of removing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lrfc.errors import UsageError
from lrfc.ir.op import Op
from lrfc.pruning import effects
from lrfc.pruning.criteria import CRITERIA, Context, products
from lrfc.pruning.groups import Dependencies, Group
from lrfc.pruning.space import FilterSpace, Keep, counts, prunable
from lrfc.search.candidates import readable
from lrfc.search.sensitivity import POOL, Sensitivity
from lrfc.search.statistics import Sampler, SampleSize, repairable
from lrfc.state import Fact, State

#: About this many choices for the number of units that a group keeps.
LEVELS = 8


@dataclass(frozen=True)
class ExploreFilters:
    """Rank the units of every dependency group, and measure the divergence without the worst ones.

    ``criterion``: the name of a criterion in lrfc.pruning.criteria. Before the divergence of the
    output is measured, the consumers of the group are refitted in closed form to the remaining
    channels, as the build will do it. The dimensions along which queries and keys are multiplied
    have no consumer; their criterion is the energy of the products. ``multiple``: a group keeps a
    multiple of this many units, or all. ``keep``, ``only``: patterns of layers whose filters stay,
    and of the only ones that do not. ``whole_heads``: see ``lrfc.pruning.groups.groups``. ``size``,
    ``images``: calibration samples for the refit and for the divergence.

    Given and result: the graph is not changed.
    """

    criterion: str = "reconstruction"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    multiple: int = 1
    whole_heads: bool = False
    size: SampleSize = SampleSize()
    images: int = 64

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (FilterSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its FilterSpace; UsageError if there are too few samples to refit on."""
        if not repairable(state):
            raise UsageError(
                "filters are pruned only if the layers behind them can be refitted: give --data"
                " with at least 16 samples, or choose --prune off"
            )
        graph, layers = state.graph, readable(state.graph)
        dependencies, groups, refused = prunable(
            graph,
            {op.name for op in layers},
            self.keep,
            self.only,
            whole_heads=self.whole_heads,
        )
        choices = self._choices(state, layers, dependencies, groups) if groups else {}
        return state.with_fact(FilterSpace(dependencies, choices, refused))

    def _choices(
        self,
        state: State,
        layers: Sequence[Op],
        dependencies: Dependencies,
        groups: Sequence[Group],
    ) -> dict[str, tuple[Keep, ...]]:
        """The choices for each group; ``layers`` are those whose inputs can be sampled."""
        graph = state.graph
        count = max(self.size.images + self.size.held_out, POOL * self.images)
        inputs = state.data.train.head(count).inputs
        consumers = {part.layer for group in groups for part in group.consumers}
        samples = Sampler(
            graph, [op for op in layers if op.name in consumers], inputs, self.size, state.seed
        )
        context = Context(
            graph, dependencies, inputs, lambda name: samples[name].statistics, state.seed
        )
        sensitivity = Sensitivity(graph, inputs, self.images)
        step = state.progress.stage("filters", len(groups))
        choices: dict[str, tuple[Keep, ...]] = {}
        for group in groups:
            criterion = CRITERIA[self.criterion] if group.consumers else products
            scores = criterion(graph, group, context)
            kept = counts(group.width, self.multiple, LEVELS)
            choices[group.name] = effects.choices(
                graph, group, scores, kept, sensitivity, samples.__getitem__
            )
            step(1)
        return choices
