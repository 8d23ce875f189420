"""What a network and each candidate take on a device, predicted from the signatures of the ops that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.search.candidates import Candidate, LayerSpace
from lrfc.search.latency import CostProfile
from lrfc.search.signature import Signature, chain, signatures

Key = tuple[str, str | None, tuple[int, ...]]


def key(candidate: Candidate) -> Key:
    """What tells a candidate from all others."""
    return candidate.layer, candidate.method, candidate.ranks


class Executed:
    """The ops that a runtime executes for a graph, and for every candidate of its layers: found once, priced as often as the prices change.

    ``graph`` is the one that the candidates are of; ``folded`` the same with its BatchNorms folded, as it is emitted.
    """

    def __init__(self, graph: Graph, folded: Graph, spaces: Sequence[LayerSpace]) -> None:
        self.network = tuple(signatures(folded))
        own: dict[str, list[Signature]] = {}
        for name, signature in self.network:
            own.setdefault(name, []).append(signature)
        self._parts: dict[Key, tuple[Signature, ...]] = {}
        alike: dict[object, tuple[Signature, ...]] = {}  # layers of one shape have the same candidates
        for space in spaces:
            source = graph.input_tensors(space.op.name)[0]
            self._parts[key(space.whole)] = tuple(each for call in space.calls for each in own.get(call, ()))
            like = (tuple(chain(graph, space.calls[0], [space.op])), space.op.attrs.get("padding"), len(space.calls))
            for candidate in space.candidates:
                if candidate.method is None:
                    continue
                place = (like, candidate.method, candidate.ranks)
                if place not in alike:
                    stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
                    alike[place] = tuple(each for call in space.calls for each in chain(graph, call, stages))
                self._parts[key(candidate)] = alike[place]

    def price(self, profile: CostProfile, known: Mapping[Signature, float]) -> Mapping[Key, float]:
        """The predicted time of each candidate, in the profile's unit. ``known``: measured times of ops, taken as they are."""
        distinct = list(dict.fromkeys(each for parts in self._parts.values() for each in parts))
        times = dict(zip(distinct, np.asarray(profile.ops(distinct)).tolist(), strict=True)) | {s: t for s, t in known.items()}
        return {place: sum(times[each] for each in parts) for place, parts in self._parts.items()}

    def whole(self, profile: CostProfile, known: Mapping[Signature, float]) -> float:
        """The predicted time of the graph as it is."""
        return profile.predict((signature for _, signature in self.network), known)


def priced(spaces: Sequence[LayerSpace], prices: Mapping[Key, float]) -> tuple[LayerSpace, ...]:
    """The same spaces, every candidate with its predicted time."""

    def one(candidate: Candidate) -> Candidate:
        return replace(candidate, latency=prices[key(candidate)])

    return tuple(replace(s, candidates=tuple(map(one, s.candidates)), excluded=None if s.excluded is None else one(s.excluded)) for s in spaces)


def paying(space: LayerSpace) -> LayerSpace:
    """The space without the candidates that are predicted to take longer than the layer as it is; a method that has no other is refused."""
    kept = tuple(c for c in space.candidates if c.method is None or c.latency < space.whole.latency)
    lost = {c.method for c in space.candidates} - {c.method for c in kept} - {None}
    reasons = {method: "slower on the device than the layer as it is" for method in sorted(filter(None, lost))}
    return replace(space, candidates=kept, refusals={**space.refusals, **reasons})
