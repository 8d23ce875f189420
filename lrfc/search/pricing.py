"""What a network and each candidate take on a device, predicted from the signatures of the ops that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph, Op
from lrfc.search import signature
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.latency import CostProfile
from lrfc.search.signature import Signature

Key = tuple[str, str | None, tuple[int, ...]]


def key(candidate: Candidate) -> Key:
    """What tells a candidate from all others."""
    return candidate.layer, candidate.method, candidate.ranks


@dataclass(frozen=True)
class Reading:
    """What a runtime executes of a graph, and of a chain of ops in the place of one; see ``lrfc.search.signature``."""

    signatures: Callable[[Graph], Iterable[tuple[str, Signature]]] = signature.signatures
    chain: Callable[[Graph, str, Sequence[Op]], Iterable[Signature]] = signature.chain


class Executed:
    """The ops that a runtime executes for a graph, and for every candidate of its layers: found once, priced as often as the prices change.

    ``graph`` is the one that the candidates are of; ``folded`` the same with its BatchNorms folded, as it is emitted. ``reading``: what the runtime
    executes of a graph.
    """

    def __init__(self, graph: Graph, folded: Graph, spaces: Sequence[LayerSpace], reading: Reading) -> None:
        self.network = tuple(reading.signatures(folded))
        own: dict[str, list[Signature]] = {}
        for name, each in self.network:
            own.setdefault(name, []).append(each)
        self._parts: dict[Key, tuple[Signature, ...]] = {}
        alike: dict[object, tuple[Signature, ...]] = {}  # layers of one shape have the same candidates
        for space in spaces:
            source = graph.input_tensors(space.op.name)[0]
            self._parts[key(space.whole)] = tuple(each for call in space.calls for each in own.get(call, ()))
            before = graph.operands(space.calls[0])[0].op
            padded = (graph.op(before).kind, graph.input_tensors(before))
            like = (tuple(reading.chain(graph, space.calls[0], [space.op])), space.op.attrs.get("padding"), padded, len(space.calls))
            for candidate in space.candidates:
                if candidate.method is None:
                    continue
                place = (like, candidate.method, candidate.ranks)
                if place not in alike:
                    stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
                    alike[place] = tuple(each for call in space.calls for each in reading.chain(graph, call, stages))
                self._parts[key(candidate)] = alike[place]

    def distinct(self) -> list[Signature]:
        """Every op of a candidate once."""
        return list(dict.fromkeys(each for parts in self._parts.values() for each in parts))

    def price(self, profile: CostProfile, known: Mapping[Signature, float]) -> Mapping[Key, float]:
        """The predicted time of each candidate, in the profile's unit. ``known``: measured times of ops, taken as they are."""
        distinct = self.distinct()
        times = {**dict(zip(distinct, profile.ops(distinct).tolist(), strict=True)), **known}
        return {place: sum(times[each] for each in parts) for place, parts in self._parts.items()}

    def whole(self, profile: CostProfile, known: Mapping[Signature, float]) -> float:
        """The predicted time of the graph as it is."""
        return profile.predict((each for _, each in self.network), known)


def priced(spaces: Sequence[LayerSpace], prices: Mapping[Key, float]) -> tuple[LayerSpace, ...]:
    """The same spaces, every candidate with its predicted time."""

    def one(candidate: Candidate) -> Candidate:
        return replace(candidate, latency=prices[key(candidate)])

    return tuple(replace(s, candidates=tuple(map(one, s.candidates)), excluded=None if s.excluded is None else one(s.excluded)) for s in spaces)


def paying(space: LayerSpace) -> LayerSpace:
    """The space without the candidates that are predicted to take longer than the layer as it is; a method that has no other is refused."""
    kept = tuple(c for c in space.candidates if c.method is None or c.latency < space.whole.latency)
    lost = {c.method for c in space.candidates} - {c.method for c in kept} - {None}
    reasons = dict.fromkeys(sorted(filter(None, lost)), "slower on the device than the layer as it is")
    return replace(space, candidates=kept, refusals={**space.refusals, **reasons})
