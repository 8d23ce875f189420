"""The Pareto front: exact, undominated, and by method."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest

from lrfc.config.build import Budget
from lrfc.costs.arena import arena
from lrfc.costs.tail import tail_bytes
from lrfc.costs.totals import totals
from lrfc.costs.workload import workloads
from lrfc.errors import UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import reachable
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import PlanMemory
from lrfc.search.pareto import by_method, by_ram, front
from lrfc.state import State
from tests import helpers
from tests.compression import explored, state_of


@cache
def state() -> State:
    return explored(state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12, 14)))))


def test_the_front_is_monotonic_and_ends_at_the_original() -> None:
    points = front(state(), points=6)
    macs, divergence = [p["macs"] for p in points], [p["predicted_divergence"] for p in points]
    assert macs == sorted(macs)
    assert divergence == sorted(divergence, reverse=True)
    assert macs[0] == reachable(state(), "macs")
    assert divergence[-1] == 0
    assert all(p["params"] <= totals(state().graph)["params"] for p in points)
    assert points[-1]["methods"] == {}
    assert sum(points[0]["methods"].values()) >= 3


def test_each_point_is_the_allocation_at_its_budget() -> None:
    for point in front(state(), points=5):
        selection = SelectRanks(max_macs=Budget(value=point["macs"], relative=False))(state()).fact(
            Selection
        )
        assert selection.divergence == pytest.approx(
            point["predicted_divergence"], rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize(
    "over", [("params",), ("ram",), ("macs", "params"), ("macs", "ram"), ("macs", "params", "ram")]
)
def test_no_point_beats_another(over) -> None:
    points = front(state(), over, points=16)
    quantities = (*over, "predicted_divergence")
    assert len(points) >= 2
    for one in points:
        assert not any(
            other is not one and all(other[q] <= one[q] for q in quantities) for other in points
        )
    if "ram" in over:
        assert max(p["ram"] for p in points) <= arena(state().original).peak_bytes
        assert min(p["ram"] for p in points) < arena(state().original).peak_bytes


def test_all_methods_together_are_never_worse_than_one() -> None:
    fronts = by_method(state(), points=8)
    assert {"all", "channel_svd", "spatial_svd", "tucker2"} <= set(fronts)
    for points in fronts.values():
        for one, two in pairwise(points):
            assert one["predicted_divergence"] > two["predicted_divergence"]
        for point in points:
            selection = SelectRanks(max_macs=Budget(value=point["macs"], relative=False))(
                state()
            ).fact(Selection)
            assert selection.divergence <= point["predicted_divergence"] * (1 + 1e-9)
    narrowed = {m for point in fronts["tucker2"] for m in point["methods"]}
    assert narrowed <= {"tucker2", "svd"}
    assert state().fact(DesignSpace).size > 50


def memory(tail: int = 0) -> PlanMemory:
    return PlanMemory(state().original, state().fact(DesignSpace).spaces, "fp32", tail)


def test_the_fronts_over_memory_end_at_the_original_and_fall() -> None:
    points = by_ram(state(), memory(), points=5, shares=(1.0, 0.6))
    whole, macs = arena(state().original).peak_bytes, totals(state().original)["macs"]
    for share in (1.0, 0.6):
        of_share = [point for point in points if point["share"] == share]
        assert len(of_share) >= 2
        for one, two in pairwise(of_share):
            assert one["ram"] < two["ram"]
            assert one["predicted_divergence"] > two["predicted_divergence"]
        assert all(point["macs"] <= share * macs and point["of"] == "macs" for point in of_share)
        assert all(point["ram"] <= whole and "tail" not in point for point in of_share)
    assert points[0]["ram"] == memory().least
    assert [point["predicted_divergence"] for point in points if point["methods"] == {}] == [0]


def test_a_tail_counts_with_the_memory_and_grows_with_the_factors() -> None:
    points = by_ram(state(), memory(5_000), points=5, shares=(1.0,))
    for point in points:
        assert point["tail"] == 5_000 if point["methods"] == {} else point["tail"] > 5_000
    assert any(point["tail"] > 5_000 for point in points)
    state_of_plan = Factorize()(SelectRanks(max_macs=Budget(value=0.5, relative=True))(state()))
    chosen = state_of_plan.fact(Selection).chosen
    before, after = (
        tail_bytes(workload for _, workload in workloads(fold_batchnorm(graph)))
        for graph in (state().original, state_of_plan.graph)
    )
    assert memory(before).bytes(chosen)[1] == after


def test_an_unknown_quantity_is_refused() -> None:
    with pytest.raises(
        UsageError, match="cannot be drawn over 'watts'; choose from macs, params, ram"
    ):
        front(state(), ("macs", "watts"))
