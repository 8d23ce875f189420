"""Plans whose files keep within a limit on RAM, by short tails and by patches."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import lrfc
from lrfc.config.build import Budget, BuildConfig
from lrfc.costs.arena import arena
from lrfc.costs.overwriting import overwriting
from lrfc.costs.totals import totals
from lrfc.engine.candidate import _unmet
from lrfc.engine.growth import small
from lrfc.engine.judge import Judge
from lrfc.engine.judgement import FULL, Depth
from lrfc.engine.patches import Limit
from lrfc.engine.plans import rewritten, selected
from lrfc.engine.ram_limit import HINT, Filters, planned
from lrfc.engine.ram_search import Search
from lrfc.engine.tuning import Loop, Plan, Wish
from lrfc.errors import BudgetError, UnreachableError
from lrfc.ir.batch import Batch
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.select_ranks import SelectRanks
from lrfc.protocols import Artifact
from lrfc.pruning.facts import Selection
from lrfc.pruning.memory import PeakMemory
from lrfc.pruning.space import FilterSpace
from lrfc.results.manifest import Figures
from lrfc.search.facts import DesignSpace
from lrfc.search.memory import PlanMemory, with_tails
from lrfc.state import Progress, State
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.builds import built
from tests.compression import explored, state_of

TARGET = TFLite("int8", int8_io=True).with_plan()


@cache
def state() -> State:
    return with_tails(explored(state_of(helpers.graph_of(helpers.residual(filters=16)))))


def share(value: float) -> Budget:
    return Budget(value=value, relative=True)


def tail_of(given: State) -> int:
    return TARGET.tail_bytes(fold_batchnorm(rewritten(given)))


def added(given: State) -> int:
    return sum(c.tail for c in given.fact(Selection).chosen)


def test_candidates_add_to_the_tail_what_their_layers_add() -> None:
    chosen = selected(state(), SelectRanks(max_macs=share(0.5)))
    assert added(chosen) == tail_of(chosen) - TARGET.tail_bytes(state().original) > 0


@pytest.mark.parametrize("most", [0.7, 0.5])
def test_a_limit_on_the_tail_leaves_the_best_within_it(most: float) -> None:
    select = SelectRanks(max_macs=share(0.6))
    free = selected(state(), select)
    limit = int(most * added(free))
    short = selected(state(), replace(select, max_tail=limit))
    assert added(short) <= limit < added(free)
    costs = [sum(c.divergence for c in s.fact(Selection).chosen) for s in (free, short)]
    assert costs[0] < costs[1]
    macs = [totals(rewritten(s))["macs"] for s in (free, short)]
    assert max(macs) <= 0.6 * totals(state().original)["macs"]
    with pytest.raises(BudgetError, match="tail"):
        selected(state(), replace(select, max_tail=0))


def alive_bytes(graph: Graph) -> int:
    """The most bytes that are alive at one time, where additions write over an input."""
    return overwriting(graph, arena(graph, 1)).peak_bytes


@dataclass(frozen=True)
class Weighed:
    """A target whose files hold their need of RAM: their tail. Patches add ``macs``.

    ``alive``: the bytes that are alive at one time count, too, but for those that patches save.
    """

    macs: int = 0
    alive: bool = False
    saved: int = 0
    suffix: str = ".txt"
    precision: str = "int8"

    def emit(self, graph: Graph, path: Path, calibration: Batch) -> Artifact:
        path.write_text(str(self.need_of(graph)))
        return Artifact(path, "tflite", "int8", (), self.macs)

    def need_of(self, graph: Graph) -> int:
        alive = alive_bytes(graph) - self.saved if self.alive else 0
        return TARGET.tail_bytes(graph) + alive

    def need_bytes(self, path: Path) -> int:
        return int(path.read_text())

    def tail_bytes(self, graph: Graph) -> int:
        return TARGET.tail_bytes(graph)


def plan_of(select: SelectRanks, given: State | None = None) -> Plan:
    chosen = selected(given or state(), select)
    return Plan(chosen, select, (), None, None, None, chosen.fact(DesignSpace))


def search(limit: float, macs: float = inf, patches: int = 0) -> Search:
    return Search(Limit(Weighed(patches), limit, asked=True, patches=True), macs)


def test_a_plan_within_the_limit_stays() -> None:
    plan = plan_of(SelectRanks(max_macs=share(0.6)))
    assert search(tail_of(plan.state)).kept(plan).plan is plan


def test_a_plan_with_too_long_a_tail_gets_a_shorter_one() -> None:
    plan = plan_of(SelectRanks(max_macs=share(0.6)))
    limit = tail_of(plan.state) - 1
    kept = search(limit).kept(plan)
    assert kept.need == tail_of(kept.plan.state) <= limit
    # The selection is that of its constraints, which the build repeats.
    again = selected(kept.plan.state, kept.plan.select).fact(Selection)
    assert again.chosen == kept.plan.state.fact(Selection).chosen


def test_a_limit_out_of_reach_gives_the_least() -> None:
    plan = plan_of(SelectRanks(max_macs=share(0.6)))
    kept = search(0).kept(plan)
    assert not search(0).within(kept)
    assert 0 < kept.need < tail_of(plan.state)


def test_the_next_tail_is_shorter_by_what_the_last_plan_exceeds_the_limit_by() -> None:
    plan = plan_of(SelectRanks(minimise="macs", max_divergence=1.0))
    limit = int(0.5 * added(plan.state)) + TARGET.tail_bytes(state().original)
    kept = search(limit).kept(plan)
    assert search(limit).within(kept)
    assert kept.plan.select.max_tail == limit - TARGET.tail_bytes(state().original)
    assert 0 < added(kept.plan.state) <= kept.plan.select.max_tail


def test_activations_and_tail_share_the_limit_so_that_the_plan_is_the_best() -> None:
    plan, tail = plan_of(SelectRanks(max_macs=share(0.6))), TARGET.tail_bytes(state().original)
    rest = int(0.98 * Weighed(alive=True).need_of(fold_batchnorm(rewritten(plan.state)))) - tail
    limit = Limit(Weighed(alive=True), rest + tail, asked=True, patches=False)
    kept = Search(limit).kept(plan)
    assert tail < kept.need <= limit.bytes
    room = min(
        rest - PlanMemory(state().original, state().fact(DesignSpace).spaces, "int8", tail).least,
        added(plan.state),
    )
    others = []
    for most in (room, room // 2, room // 4):
        with suppress(BudgetError):
            select = replace(plan.select, max_tail=most)
            others.append(selected(small(state(), "int8", rest - most), select))
    found = [other.fact(Selection).divergence for other in others]
    assert len(set(found)) > 1
    assert kept.divergence <= min(found)


def test_layers_that_keep_too_much_alive_are_factorized() -> None:
    memory = PlanMemory(state().original, state().fact(DesignSpace).spaces, "int8", 1)
    limit = memory.whole - 1
    narrow = small(state(), "int8", limit, unchanged=False)
    chosen = selected(narrow, SelectRanks(max_macs=share(1.0))).fact(Selection).chosen
    assert memory.bytes(chosen)[0] <= limit
    assert memory.bytes([space.whole for space in narrow.fact(DesignSpace).spaces])[0] > limit
    with pytest.raises(BudgetError, match=r"no candidate of .* by filters alone is within"):
        selected(narrow, SelectRanks(methods=()))
    with pytest.raises(BudgetError, match=r"needs at least .* bytes, 1 are allowed"):
        small(state(), "int8", 1, unchanged=False)


def test_of_the_plans_within_the_limit_the_closest_is_taken() -> None:
    """Their predicted divergences are near each other; a judge that runs them tells them apart."""
    plan, tail = plan_of(SelectRanks(max_macs=share(0.6))), TARGET.tail_bytes(state().original)
    need = Weighed(alive=True).need_of(fold_batchnorm(rewritten(plan.state)))
    limit = Limit(Weighed(alive=True), 0.98 * need, asked=True, patches=False)
    seen: dict[tuple[object, ...], int] = {}

    def judge(planned: State, depth: Depth = FULL) -> SimpleNamespace:
        """The later a plan comes, the better it is."""
        number = seen.setdefault(planned.fact(Selection).network, len(seen))
        return SimpleNamespace(divergence=1 / (1 + number))

    kept = Search(limit, judge=lambda: cast("Judge", judge)).kept(plan)
    predicted = Search(limit).kept(plan)
    assert len(seen) > 1
    assert kept.plan.state.fact(Selection).network == list(seen)[-1]
    assert predicted.divergence < kept.divergence
    assert tail < kept.need <= limit.bytes
    # Where another quantity is minimised, nothing is run.
    least = replace(plan, objective="macs")
    alike = Search(limit, judge=lambda: pytest.fail("a plan was run")).kept(least)
    assert alike.macs <= kept.macs


def test_the_last_plan_adds_nothing_to_the_tail() -> None:
    plan = plan_of(SelectRanks(minimise="macs", max_divergence=1.0))
    whole = TARGET.tail_bytes(state().original)
    kept = replace(search(whole), limit=replace(search(whole).limit, patches=False)).kept(plan)
    assert kept.need == whole
    assert not added(kept.plan.state)


def test_the_macs_of_patches_count() -> None:
    whole = totals(state().original)["macs"]
    plan = plan_of(SelectRanks(max_macs=share(0.7)))
    looking = search(tail_of(plan.state), 0.7 * whole, whole // 10)
    kept = looking.kept(plan)
    assert looking.within(kept)
    assert kept.macs == totals(rewritten(kept.plan.state))["macs"] + whole // 10 <= 0.7 * whole
    too_many = search(tail_of(plan.state), 0.7 * whole, whole).kept(plan)
    assert too_many.macs > 0.7 * whole


# -- in the tuning loop ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Settling(Loop):
    """A loop that needs no measurements. It meets no --max-ram."""

    def settle(self, wish: Wish, allowed: float | None = None) -> Plan:
        if wish.max_ram is not None:
            raise UnreachableError("ram", wish.max_ram, 1, 2, "as no layer is small enough")
        return plan_of(wish.select, self.state)


def settled(
    limit: Limit | None, found: Filters | None = None, start: State | None = None, **wish: Any
) -> tuple[Plan, list[str]]:
    """The plan of the loop within a limit, and the lines of the log."""
    lines: list[str] = []
    logged = replace(start or state(), progress=Progress(log=lines.append))
    loop = Settling(logged, TARGET, None, None, 0)
    wished = Wish(SelectRanks(max_macs=share(0.6)), **wish)
    return planned(loop, wished, None, limit, found), lines


@cache
def filters() -> FilterSpace:
    return ExploreFilters(images=16)(state()).fact(FilterSpace)


def test_without_a_limit_the_loop_decides() -> None:
    plan, lines = settled(None)
    assert (plan.select.max_tail, lines) == (None, [])


def test_patches_come_before_small_candidates() -> None:
    free, _ = settled(None)
    limit = Limit(Weighed(), tail_of(free.state) - 1, asked=True, patches=True)
    plan, lines = settled(limit, max_ram=share(0.7))
    assert tail_of(plan.state) <= limit.bytes
    assert re.search(r"predicted divergence 0\.\d+, without this limit 0\.\d+$", *lines)
    without = replace(limit, patches=False)
    with pytest.raises(UnreachableError, match="no layer is small enough"):
        settled(without, max_ram=share(0.7))


def test_a_limit_that_nothing_reaches_is_said() -> None:
    limit = Limit(Weighed(), 10, asked=True, patches=True)
    plan, lines = settled(limit, max_ram=share(0.1))
    least = f"the least is {tail_of(plan.state):,}{HINT}"
    assert lines[0] == f"  no plan was found within 10 bytes of RAM; {least}"
    assert len(lines) == 2


def test_no_plan_exceeds_the_default_limit() -> None:
    limit = Limit(Weighed(), 10, asked=False, patches=True)
    with pytest.raises(UnreachableError, match=r"10 bytes are allowed.*--max-ram none.*--prune"):
        settled(limit)


def test_filters_are_cut_where_no_plan_by_ranks_is_within_the_limit() -> None:
    target = Weighed(alive=True)
    limit = Limit(target, 0.8 * target.need_of(state().original), asked=False, patches=True)
    with pytest.raises(UnreachableError, match="are allowed"):
        settled(limit)
    plan, lines = settled(limit, filters)
    assert plan.state.fact(Selection).keeps
    assert target.need_of(fold_batchnorm(rewritten(plan.state))) <= limit.bytes
    assert totals(rewritten(plan.state))["macs"] <= 0.6 * totals(state().original)["macs"]
    assert lines[0].endswith("plans that cut filters are tried")
    # There may be none to cut, and those to cut may not be enough.
    few = replace(filters(), choices={})
    for none in (lambda: None, lambda: few):
        with pytest.raises(UnreachableError, match="are allowed"):
            settled(limit, none)


def test_where_patches_save_memory_fewer_filters_are_cut() -> None:
    whole = alive_bytes(state().original)
    target = Weighed(alive=True, saved=whole // 5)
    limit = Limit(target, 0.7 * Weighed(alive=True).need_of(state().original), True, False)
    plans = [settled(replace(limit, patches=p), filters)[0].state for p in (False, True)]
    assert all(target.need_of(fold_batchnorm(rewritten(plan))) <= limit.bytes for plan in plans)
    assert all(plan.fact(Selection).keeps for plan in plans)
    without, patched = (plan.fact(Selection).divergence for plan in plans)
    assert patched < without


def test_filters_are_tried_where_ranks_alone_lose_much(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Weighed(alive=True)
    limit = Limit(target, target.need_of(state().original), asked=False, patches=True)
    assert not settled(limit, lambda: pytest.fail("filters were explored"))[0].state.known(
        FilterSpace
    )
    monkeypatch.setattr("lrfc.engine.ram_limit.COSTLY", 0.0)
    plan, lines = settled(limit, filters)
    said = lines.index(
        "  ranks alone lose too much within the limit on RAM: plans that cut filters are tried"
    )
    assert sum("judged quickly" in line for line in lines[said:]) == 2, "with filters and without"
    assert target.need_of(fold_batchnorm(rewritten(plan.state))) <= limit.bytes


def test_filters_that_are_known_are_cut_where_the_most_is_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Weighed(alive=True)
    limit = Limit(target, target.need_of(state().original), asked=False, patches=True)
    monkeypatch.setattr("lrfc.engine.ram_limit.COSTLY", 0.0)
    plan, lines = settled(limit, filters, state().with_fact(filters()))
    said = "  these plans lose too much within the limit on RAM: plans that cut filters are tried"
    assert said in lines
    assert plan.state.fact(Selection).keeps
    assert target.need_of(fold_batchnorm(rewritten(plan.state))) <= limit.bytes


def test_a_search_with_filters_that_takes_too_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Weighed(alive=True)
    limit = Limit(target, target.need_of(state().original), asked=False, patches=True)
    monkeypatch.setattr("lrfc.engine.ram_limit.COSTLY", 0.0)
    monkeypatch.setattr("lrfc.pruning.milp.SECONDS", 1e-9)
    plan, lines = settled(limit, filters)
    assert not plan.state.fact(Selection).removed
    said = [line for line in lines if "judged" not in line]
    assert said[1].startswith("  no choice of ranks and filters within")
    assert said[1].endswith("was found in 1e-09 s")
    assert said[2] == "  no such plan within the limit was found"


def test_filters_are_cut_for_a_limit_that_was_asked_for() -> None:
    limit = Limit(Weighed(), 1, asked=True, patches=False)
    with pytest.raises(UnreachableError, match="no layer is small enough"):
        settled(limit, filters, max_ram=share(0.7))
    asked: list[str] = []
    with pytest.raises(UnreachableError, match="no layer is small enough"):
        settled(limit, lambda: asked.append("filters"), max_ram=share(0.7))
    assert asked == ["filters"]


def test_a_tail_is_bounded_with_filters_too() -> None:
    select = SelectRanks(max_macs=share(0.6), max_tail=1)
    chosen = selected(state().with_fact(filters()), select)
    assert chosen.fact(Selection).keeps
    assert added(chosen) <= 1 < added(selected(state(), replace(select, max_tail=None)))


@pytest.mark.parametrize("share_of_memory", [0.8, 0.95])
def test_activations_and_tail_together_are_bounded_with_filters(share_of_memory: float) -> None:
    known = with_tails(state().with_fact(filters()))
    select = SelectRanks(max_macs=share(0.6))
    free = selected(known, select)
    limit = share_of_memory * memory_of(free)
    bound = PeakMemory(1, limit, tail=True)
    assert memory_of(selected(known, replace(select, peak_memory=(bound,)))) <= limit


def memory_of(given: State) -> int:
    """The peak of activations, and what the candidates add to the tail."""
    return alive_bytes(fold_batchnorm(rewritten(given))) + added(given)


def test_the_error_says_the_least_that_was_reached() -> None:
    before = Figures(params=9, macs=9, arena_bytes=800, arena_head_bytes=800, arena_tail_bytes=200)
    after = before.model_copy(update={"arena_bytes": 500, "arena_head_bytes": 500})
    made = SimpleNamespace(config=BuildConfig(max_ram="60%"), metric=None)
    error = _unmet(made, None, before, after, in_patches=True)
    assert str(error) == (
        "not met: --max-ram 60%: 700 bytes of at most 600 bytes, the least of all plans that were"
        " tried, with patches; the best effort was saved"
    )
    assert "the least" not in str(_unmet(made, None, before, after, in_patches=False))


# -- in a build ------------------------------------------------------------------------------------


def test_a_file_for_a_microcontroller_takes_no_more_than_the_original(tmp_path: Path) -> None:
    net = helpers.residual(filters=16)
    data = {"x": helpers.random_inputs(helpers.graph_of(net), 64)[0]}
    micro: dict[str, Any] = {"device": "cortex-m7", "precision": "int8", "max_macs": "60%"}
    result = built(net, tmp_path, data=data, **micro)
    before, after = result.manifest.before, result.manifest.after
    assert after.macs <= 0.6 * before.macs
    assert need_of(after) <= need_of(before)
    # No plan by ranks alone keeps within it.
    with pytest.raises(BudgetError, match="--max-ram 100%, the default"):
        lrfc.build(net, data=None, epochs=0, prune="off", out=tmp_path / "ranks", **micro)
    assert not (tmp_path / "ranks").exists()


def need_of(figures: Figures) -> int:
    assert figures.arena_head_bytes is not None
    assert figures.workspace_bytes is None, "no processor with XNNPACK"
    assert figures.arena_tail_bytes is not None
    return figures.arena_head_bytes + figures.arena_tail_bytes
