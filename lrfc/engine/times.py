"""Latencies known of a device while plans are measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lrfc.costs.latency import CostProfile, corrected
from lrfc.costs.workload import Workload
from lrfc.ir.graph import Graph
from lrfc.passes.price_layers import PriceLayers, executed
from lrfc.pruning.costs import narrower
from lrfc.pruning.kept_fractions import Shares
from lrfc.pruning.space import FilterSpace
from lrfc.search.pricing import Executed, Reading
from lrfc.state import State
from lrfc.system.spans import span
from lrfc.targets.devices.speed import Ratio


class Measured(Protocol):
    """The measurement of a plan; see ``lrfc.engine.benchmark.Timing``."""

    @property
    def ratio(self) -> Ratio: ...  # noqa: D102
    @property
    def time(self) -> float: ...  # noqa: D102
    @property
    def ops(self) -> tuple[Workload, ...]: ...  # noqa: D102
    @property
    def known(self) -> Mapping[Workload, float]: ...  # noqa: D102


class Measures(Protocol):
    """Measures plans on the device; see ``lrfc.engine.benchmark.Bench``."""

    time: float
    ms_per_unit: float
    ops: tuple[Workload, ...]
    known: Mapping[Workload, float]
    reading: Reading

    def __call__(self, graph: Graph) -> Measured: ...  # noqa: D102
    def prices(self, workloads: Sequence[Workload]) -> Mapping[Workload, float]: ...  # noqa: D102


@dataclass(frozen=True)
class Times:
    """The known latencies of a device, from which those of candidates are predicted.

    All are in the unit of the profile. ``seen``: the workloads and the time of each measured
    network. ``known``: times of single ops in a network. ``alone``: times of single ops outside a
    network.
    """

    profile: CostProfile
    executed: Executed
    ms_per_unit: float
    alone: Mapping[Workload, float]
    known: Mapping[Workload, float]
    seen: tuple[tuple[tuple[Workload, ...], float], ...]

    def with_measured(self, measured: Measured) -> Times:
        """These times and those of another measurement."""
        seen = (*self.seen, (measured.ops, measured.time))
        return replace(self, seen=seen, known={**self.known, **measured.known})

    def priced(self, state: State, *, slower: bool) -> State:
        """The state with a predicted latency for each candidate.

        ``slower``: keep the candidates that are slower than their layer.
        """
        profile = corrected(self.profile, self.seen)
        unit, ops = self.ms_per_unit, self.executed
        return PriceLayers(profile, self.known, self.alone, unit, slower, ops)(state)


@span("latencies of ops")
def times_of(state: State, bench: Measures, profile: CostProfile) -> Times:
    """The times known before a plan is measured: of the original, and of single ops."""
    ops, filters = executed(state, bench.reading), state.known(FilterSpace)
    workloads = ops.distinct()
    if filters is not None:
        workloads += narrower(state.graph, Shares(state.graph, filters), ops)
    alone = bench.prices(workloads)
    known = {**alone, **bench.known}
    return Times(profile, ops, bench.ms_per_unit, alone, known, ((bench.ops, bench.time),))
