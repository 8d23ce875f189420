"""Take the method and ranks of every layer from an earlier build, in the place of exploring them."""

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
    """What was chosen for a layer: a method with its ranks, or, with a reason, nothing.

    ``error``: the distance of the feature maps, as it was found.
    """

    layer: str
    method: str | None
    ranks: Ranks
    error: float
    reason: str | None


@dataclass(frozen=True)
class LockLayers:
    """Give each layer the one choice that an earlier build made for it.

    Its factors are computed again, on the samples that ExploreLayers draws with the same options.
    UsageError when a layer or a rank is not there.
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
        """The state with a DesignSpace of one candidate a layer."""
        graph, images = (
            state.graph,
            max(self.size.images + self.size.held_out, self.sensitivity_images),
        )
        inputs = state.data.train.head(images).inputs
        eligible = [op for op, reason in selected(graph, self.keep, self.only) if reason is None]
        # All of them, also those without a choice: the samples drawn of a layer depend on its place
        # among them.
        samples = Sampler(graph, eligible, inputs, self.size, state.seed)
        spaces = tuple(
            _space(graph, _found(eligible, choice), choice, samples)
            for choice in self.choices
            if choice.method is not None
        )
        skipped = {
            choice.layer: choice.reason or "left alone by the build that is repeated"
            for choice in self.choices
            if choice.method is None
        }
        return state.with_fact(DesignSpace(spaces, skipped))


def _found(layers: Sequence[Op], choice: Choice) -> Op:
    for op in layers:
        if op.name == choice.layer:
            return op
    raise UsageError(
        f"the plan has a layer '{choice.layer}', and the model none that can be factorized under"
        " that name"
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
    taken = Candidate(
        op.name, choice.method, choice.ranks, cost.params, cost.macs * len(calls), choice.error
    )
    factors = Decomposed(op, source, [choice.method], partial(samples.__getitem__, op.name))
    return LayerSpace(
        op, tuple(call.name for call in calls), (taken,), factors, excluded=_whole(graph, op)
    )


def _whole(graph: Graph, op: Op) -> Candidate:
    from lrfc.ir import ops

    macs = len(graph.calls(op)) * ops.macs(
        op, (graph.input_tensors(op.name)[0],), graph.tensors(op.name)
    )
    return Candidate(op.name, None, (), op.params, macs)
