"""The tuning loop on simulated devices: measurements correct the predicted latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import pytest

from lrfc.config.build import Budget, Drop
from lrfc.costs import fitting
from lrfc.costs.latency import CostProfile
from lrfc.costs.workload import Workload, workloads
from lrfc.engine.tuning import AGREE, ROUNDS, Loop, Plan, Wish
from lrfc.errors import UnreachableError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.passes.factorize import Factorize
from lrfc.passes.price_layers import PriceLayers
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import fixed
from lrfc.search.facts import DesignSpace, Price, costs
from lrfc.search.pricing import Reading
from lrfc.state import Progress, State
from lrfc.targets.devices.speed import Ratio
from lrfc.targets.tflite.target import TFLite
from tests.compression import explored, learnt


@cache
def state() -> State:
    # Marked as synthetic, so that no plan is run on data: the loop over latencies does not need it.
    found = explored(learnt())
    return replace(found, data=replace(found.data, synthetic=True))


@cache
def believed() -> CostProfile:
    """A cost profile by which an op takes a constant time and a time for each MAC."""
    ops = [each for _, each in workloads(fold_batchnorm(state().original))]
    for space in state().fact(DesignSpace).spaces:
        for candidate in space.candidates[1::7]:
            graph = state().original.copy()
            graph.splice(
                space.op.name, space.factors[candidate.method or ""].stages(candidate.ranks)
            )
            ops += [each for _, each in workloads(fold_batchnorm(graph))]
    return fitting.fit(
        [(op, 0.001 + 1e-6 * op.macs) for op in dict.fromkeys(ops)],
        device="made",
        format="tflite",
        precision="fp32",
    )


@dataclass(frozen=True)
class Timing:
    ratio: Ratio
    time: float
    ops: tuple[Workload, ...]
    known: Mapping[Workload, float] = field(default_factory=dict)


class Device:
    """A simulated device, whose latencies differ from its cost profile."""

    def __init__(self, *, depthwise: float = 1.0, pace: float = 1.0) -> None:
        self._depthwise, self._pace = depthwise, pace
        self.reading, self.ms_per_unit = Reading(), 1.0
        self.known: Mapping[Workload, float] = {}
        self.tried: list[Graph] = []
        self.ops = self._ops(state().original)
        self.time = self._time(self.ops)

    def __call__(self, graph: Graph) -> Timing:
        self.tried.append(graph)
        ops = self._ops(graph)
        ratio = self.time / self._time(ops)
        return Timing(Ratio(ratio, ratio, ratio), self._time(ops), ops)

    def prices(self, workloads: Sequence[Workload]) -> Mapping[Workload, float]:
        return {}

    def _ops(self, graph: Graph) -> tuple[Workload, ...]:
        return tuple(each for _, each in workloads(fold_batchnorm(graph)))

    def _time(self, ops: Sequence[Workload]) -> float:
        return self._pace * sum(
            (self._depthwise if op.kind == "depthwise" else 1.0) * (0.001 + 1e-6 * op.macs)
            for op in ops
        )


def share(value: float) -> Budget:
    return Budget(value=value, relative=True)


def settled(device: Device, wish: Wish, allowed: float | None = None) -> Plan:
    return Loop(state(), TFLite(), device, believed()).settle(wish, allowed)


def chosen(found: Plan) -> Selection:
    return found.select(found.state).fact(Selection)


def test_prices_are_scaled_by_the_measured_original() -> None:
    found = settled(Device(pace=3.0), Wish(SelectRanks(max_macs=share(0.6))))
    assert found.rounds[0].predicted_ms == pytest.approx(found.rounds[0].measured_ms, rel=0.15)
    assert found.allowed is None


@pytest.mark.parametrize("pace", [0.3, 1.0, 4.0])
def test_a_latency_budget_is_met_by_measured_times(pace) -> None:
    device = Device(depthwise=3.0, pace=pace)
    found = settled(device, Wish(SelectRanks(max_latency=share(0.7))))
    assert 1 <= len(found.rounds) <= ROUNDS
    graph = Factorize()(found.select(found.state)).graph
    assert device(graph).time <= 0.7 * device.time * (1 + AGREE)
    last = found.rounds[-1]
    assert last.predicted_ms is not None
    assert last.measured_ms is not None


def test_layers_that_are_slow_on_the_device_are_not_factorized() -> None:
    quick, slow = Device(depthwise=0.01), Device(depthwise=200.0)
    wish = Wish(SelectRanks(max_macs=share(0.6), methods=("cp", "spatial_svd")))
    assert "cp" in {c.method for c in chosen(settled(quick, wish)).chosen}
    found = settled(slow, wish)
    assert "cp" not in {c.method for c in chosen(found).chosen}
    assert slow(Factorize()(found.select(found.state)).graph).ratio.median > 1


def test_an_objective_uses_all_of_the_divergence_that_is_allowed() -> None:
    device = Device()
    plain = settled(device, Wish(SelectRanks(max_macs=share(0.5))))
    allowed = chosen(plain).divergence
    found = settled(
        device, Wish(SelectRanks(), objective="latency", max_drop=Drop(value=0.05)), allowed
    )
    assert chosen(found).divergence <= allowed * (1 + 1e-6)
    times = [device(Factorize()(each.select(each.state)).graph).time for each in (found, plain)]
    assert times[0] <= times[1] * (1 + 1e-6)


def test_the_allowed_divergence_is_found_if_it_is_not_given() -> None:
    found = settled(Device(), Wish(SelectRanks(), objective="macs", max_drop=Drop(value=0.05)))
    assert found.allowed is not None
    assert 0 < chosen(found).divergence <= found.allowed * (1 + 1e-6)
    assert found.objective == "macs"
    assert found.max_drop == Drop(value=0.05)


def test_the_least_memory_within_the_divergence() -> None:
    wish = Wish(SelectRanks(), objective="ram", max_drop=Drop(value=0.05))
    found = settled(Device(), wish, allowed=0.05)
    assert chosen(found).divergence <= 0.05 * (1 + 1e-6)


def test_a_budget_that_cannot_be_met() -> None:
    with pytest.raises(UnreachableError) as caught:
        settled(Device(), Wish(SelectRanks(max_latency=share(0.01))))
    assert caught.value.quantity == "latency"
    assert caught.value.least > caught.value.limit


def test_a_budget_that_needs_slower_layers_gets_them() -> None:
    lines: list[str] = []
    loud = replace(state(), progress=Progress(log=lines.append))
    device = Device(depthwise=1.0, pace=1.0)
    overhead = fitting.fit(
        [(op, 10.0) for op in believed_ops()], device="made", format="tflite", precision="fp32"
    )
    found = Loop(loud, TFLite(), device, overhead).settle(Wish(SelectRanks(max_macs=share(0.4))))
    assert any("are slower than their layers" in line for line in lines)
    assert any(c.method is not None for c in chosen(found).chosen)


def believed_ops() -> list[Workload]:
    return [each for _, each in workloads(fold_batchnorm(state().original))] * 3


def test_prices_add_up_to_the_network() -> None:
    priced = PriceLayers(believed())(state())
    outside, spaces = fixed(priced)["latency"], priced.fact(DesignSpace).spaces
    assert outside + sum(s.whole.latency for s in spaces) == pytest.approx(costs(priced)["latency"])
    assert priced.fact(Price).whole == pytest.approx(
        believed().predict(each for _, each in workloads(fold_batchnorm(state().original)))
    )
    found = SelectRanks(max_latency=share(0.6))(priced)
    graph = fold_batchnorm(Factorize()(found).graph)
    predicted = outside + sum(c.latency for c in found.fact(Selection).chosen)
    assert predicted == pytest.approx(
        believed().predict(each for _, each in workloads(graph)), rel=1e-6
    )
    assert predicted <= 0.6 * priced.fact(Price).whole * (1 + 1e-6)
    assert all(
        c.latency < s.whole.latency for s in spaces for c in s.candidates if c.method is not None
    )
