"""Choose a method and ranks for every Conv and fully connected layer by the similarity of feature maps, under the budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lrfc.config import METHODS, Budget
from lrfc.errors import BudgetError
from lrfc.factorization.base import Factors
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.search.allocate import allocate
from lrfc.search.candidates import Candidate, LayerSpace, pareto, selected, space
from lrfc.search.samples import LayerSamples, SampleSize, collect
from lrfc.search.sensitivity import weigh
from lrfc.search.similarity import MEASURES
from lrfc.state import Fact, State


@dataclass(frozen=True)
class DesignSpace(Fact):
    """Every layer's choices, evaluated: what the allocation draws from, for any budget."""

    spaces: tuple[LayerSpace, ...]
    samples: Mapping[str, LayerSamples]
    skipped: Mapping[str, str]

    @property
    def size(self) -> int:
        """Number of candidates."""
        return sum(len(s.candidates) for s in self.spaces)


@dataclass(frozen=True)
class Selection(Fact):
    """The choice for each factorizable layer of the original graph, and the reason where it is left alone."""

    about_graph: ClassVar[bool] = False

    chosen: tuple[Candidate, ...]
    reasons: Mapping[str, str]
    factors: Mapping[str, Factors]

    @property
    def impact(self) -> float:
        """The predicted divergence of the network's output."""
        return sum(c.impact for c in self.chosen)


@dataclass(frozen=True)
class ExploreLayers:
    """Evaluate all methods and ranks of all layers on the calibration data: cost, feature-map similarity, and effect on the output."""

    methods: tuple[str, ...] = METHODS
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    measure: str = "relative_l2"
    size: SampleSize = SampleSize()
    sensitivity_images: int = 256

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its DesignSpace."""
        layers = list(selected(state.graph, self.keep, self.only))
        skipped = {op.name: reason for op, reason in layers if reason is not None}
        eligible = [op for op, reason in layers if reason is None]
        inputs = state.data.train.inputs
        samples = collect(state.graph, eligible, inputs, self.size, state.seed) if eligible else {}
        step = state.progress.stage("candidates", len(eligible))
        spaces = []
        for op in eligible:
            found = space(state.graph, op, samples[op.name], self.methods, MEASURES[self.measure])
            if len(found.candidates) == 1:
                skipped[op.name] = found.reason
            else:
                spaces.append(found)
            step(1)
        few = tuple(x[: self.sensitivity_images] for x in inputs)
        spaces = weigh(state.graph, spaces, samples, few, state.progress.stage("sensitivity", len(spaces)))
        return state.with_fact(DesignSpace(tuple(spaces), samples, skipped))


@dataclass(frozen=True)
class SelectRanks:
    """Pick one candidate per layer: the least predicted effect on the output within the budgets."""

    max_macs: Budget | None = None
    max_params: Budget | None = None

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its Selection. BudgetError when a budget cannot be met."""
        design = state.fact(DesignSpace)
        limits = {}
        for quantity, budget in (("macs", self.max_macs), ("params", self.max_params)):
            if budget is not None:
                total = totals(state.original)[quantity]
                fixed = totals(state.graph)[quantity] - sum(getattr(s.candidates[0], quantity) for s in design.spaces)
                limit = budget.limit(total) - fixed
                least = sum(min(getattr(c, quantity) for c in s.candidates) for s in design.spaces)
                if least > limit:
                    raise BudgetError(
                        f"--max-{quantity} {budget}: {budget.limit(total):,.0f} of {total:,} cannot be reached; the least these methods reach is"
                        f" {least + fixed:,} ({100 * (least + fixed) / total:.1f}%)"
                    )
                limits[quantity] = limit
        chosen = allocate([pareto(s.candidates) for s in design.spaces], limits)
        reasons = dict(design.skipped)
        for candidate in chosen:
            if candidate.method is None:
                reasons[candidate.layer] = "within the budgets, no factorization of it is worth its effect on the output"
        factors = {s.op.name: s.factors[c.method] for s, c in zip(design.spaces, chosen, strict=True) if c.method is not None}
        return state.with_fact(Selection(chosen, reasons, factors))


def totals(graph: Graph) -> dict[str, int]:
    """MACs of one sample and parameters of a graph."""
    macs = sum(ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph)
    return {"macs": macs, "params": graph.params}
