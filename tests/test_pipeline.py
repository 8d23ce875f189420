"""The pipeline: what plan() refuses, what run() checks and reports, what State keeps."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from lrfc.data.dataset import Data, Split
from lrfc.errors import GraphError, UsageError
from lrfc.ir.batch import batches
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.pipeline import name_of, plan, run
from lrfc.state import Fact, Progress, State


@dataclass(frozen=True)
class Seen(Fact):
    ops: int


@dataclass(frozen=True)
class Wish(Fact):
    about_graph: ClassVar[bool] = False

    text: str = "small"


@dataclass(frozen=True)
class Look:
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Seen,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        return state.with_fact(Seen(len(state.graph)))


@dataclass(frozen=True)
class Use:
    needs: ClassVar[tuple[type[Fact], ...]] = (Seen, Wish)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        return state


@dataclass(frozen=True)
class Rewrite:
    change: Callable[[Graph], object] = field(default=lambda graph: graph.splice("b", []))

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        graph = state.graph.copy()
        self.change(graph)
        return state.with_graph(graph)


def state(log: list[str] | None = None) -> State:
    graph = Graph("g")
    x = graph.add(Op("x", "InputLayer", {"batch_shape": (None, 3)}))
    a = graph.add(Op("a", "ReLU"), (x,))
    dense = Op(
        "b",
        "Dense",
        {"units": 3},
        {"kernel": np.eye(3, dtype=np.float32), "bias": np.zeros(3, np.float32)},
    )
    graph.outputs = (graph.add(dense, (a,)),)
    empty = Split((np.zeros((0, 3), np.float32),))
    progress = Progress() if log is None else Progress(log=log.append)
    return State(graph, graph, Data("none", empty, empty, empty), progress=progress)


def test_plan_keeps_a_valid_order() -> None:
    steps = (Rewrite(), Look(), Use())
    assert plan(steps, known=(Wish,)) == steps


def test_plan_names_the_pass_that_gives_a_missing_fact() -> None:
    with pytest.raises(
        UsageError,
        match=r"^pass Use needs Seen; Look gives it and must come before, with no rewrite between$",
    ):
        plan([Use(), Look()], known=(Wish,))
    with pytest.raises(
        UsageError, match=r"^pass Use needs Wish; no pass in this pipeline gives it$"
    ):
        plan([Look(), Use()])


def test_plan_knows_that_facts_about_the_graph_die_with_it() -> None:
    with pytest.raises(UsageError, match="pass Use needs Seen;"):
        plan([Look(), Rewrite(), Use()], known=(Wish,))
    assert plan([Rewrite(), Look(), Use()], known=(Wish,))  # Wish is not about the graph


def test_run_adds_the_facts_and_shows_each_state() -> None:
    shown: list[tuple[str, int]] = []
    result = run(
        state(),
        (Rewrite(), Look()),
        after=lambda step, now: shown.append((name_of(step), len(now.graph))),
    )
    assert result.fact(Seen) == Seen(2)
    assert shown == [("Rewrite", 2), ("Look", 2)]


def test_run_changes_nothing_in_place() -> None:
    before = state()
    text = str(before.graph)
    run(before, (Rewrite(), Look()))
    assert str(before.graph) == text
    assert before.facts == {}


def test_run_logs_one_line_a_pass_with_the_change() -> None:
    log: list[str] = []
    run(state(log), (Look(), Rewrite()))
    assert len(log) == 2
    assert re.fullmatch(r"Look: \d+\.\d s", log[0])
    assert re.fullmatch(r"Rewrite: \d+\.\d s, 3 → 2 ops, 12 → 0 params", log[1])


def test_run_refuses_a_broken_graph() -> None:
    def cut(graph: Graph) -> None:
        graph.outputs = ()

    with pytest.raises(GraphError, match="has no outputs"):
        run(state(), (Rewrite(cut),))


def test_run_catches_a_pass_that_breaks_its_promise() -> None:
    @dataclass(frozen=True)
    class Lazy(Look):
        def __call__(self, state: State) -> State:
            return state

    with pytest.raises(AssertionError, match="pass Lazy promised"):
        run(state(), (Lazy(),))


def test_state_is_immutable_and_its_facts_too() -> None:
    now = state().with_fact(Wish())
    with pytest.raises(FrozenInstanceError):
        now.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        now.facts[Wish] = Wish("large")  # type: ignore[index]


def test_with_fact_replaces_and_with_graph_forgets_what_is_about_the_graph() -> None:
    now = state().with_fact(Wish("small"), Seen(3)).with_fact(Wish("large"))
    assert now.fact(Wish).text == "large"
    after = now.with_graph(now.graph.copy())
    assert after.known(Seen) is None
    assert after.fact(Wish).text == "large"
    assert after.original is now.original


def test_a_missing_fact_is_named() -> None:
    assert state().known(Seen) is None
    with pytest.raises(GraphError, match="there is no fact Seen"):
        state().fact(Seen)


def test_progress_reports_nothing_by_default() -> None:
    quiet = Progress()
    step = quiet.stage("work", 3)
    assert step(1) is None
    assert quiet.log("line") is None


def test_batches_cut_all_inputs_alike() -> None:
    x, y = np.arange(10).reshape(5, 2), np.arange(5)
    parts = list(batches((x, y), 2))
    assert [len(part[0]) for part in parts] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), x)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), y)
