"""The driver of a build, with fakes for its stages: attempts, early stops, shared results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from lrfc.config.build import BuildConfig, Drop
from lrfc.data.dataset import Data, Split
from lrfc.engine import build, compress, driver
from lrfc.engine.compress import Shared
from lrfc.engine.job import Explored, Job, advanced, job_of
from lrfc.engine.memo import Memo
from lrfc.engine.tuning import Plan
from lrfc.errors import BudgetError, NoGainError
from lrfc.ir.graph import Graph
from lrfc.metrics.contract import Contract
from lrfc.pruning.facts import Selection
from lrfc.search.facts import DesignSpace
from lrfc.state import Fact, Progress, State
from tests import helpers

ALLOWED = Drop(value=0.01)


def contract(drop: float) -> Contract:
    return Contract(ALLOWED, drop, drop, drop, 0.95, 100)


def trial(drop: float, allowed: float | None = 0.4, failure: Exception | None = None) -> Any:
    """The fields of a trial that the driver reads."""
    plan = SimpleNamespace(allowed=allowed)
    return SimpleNamespace(contract=contract(drop), plan=plan, failure=failure)


class Trials:
    """Attempts with the given drops, one after the other."""

    def __init__(self, *drops: float, learnt: float | None = 0.4) -> None:
        self._drops, self._learnt = drops, learnt
        self.asked: list[tuple[int, float | None]] = []

    def __call__(self, number: int, allowed: float | None) -> Any:
        self.asked.append((number, allowed))
        return trial(self._drops[number - 1], self._learnt if allowed is None else allowed)


def test_attempts_end_with_the_contract_kept() -> None:
    attempt = Trials(0.02, 0.005)
    lines: list[str] = []
    found = driver.attempts(attempt, lines.append)
    assert found is not None
    assert [each.contract.drop for each in found if each.contract is not None] == [0.02, 0.005]
    assert attempt.asked == [(1, None), (2, pytest.approx(0.5 * 0.4))]
    assert len(lines) == 1
    assert "attempt 2 of 3" in lines[0]


def test_attempts_end_after_three() -> None:
    attempt = Trials(1.0, 0.0101, 1.0, 0.0)
    found = driver.attempts(attempt, lambda line: None)
    assert found is not None
    assert len(found) == driver.ATTEMPTS == 3
    # Never less than 0.3, never more than 0.7 of what was allowed before.
    assert [allowed for _, allowed in attempt.asked] == [
        None,
        pytest.approx(0.3 * 0.4),
        pytest.approx(0.7 * 0.3 * 0.4),
    ]


def test_without_an_objective_there_is_one_attempt() -> None:
    attempt = Trials(1.0, 0.0, learnt=None)
    found = driver.attempts(attempt, lambda line: None)
    assert found is not None
    assert len(found) == 1


def test_attempts_end_where_the_build_stops() -> None:
    assert driver.attempts(lambda number, allowed: None, lambda line: None) is None


def test_the_best_trial_is_without_a_failure_and_with_the_least_drop() -> None:
    late, small = trial(0.001, failure=BudgetError("late")), trial(0.02)
    smaller, nothing = trial(0.01), trial(0.0, failure=NoGainError("no gain"))
    assert driver.best([late, small, smaller, nothing]) is smaller
    assert driver.best([nothing, late]) is late
    assert driver.best([nothing]) is nothing


# -- where a build stops ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark(Fact):
    """The number of passes that a graph went through."""

    count: int = 0
    about_graph: ClassVar[bool] = False


@dataclass(frozen=True)
class Step:
    """A pass that counts."""

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Mark,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        mark = state.known(Mark) or Mark()
        return state.with_fact(Mark(mark.count + 1))


class Factorize(Step):
    """A step with the name of a pass after which a build may stop."""


class Refit(Step):
    """Another one."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return helpers.graph_of(helpers.dense_net(features=4, widths=(4,), classes=2))


def data(samples: int = 128) -> Data:
    x = np.zeros((samples, 4), np.float32)
    split = Split((x,), (np.zeros(samples, np.int32),))
    return Data("zeros", split, split, split)


def job(lines: list[str] | None = None, **options: Any) -> Job:
    log = (lambda line: None) if lines is None else lines.append
    return job_of(Path("net.keras"), BuildConfig(**options), (), data(), Progress(log=log))


def test_the_passes_end_at_the_one_after_which_the_build_stops(graph: Graph) -> None:
    lines: list[str] = []
    seen: list[int] = []
    asked = job(lines, stop_after="Factorize", print_after=("Factorize",))
    state = State(graph, graph, asked.data, progress=asked.progress)
    steps = [Step(), Factorize(), Refit()]
    after = lambda step, now: seen.append(now.fact(Mark).count)  # noqa: E731
    assert advanced(asked, state, steps, after=after) is None
    assert seen == [1, 2], "the third did not run"
    assert [line.split(":")[0] for line in lines if line[:4] in ("Step", "Fact", "Refi")] == [
        "Step",
        "Factorize",
    ]
    assert any(line.startswith("graph dense_net") for line in lines)
    rest = advanced(asked, state, [Step(), Refit()])
    assert rest is not None
    assert rest.fact(Mark).count == 2


def test_a_build_that_stops_returns_nothing_and_skips_the_other_destinations(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    goals: Any = tuple(
        SimpleNamespace(target=SimpleNamespace(name="tflite"), device=SimpleNamespace(name=name))
        for name in ("one", "two")
    )
    asked = replace(job(), goals=goals)
    visited: list[str] = []

    def bench_of(job: Any, goal: Any, state: State, folder: Path) -> Any:
        visited.append(goal.device.name)
        return nullcontext()

    monkeypatch.setattr(driver, "explore", lambda job, graph: SimpleNamespace(state=None))
    monkeypatch.setattr(driver, "bench_of", bench_of)
    monkeypatch.setattr(driver, "trials", lambda *given: None)
    places: Any = ("place one", "place two")
    assert build._results(asked, graph, places, [], pytest.fail) is None
    assert visited == ["one"]


# -- what destinations share -----------------------------------------------------------------------


def test_a_memo_keeps_its_first_value() -> None:
    memo: Memo[list[int] | None] = Memo()
    first = memo.get("a", lambda: [1])
    assert memo.get("a", lambda: pytest.fail("made twice")) is first
    assert memo.get("b", lambda: None) is None
    assert memo.get("b", lambda: pytest.fail("made twice")) is None


class Fakes:
    """Two destinations, the first with too large a drop; records the arguments of each stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settled: list[tuple[str, float | None]] = []
        monkeypatch.setattr(driver, "weighing", lambda *given, **options: (Factorize(),))
        monkeypatch.setattr(driver, "_wish", lambda *given: None)
        monkeypatch.setattr(driver, "Loop", self.loop)
        monkeypatch.setattr(driver, "compress", lambda *given: given[3])
        monkeypatch.setattr(driver, "try_out", self.try_out)

    def loop(
        self,
        state: State,
        target: Any,
        bench: Any,
        profile: Any,
        growth: int,
        **judged: Any,
    ) -> Any:
        assert judged == {"metric": None, "stored": True}

        def settle(wish: None, allowed: float | None) -> Any:
            self.settled.append((target.name, allowed))
            learnt = {"one": 0.4, "two": 0.8}[target.name]
            design = state.fact(DesignSpace)
            allowed = learnt if allowed is None else allowed
            return Plan(state, None, (), None, allowed, None, design)  # type: ignore[arg-type]

        return SimpleNamespace(settle=settle, state=state)

    def try_out(
        self, made: Any, goal: Any, bench: Any, plan: Plan, folder: Path, looks: int
    ) -> Any:
        drop = 1.0 if goal.target.name == "one" and looks == 1 else 0.0
        return SimpleNamespace(contract=contract(drop), plan=plan, failure=None)


def goal(name: str) -> Any:
    target = SimpleNamespace(name=name, precision="fp32")
    return SimpleNamespace(
        target=target, device=SimpleNamespace(growth_bytes=0, follows_plan=False)
    )


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_what_one_destination_learns_is_not_handed_to_another(
    order: Sequence[str], graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fakes, asked, shared = Fakes(monkeypatch), job(), Shared()
    state = State(graph, graph, asked.data).with_fact(DesignSpace((), {}))
    explored = Explored(state, None, {}, 0.0)
    found = {}
    for name in order:
        place = tmp_path / name
        place.mkdir()
        bench: Any = SimpleNamespace(profile=None, original=SimpleNamespace(path=place))
        found[name] = driver.trials(asked, explored, goal(name), bench, place, shared)
    settled = {name: [each for each in fakes.settled if each[0] == name] for name in order}
    assert settled["one"] == [("one", None), ("one", pytest.approx(0.3 * 0.4))]
    assert settled["two"] == [("two", None)]
    one, two = ([each.plan.state for each in found[name] or ()] for name in ("one", "two"))
    assert [len(one), len(two)] == [2, 1]
    assert all(weighed is two[0] for weighed in one), "weighed once for one precision"
    assert two[0].fact(Mark).count == 1
    assert explored.state.known(Mark) is None


def test_the_same_selection_is_trained_once(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Choose(Step):
        """A pass that leaves all layers unchanged."""

        gives: ClassVar[tuple[type[Fact], ...]] = (Selection,)

        def __call__(self, state: State) -> State:
            return state.with_fact(Selection((), {"head": "not worth it"}, {}))

    asked, shared = job(), Shared()
    state = State(graph, graph, asked.data).with_fact(DesignSpace((), {}))
    explored = Explored(state, None, {"before": 0.5}, 1.0)
    monkeypatch.setattr(compress, "pipeline", lambda config, select: (select, Refit()))
    plan: Any = SimpleNamespace(state=state, select=Choose())
    made = [
        compress.compress(asked, explored, state, plan, _target(precision), shared)
        for precision in ("fp32", "fp16")
    ]
    one, two = made
    assert one is not None
    assert two is not None
    assert one.trainable is two.trainable
    assert one.state.fact(Mark).count == two.state.fact(Mark).count == 1
    assert one.ladder == {"before": 0.5}


def _target(precision: str) -> Any:
    return SimpleNamespace(name="tflite", precision=precision)


def test_a_build_that_fails_raises_its_error_with_the_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures = NoGainError("no gain"), BudgetError("not met")
    results = [SimpleNamespace(failure=failure) for failure in failures]
    monkeypatch.setattr(build, "_load", lambda *given, **options: (Path("net.keras"), None))
    monkeypatch.setattr(build, "_refuse", lambda *given: None)
    monkeypatch.setattr(build, "load_data", lambda *given, **options: data())
    monkeypatch.setattr(build.room, "check", lambda *given: None)
    monkeypatch.setattr(build, "_results", lambda *given: results)
    request: Any = SimpleNamespace(
        config=BuildConfig(),
        goals=(),
        folders=(),
        model=None,
        data=None,
        test_data=None,
        locked=None,
        single=False,
    )
    with pytest.raises(BudgetError, match=r"^not met$") as caught:
        build.build(request)
    assert caught.value.result == tuple(results)
    assert [failure.result for failure in failures] == [None, None], "these are as they were"


def test_the_reasons_of_many_layers_are_one_short_line() -> None:
    few = {"a": "too small", "b": "kept", "c": "too small"}
    assert driver.reasons(few) == "a, c: too small; b: kept"
    many = {f"layer{n}": "kept" for n in range(9)}
    assert driver.reasons(few, many) == "a, c: too small; b, layer0, layer1 and 7 more: kept"
    each = {f"layer{n}": f"reason {n}" for n in range(9)}
    assert driver.reasons(each).endswith("layer4: reason 4 and 4 more")
