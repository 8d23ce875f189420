"""Size and memory budgets: met by the emitted file and the planned arena, or refused."""

from __future__ import annotations

from functools import cache

import pytest

from lrfc.config.build import Budget
from lrfc.costs.arena import arena
from lrfc.costs.memory import Surroundings
from lrfc.costs.totals import totals
from lrfc.engine.budgets import emitted, meet
from lrfc.errors import BudgetError, UnreachableError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import plan, run
from lrfc.pruning.facts import Selection
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from lrfc.targets.catalog import target
from tests import helpers
from tests.compression import explored, state_of


@cache
def state() -> State:
    return explored(state_of(helpers.graph_of(helpers.conv_net(filters=(12, 16, 20)))))


@cache
def wide() -> State:
    return explored(state_of(helpers.graph_of(helpers.residual(filters=16))))


def share(value: float) -> Budget:
    return Budget(value=value, relative=True)


def rewritten(given: State, select: SelectRanks) -> Graph:
    found = run(given, plan([select, Factorize()], known=(DesignSpace,)))
    return fold_batchnorm(found.graph)


@pytest.mark.parametrize(("precision", "kept"), [("fp32", 0.75), ("int8", 0.9)])
def test_the_emitted_file_keeps_the_size(precision, kept) -> None:
    targets = [target("tflite", precision)]
    (whole,) = emitted(fold_batchnorm(state().original), state(), targets)
    found, select = meet(state(), SelectRanks(), share(kept), None, targets)
    (size,) = emitted(rewritten(found, select), state(), targets)
    assert 0.3 * whole < size <= kept * whole


def test_every_target_keeps_the_size_and_the_other_budgets_stay() -> None:
    targets = [target("tflite"), target("onnx")]
    wholes = emitted(fold_batchnorm(state().original), state(), targets)
    found, select = meet(
        state(), SelectRanks(max_macs=share(0.5), max_params=share(0.9)), share(0.8), None, targets
    )
    graph = rewritten(found, select)
    assert all(
        size <= 0.8 * whole
        for size, whole in zip(emitted(graph, state(), targets), wholes, strict=True)
    )
    assert totals(graph)["macs"] <= 0.5 * totals(state().original)["macs"]


def test_the_planned_arena_keeps_the_budget() -> None:
    given = state()
    whole = arena(fold_batchnorm(given.original)).planned_bytes()
    limit = Budget(value=0.9, relative=True)
    found, select = meet(given, SelectRanks(), None, limit, [target("tflite")])
    assert arena(rewritten(found, select)).planned_bytes() <= 0.9 * whole
    assert arena(rewritten(given, SelectRanks())).planned_bytes() > 0.9 * whole
    assert totals(given.original) == totals(found.original)


def test_live_bytes_of_a_candidate_are_those_of_the_rewritten_graph() -> None:
    graph = wide().original
    memory = arena(graph)
    for space in wide().fact(DesignSpace).spaces:
        if "Conv" not in space.op.kind:
            continue
        for candidate in space.candidates[1::7]:
            stages = space.factors[candidate.method].stages(candidate.ranks)
            changed = graph.copy()
            changed.splice(space.op.name, stages)
            timeline = arena(changed).timeline
            assert Surroundings(graph, memory, space.op.name, 4).peak(stages) == max(
                timeline[stage.name] for stage in stages
            )


def test_a_budget_that_cannot_be_met_is_an_error_with_its_reason() -> None:
    with pytest.raises(
        UnreachableError,
        match=(
            r"^--max-size 5% cannot be reached: the smallest plan of these methods has"
            r" \d+\.\d\d % of the original's file$"
        ),
    ) as caught:
        meet(state(), SelectRanks(), share(0.05), None, [target("tflite")])
    assert caught.value.least > caught.value.limit
    with pytest.raises(
        BudgetError,
        match=(
            r"--max-ram 30% cannot be reached: \w+ needs (at least )?[\d,]+ bytes, .*; cutting"
            r" filters may \(--prune on\)"
        ),
    ):
        meet(state(), SelectRanks(), None, share(0.3), [target("tflite")])
    with pytest.raises(
        BudgetError,
        match=(
            r"^--max-ram 10B cannot be reached: \w+ needs [\d,]+ bytes, and nothing changes what"
            r" the model reads$"
        ),
    ):
        meet(
            state(),
            SelectRanks(),
            None,
            Budget(value=10, relative=False, given="10B"),
            [target("tflite")],
        )


def test_a_size_that_another_limit_forbids_is_an_error_with_the_parameters_that_it_leaves() -> None:
    near = min(
        c.divergence for s in state().fact(DesignSpace).spaces for c in s.candidates if c.method
    )
    with pytest.raises(
        BudgetError,
        match=r"^--max-size 70% leaves [0-9,]+ parameters, and with so few the params and"
        r" divergence budgets cannot be met together$",
    ):
        meet(state(), SelectRanks(max_divergence=near), share(0.7), None, [target("tflite")])


def test_on_a_microcontroller_the_tail_counts() -> None:
    plain = target("tflite", "int8")
    micro = plain.with_plan()
    original = fold_batchnorm(state().original)
    select = SelectRanks(max_macs=share(0.8))
    tail = micro.tail_bytes(original)
    assert plain.tail_bytes(original) == 0 < tail
    whole = arena(original, 1).planned_bytes() + tail
    limit = Budget(value=1.15 * whole, relative=False)
    graph = rewritten(*meet(state(), select, None, limit, [micro]))
    assert micro.tail_bytes(graph) > tail  # factors are more operators
    assert arena(graph, 1).planned_bytes() + micro.tail_bytes(graph) <= limit.value
    with pytest.raises(BudgetError, match="--max-ram"):
        meet(state(), select, None, Budget(value=0.5 * whole, relative=False), [micro])


def test_without_these_budgets_nothing_is_done() -> None:
    select = SelectRanks(max_macs=share(0.5))
    assert meet(state(), select, None, None, []) == (state(), select)
    assert state().known(Selection) is None
