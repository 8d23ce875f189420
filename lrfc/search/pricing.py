"""Predicted latencies of networks and candidates, from the workloads that a runtime executes."""

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
    """The identity of a candidate: layer, method and ranks."""
    return candidate.layer, candidate.method, candidate.ranks


@dataclass(frozen=True)
class Reading:
    """The functions that list a runtime's workloads; see ``lrfc.costs.workload`` for both.

    ``workloads``: of a graph. ``chain``: of the ops that replace one op of a graph.
    """

    workloads: Callable[[Graph], Iterable[tuple[str, Workload]]] = workload.workloads
    chain: Callable[[Graph, str, Sequence[Op]], Iterable[Workload]] = workload.chain


class Executed:
    """The workloads of a graph and of every candidate of its layers.

    They are listed once, and priced whenever prices change. ``graph``: the one that the candidates
    belong to. ``folded``: the same with its BatchNorms folded, as it is emitted.
    """

    def __init__(
        self, graph: Graph, folded: Graph, spaces: Sequence[LayerSpace], reading: Reading
    ) -> None:
        self.network = tuple(reading.workloads(folded))
        by_op: dict[str, list[Workload]] = {}
        for name, op in self.network:
            by_op.setdefault(name, []).append(op)
        self._by_op = {name: tuple(ops) for name, ops in by_op.items()}
        self._parts: dict[Key, tuple[tuple[Workload, ...], ...]] = {}
        # Layers of one shape have the same candidates.
        variants: dict[object, tuple[tuple[Workload, ...], ...]] = {}
        for space in spaces:
            source = graph.input_tensors(space.op.name)[0]
            self._parts[key(space.whole)] = self.ops(space.calls)
            padding = workload.padding_before(graph, space.calls[0])
            padded = padding and (padding.kind, graph.input_tensors(padding.name))
            shape = (
                tuple(reading.chain(graph, space.calls[0], [space.op])),
                space.op.attrs.get("padding"),
                padded,
                len(space.calls),
            )
            for candidate in space.candidates:
                if candidate.method is None:
                    continue
                variant = (shape, candidate.method, candidate.ranks)
                if variant not in variants:
                    stages = METHODS[candidate.method].outline(space.op, source, candidate.ranks)
                    variants[variant] = tuple(
                        tuple(reading.chain(graph, call, stages)) for call in space.calls
                    )
                self._parts[key(candidate)] = variants[variant]

    def calls(self, space: LayerSpace, candidate: Candidate) -> tuple[tuple[Workload, ...], ...]:
        """The workloads of a candidate, by call of its layer."""
        return self.ops(space.calls) if candidate.method is None else self._parts[key(candidate)]

    def ops(self, names: Sequence[str]) -> tuple[tuple[Workload, ...], ...]:
        """The workloads of ops of the unchanged graph; none for an op fused into another."""
        return tuple(self._by_op.get(name, ()) for name in names)

    def distinct(self) -> list[Workload]:
        """The distinct workloads of the graph and of all candidates."""
        candidates = (op for calls in self._parts.values() for parts in calls for op in parts)
        return list(dict.fromkeys((*(op for _, op in self.network), *candidates)))

    def price(self, profile: CostProfile, known: Mapping[Workload, float]) -> Mapping[Key, float]:
        """The predicted time of each candidate, in the profile's unit.

        ``known``: measured times, which replace predictions.
        """
        distinct = self.distinct()
        times = {**dict(zip(distinct, profile.ops(distinct).tolist(), strict=True)), **known}
        return {
            candidate: sum(times[op] for parts in calls for op in parts)
            for candidate, calls in self._parts.items()
        }

    def whole(self, profile: CostProfile, known: Mapping[Workload, float]) -> float:
        """The predicted time of the unchanged graph."""
        return profile.predict((op for _, op in self.network), known)


class Prices:
    """The times of ops on a device, in the unit of its profile: measured, or else predicted.

    ``known``: measured times. ``alone``: those of them that were not measured within a network.
    """

    def __init__(
        self,
        executed: Executed,
        profile: CostProfile,
        known: Mapping[Workload, float],
        alone: Mapping[Workload, float],
    ) -> None:
        self.executed, self._profile, self._known, self._alone = executed, profile, known, alone
        self._in_network = {op: time for op, time in known.items() if alone.get(op) != time}
        self._narrowed_times: dict[object, NDArray[np.float64]] = {}

    def time(self, names: Sequence[str]) -> float:
        """The time of ops of the unchanged graph."""
        return float(
            self._times(
                [op for parts in self.executed.ops(names) for op in parts], self._known
            ).sum()
        )

    def narrowed(
        self,
        parts: tuple[Workload, ...],
        shares: tuple[tuple[float, float], ...],
        *,
        carried: bool,
    ) -> NDArray[np.float64]:
        """The times of one call's ops, for each pair of kept fractions of its channels.

        See ``lrfc.costs.pruned_ops``. The time of an op that was measured within a network at that
        width is used as it is. Otherwise the time at full width is scaled as the times of ops
        alone, or the profile, change with the width.
        """
        case = parts, shares, carried
        if case not in self._narrowed_times:
            rows = [
                parts,
                *(
                    tuple(narrowed(parts, kept_in, kept_out, carried=carried))
                    for kept_in, kept_out in shares
                ),
            ]
            times = self._times([op for row in rows for op in row], self._alone).reshape(
                len(rows), len(parts)
            )
            times *= self._times(parts, self._known) / np.maximum(times[0], 1e-30)
            corrected = [
                [self._in_network.get(op, time) for op, time in zip(row, row_times, strict=True)]
                for row, row_times in zip(rows, times, strict=True)
            ]
            self._narrowed_times[case] = np.array(corrected).reshape(times.shape)[1:].sum(1)
        return self._narrowed_times[case]

    def _times(
        self, ops: Sequence[Workload], known: Mapping[Workload, float]
    ) -> NDArray[np.float64]:
        return np.array(
            [
                known.get(op, time)
                for op, time in zip(ops, self._profile.ops(ops).tolist(), strict=True)
            ]
        )


def priced(spaces: Sequence[LayerSpace], prices: Mapping[Key, float]) -> tuple[LayerSpace, ...]:
    """The same spaces, with the latency of every candidate."""

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
    """The space without the candidates that are predicted to be slower than the unchanged layer.

    A method without any other candidate is refused.
    """
    faster = tuple(
        c for c in space.candidates if c.method is None or c.latency < space.whole.latency
    )
    refused = {c.method for c in space.candidates} - {c.method for c in faster} - {None}
    reasons = dict.fromkeys(
        sorted(filter(None, refused)), "slower on the device than the unchanged layer"
    )
    return replace(space, candidates=faster, refusals={**space.refusals, **reasons})
