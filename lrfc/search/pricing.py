"""What a network and each candidate take on a device, predicted from the workloads of the ops that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lrfc.costs import workload
from lrfc.costs.latency import CostProfile
from lrfc.costs.pruned_ops import narrowed
from lrfc.costs.workload import Workload
from lrfc.factorization import METHODS
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.search.candidates import Candidate, LayerSpace

Key = tuple[str, str | None, tuple[int, ...]]


def key(candidate: Candidate) -> Key:
    """What tells a candidate from all others."""
    return candidate.layer, candidate.method, candidate.ranks


@dataclass(frozen=True)
class Reading:
    """What a runtime executes of a graph, and of a chain of ops in the place of one; see ``lrfc.costs.workload``."""

    workloads: Callable[[Graph], Iterable[tuple[str, Workload]]] = workload.workloads
    chain: Callable[[Graph, str, Sequence[Op]], Iterable[Workload]] = workload.chain


class Executed:
    """The ops that a runtime executes for a graph, and for every candidate of its layers: found once, priced as often as the prices change.

    ``graph`` is the one that the candidates are of; ``folded`` the same with its BatchNorms folded,
    as it is emitted. ``reading``: what the runtime executes of a graph.
    """

    def __init__(
        self, graph: Graph, folded: Graph, spaces: Sequence[LayerSpace], reading: Reading
    ) -> None:
        self.network = tuple(reading.workloads(folded))
        own: dict[str, list[Workload]] = {}
        for name, each in self.network:
            own.setdefault(name, []).append(each)
        self._own = {name: tuple(ops) for name, ops in own.items()}
        self._parts: dict[Key, tuple[tuple[Workload, ...], ...]] = {}
        alike: dict[
            object, tuple[tuple[Workload, ...], ...]
        ] = {}  # layers of one shape have the same candidates
        for space in spaces:
            source = graph.input_tensors(space.op.name)[0]
            self._parts[key(space.whole)] = self.ops(space.calls)
            before = graph.operands(space.calls[0])[0].op
            padded = (graph.op(before).kind, graph.input_tensors(before))
            like = (
                tuple(reading.chain(graph, space.calls[0], [space.op])),
                space.op.attrs.get("padding"),
                padded,
                len(space.calls),
            )
            for candidate in space.candidates:
                if candidate.method is None:
                    continue
                place = (like, candidate.method, candidate.ranks)
                if place not in alike:
                    stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
                    alike[place] = tuple(
                        tuple(reading.chain(graph, call, stages)) for call in space.calls
                    )
                self._parts[key(candidate)] = alike[place]

    def calls(self, space: LayerSpace, candidate: Candidate) -> tuple[tuple[Workload, ...], ...]:
        """What is executed for a candidate of these or of another layer, call by call."""
        return self.ops(space.calls) if candidate.method is None else self._parts[key(candidate)]

    def ops(self, names: Sequence[str]) -> tuple[tuple[Workload, ...], ...]:
        """What is executed for ops of the graph as it is; nothing for one that is fused into another."""
        return tuple(self._own.get(name, ()) for name in names)

    def distinct(self) -> list[Workload]:
        """Every op of the graph and of a candidate once."""
        candidates = (each for calls in self._parts.values() for parts in calls for each in parts)
        return list(dict.fromkeys((*(each for _, each in self.network), *candidates)))

    def price(self, profile: CostProfile, known: Mapping[Workload, float]) -> Mapping[Key, float]:
        """The predicted time of each candidate, in the profile's unit.

        ``known``: measured times of ops, taken as they are.
        """
        distinct = self.distinct()
        times = {**dict(zip(distinct, profile.ops(distinct).tolist(), strict=True)), **known}
        return {
            place: sum(times[each] for parts in calls for each in parts)
            for place, calls in self._parts.items()
        }

    def whole(self, profile: CostProfile, known: Mapping[Workload, float]) -> float:
        """The predicted time of the graph as it is."""
        return profile.predict((each for _, each in self.network), known)


class Prices:
    """What ops take on a device, in the unit of its profile: as it predicts them, and as they were measured where they are ``known``.

    ``alone``: the times of ops that were not measured in a network.
    """

    def __init__(
        self,
        executed: Executed,
        profile: CostProfile,
        known: Mapping[Workload, float],
        alone: Mapping[Workload, float],
    ) -> None:
        self.executed, self._profile, self._known, self._alone = executed, profile, known, alone
        self._seen = {each: time for each, time in known.items() if alone.get(each) != time}
        self._found: dict[object, NDArray[np.float64]] = {}

    def time(self, names: Sequence[str]) -> float:
        """The time of ops of the graph as it is."""
        return float(
            self._times(
                [each for parts in self.executed.ops(names) for each in parts], self._known
            ).sum()
        )

    def narrowed(
        self,
        parts: tuple[Workload, ...],
        shares: tuple[tuple[float, float], ...],
        *,
        carried: bool,
    ) -> NDArray[np.float64]:
        """The time of one call's ops at each of the shares of channels that are left; see ``lrfc.costs.pruned_ops``.

        An op that was seen in a network at that width takes what it took there. Otherwise the times
        of ops alone, or the profile, say how the time at full width changes with the width.
        """
        place = parts, shares, carried
        if place not in self._found:
            rows = [
                parts,
                *(tuple(narrowed(parts, read, made, carried=carried)) for read, made in shares),
            ]
            times = self._times([each for row in rows for each in row], self._alone).reshape(
                len(rows), len(parts)
            )
            times *= self._times(parts, self._known) / np.maximum(times[0], 1e-30)
            exact = [
                [self._seen.get(each, time) for each, time in zip(row, own, strict=True)]
                for row, own in zip(rows, times, strict=True)
            ]
            self._found[place] = np.array(exact).reshape(times.shape)[1:].sum(1)
        return self._found[place]

    def _times(
        self, ops: Sequence[Workload], known: Mapping[Workload, float]
    ) -> NDArray[np.float64]:
        return np.array(
            [
                known.get(each, time)
                for each, time in zip(ops, self._profile.ops(ops).tolist(), strict=True)
            ]
        )


def priced(spaces: Sequence[LayerSpace], prices: Mapping[Key, float]) -> tuple[LayerSpace, ...]:
    """The same spaces, every candidate with its predicted time."""

    def one(candidate: Candidate) -> Candidate:
        return replace(candidate, latency=prices[key(candidate)])

    return tuple(
        replace(
            s,
            candidates=tuple(map(one, s.candidates)),
            excluded=None if s.excluded is None else one(s.excluded),
        )
        for s in spaces
    )


def paying(space: LayerSpace) -> LayerSpace:
    """The space without the candidates that are predicted to take longer than the layer as it is; a method that has no other is refused."""
    kept = tuple(c for c in space.candidates if c.method is None or c.latency < space.whole.latency)
    lost = {c.method for c in space.candidates} - {c.method for c in kept} - {None}
    reasons = dict.fromkeys(
        sorted(filter(None, lost)), "slower on the device than the layer as it is"
    )
    return replace(space, candidates=kept, refusals={**space.refusals, **reasons})
