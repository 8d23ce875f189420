"""The targets of a refit: from one run of the original, in parts and in files where large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import Budget
from lrfc.engine.judge import Judge
from lrfc.engine.judgement import QUICK
from lrfc.engine.plans import selected
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.passes.select_ranks import SelectRanks
from lrfc.search import targets
from lrfc.search.targets import Drawing, Summed, Targets
from tests import helpers
from tests.compression import explored, learnt

DRAWING = Drawing(count=50, patches=200, seed=0)


def silent(length: int) -> Callable[[int], None]:
    return lambda step: None


def collected(graph: Graph, batch: tuple[Any, ...]) -> Targets:
    """The targets of a copy of the graph, for which nothing is stored."""
    return targets.targets(graph.copy(), batch, DRAWING, silent)


def test_they_are_what_the_original_computes_at_the_drawn_positions() -> None:
    graph = helpers.graph_of(helpers.residual())
    batch = helpers.random_inputs(graph, 60)
    found = collected(graph, batch)
    refs = [*graph.operands("conv"), *graph.operands("add"), *graph.operands("bn1")]
    source, *added, inner = keras_io.predict(graph.with_outputs(refs), (batch[0][:50],))
    (part,) = DRAWING.parts(graph)
    rows, where = DRAWING.draw(graph, graph.op("conv"), source, part)
    assert len(rows) == len(found.outputs["conv"]) == 200
    assert np.allclose(found.outputs["conv"], inner[where], atol=1e-5)
    addend = next(x for x, ref in zip(added, graph.operands("add"), strict=True) if ref.op != "bn1")
    assert np.allclose(found.addends["conv"], addend[where], atol=1e-5)
    mean, variance = found.moments[graph.operands("bn1")[0]]
    assert np.allclose(mean, inner.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(variance, inner.var((0, 1, 2)), rtol=1e-3)


def test_parts_and_files_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helpers.graph_of(helpers.residual())
    batch = helpers.random_inputs(graph, 60)
    monkeypatch.setattr(targets, "PART", 20)
    inside = collected(graph, batch)
    monkeypatch.setattr(targets, "HELD", 0)
    outside = collected(graph, batch)
    assert [len(part) for part in DRAWING.parts(graph)] == [20, 20, 10]
    for one, other in ((inside.outputs, outside.outputs), (inside.addends, outside.addends)):
        assert one.keys() == other.keys()
        for name, rows in one.items():
            assert isinstance(other[name], np.memmap)
            assert not isinstance(rows, np.memmap)
            assert np.array_equal(rows, other[name])


@pytest.mark.parametrize("axis", [1, -1])
def test_moments_of_parts_are_those_of_the_whole(axis: int) -> None:
    values = np.random.default_rng(0).normal(100, 2, (30, 5, 6, 7)).astype(np.float32)
    summed = Summed(axis)
    for part in np.split(values, [11, 20]):
        summed.add(part)
    mean, variance = summed.moments()
    others = tuple(i for i in range(4) if i != axis % 4)
    assert np.allclose(mean, values.mean(others, dtype=np.float64), rtol=1e-6)
    assert np.allclose(variance, values.var(others, dtype=np.float64), rtol=1e-4)


def test_the_original_runs_once_for_all_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Graph] = []
    original = keras_io.outputs_at

    def outputs_at(graph: Graph, refs: Any) -> Any:
        runs.append(graph)
        return original(graph, refs)

    state = explored(learnt())
    state = replace(state, original=state.original.copy())
    judge = Judge(state)
    monkeypatch.setattr(keras_io, "outputs_at", outputs_at)
    plans = [
        selected(state, SelectRanks(max_macs=Budget(value=share, relative=True)))
        for share in (0.8, 0.5, 0.3)
    ]
    verdicts = [judge(plan) for plan in plans]
    assert runs == [state.original]
    assert len({verdict.divergence for verdict in verdicts}) == 3
    for plan in plans:
        judge(plan, QUICK)  # known already
    assert runs == [state.original]
