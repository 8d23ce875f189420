"""The default limit on activation memory: no plan needs more than the original."""

from __future__ import annotations

from functools import cache

import pytest

from lrfc.config.build import BuildConfig
from lrfc.config.precision import of
from lrfc.costs.arena import arena
from lrfc.engine.growth import limited
from lrfc.ir.fold import fold_batchnorm
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import plan, run
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from tests import helpers
from tests.compression import explored, state_of
from tests.test_budgets import share


@cache
def state() -> State:
    return explored(state_of(helpers.graph_of(helpers.conv_net(filters=(12, 16, 20)))))


def peak(given: State, precision: str, macs: float) -> int:
    found = run(given, plan([SelectRanks(max_macs=share(macs)), Factorize()], known=(DesignSpace,)))
    return arena(fold_batchnorm(found.graph), of(precision).activation).peak_bytes


def choices(given: State) -> int:
    return sum(len(space.candidates) for space in given.fact(DesignSpace).spaces)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_plan_needs_more_than_the_original(precision) -> None:
    whole = arena(state().original, of(precision).activation).peak_bytes
    within = limited(state(), precision, 0)
    assert choices(within) < choices(state())
    assert all(peak(within, precision, macs) <= whole for macs in (0.8, 0.6))
    assert peak(state(), precision, 0.5) > whole  # without the limit it grows


def test_the_allowed_growth_and_no_limit() -> None:
    assert limited(state(), "fp32", None) is state()
    whole = arena(state().original).peak_bytes
    some = limited(state(), "fp32", whole // 4)
    assert choices(limited(state(), "fp32", 0)) < choices(some) < choices(state())
    assert choices(limited(state(), "fp32", 100 * whole)) == choices(state())


def test_none_is_no_budget() -> None:
    config = BuildConfig(max_ram="none", max_macs="50%")
    assert config.max_ram == BuildConfig(max_ram=" None ").max_ram == "none"
    assert set(config.budgets) == {"macs"}
    with pytest.raises(ValueError, match=r"'lots' is not a ram budget.*; none lifts the limit"):
        BuildConfig(max_ram="lots")
    with pytest.raises(ValueError, match="is not a macs budget"):
        BuildConfig(max_macs="none")
