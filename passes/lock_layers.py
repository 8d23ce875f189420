"""Repeat the factorization of an earlier build, without exploration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lrfc.errors import UsageError
from lrfc.factorization import METHODS
from lrfc.factorization.base import Ranks
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.search.candidates import Candidate, Decomposed, LayerSpace, selected
from lrfc.search.facts import DesignSpace
from lrfc.search.statistics import Sampler, SampleSize
from lrfc.state import Fact, State
from lrfc.text import ranks


@dataclass(frozen=True)
class Choice:
    """The choice for a layer: a method with ranks, or no method for the given reason.

    ``error``: the distance of the feature maps in the earlier build.
    """

    layer: str
    method: str | None
    ranks: Ranks
    error: float
    reason: str | None


@dataclass(frozen=True)
class LockLayers:
    """Give each layer a single candidate: that of an earlier build.

    Its factors are computed again, on the samples that ExploreLayers draws with the same options.

    Given and result: the graph is not changed.
    """

    choices: tuple[Choice, ...]
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    size: SampleSize = SampleSize()
    sensitivity_images: int = 64

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with a DesignSpace of one candidate per layer.

        UsageError if the model does not have a layer, or the layer not these ranks.
        """
        graph = state.graph
        count = max(self.size.images + self.size.held_out, self.sensitivity_images)
        inputs = state.data.train.head(count).inputs
        eligible = [op for op, reason in selected(graph, self.keep, self.only) if reason is None]
        # The sampler needs all layers, also those without a choice, because the random draw for a
        # layer depends on its place among them.
        samples = Sampler(graph, eligible, inputs, self.size, state.seed)
        spaces = tuple(
            _space(graph, _layer(eligible, choice), choice, samples)
            for choice in self.choices
            if choice.method is not None
        )
        skipped = {
            choice.layer: choice.reason or "left alone by the build that is repeated"
            for choice in self.choices
            if choice.method is None
        }
        return state.with_fact(DesignSpace(spaces, skipped))


def _layer(layers: Sequence[Op], choice: Choice) -> Op:
    for op in layers:
        if op.name == choice.layer:
            return op
    raise UsageError(
        f"the plan has a layer '{choice.layer}', and the model has no factorizable layer of that"
        " name"
    )


def _space(graph: Graph, op: Op, choice: Choice, samples: Sampler) -> LayerSpace:
    method, source = METHODS.get(choice.method or ""), graph.input_tensors(op.name)[0]
    refusal = (
        f"there is no method '{choice.method}'" if method is None else method.refuses(op, source)
    )
    if method is None or choice.method is None or refusal is not None:
        raise UsageError(f"the plan for layer '{op.name}' cannot be followed: {refusal}")
    full = method.full(op, source)
    if len(choice.ranks) != len(full) or not all(
        1 <= rank <= most for rank, most in zip(choice.ranks, full, strict=True)
    ):
        raise UsageError(
            f"the plan for layer '{op.name}' cannot be followed: {choice.method} has no rank"
            f" {ranks(choice.ranks)}, the highest is {ranks(full)}"
        )
    calls = graph.calls(op)
    cost = method.cost(op, source, choice.ranks)
    candidate = Candidate(
        op.name, choice.method, choice.ranks, cost.params, cost.macs * len(calls), choice.error
    )
    factors = Decomposed(op, source, [choice.method], partial(samples.__getitem__, op.name))
    return LayerSpace(
        op,
        tuple(call.name for call in calls),
        (candidate,),
        factors,
        excluded=_unfactorized(graph, op),
    )


def _unfactorized(graph: Graph, op: Op) -> Candidate:
    """The layer itself as a candidate."""
    from lrfc.ir import ops

    macs = len(graph.calls(op)) * ops.macs(
        op, (graph.input_tensors(op.name)[0],), graph.tensors(op.name)
    )
    return Candidate(op.name, None, (), op.params, macs)
