"""The cache of explored layers: entries match by content, and damage never stops a build."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.select_ranks import SelectRanks
from lrfc.search import cache as module
from lrfc.search.cache import Store, fingerprint, place
from lrfc.search.candidates import Candidate
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State
from tests import helpers
from tests.compression import SIZE, state_of

CANDIDATES = (
    Candidate("conv", None, (), 100, 1000),
    Candidate("conv", "tucker2", (3, 4), 50, 400, 0.25, 1e-3),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    return place()


def values(candidates) -> list[tuple]:
    return [
        (c.layer, c.method, c.ranks, c.params, c.macs, c.error, c.divergence) for c in candidates
    ]


def test_an_entry_is_read_as_it_was_written(cache) -> None:
    lines: list[str] = []
    Store(cache, "key", lines.append).put("conv", CANDIDATES, {"svd": "no"})
    candidates, refusals = Store(cache, "key", lines.append).get("conv")
    assert values(candidates) == values(CANDIDATES)
    assert refusals == {"svd": "no"}
    assert Store(cache, "key", lines.append).get("other") is None
    assert Store(cache, "another key", lines.append).get("conv") is None
    assert lines == []


def test_the_oldest_entries_are_deleted(cache, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    store = Store(cache, "key", print)
    for number in range(6):
        store.put(f"layer{number}", CANDIDATES, {})
    assert [store.get(f"layer{number}") is None for number in range(6)] == [True] * 3 + [False] * 3


def test_a_damaged_file_is_set_aside_and_a_new_one_begun(cache) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("this is no database, " * 100)
    lines: list[str] = []
    store = Store(cache, "key", lines.append)
    store.put("conv", CANDIDATES, {})
    assert store.get("conv") is not None
    assert len(lines) == 1
    assert str(cache) in lines[0]


def test_a_damaged_entry_is_ignored(cache) -> None:
    store = Store(cache, "key", print)
    store.put("conv", CANDIDATES, {})
    with sqlite3.connect(cache) as database:
        database.execute("UPDATE layers SET found = '{\"candidates\": 5'")
    assert store.get("conv") is None


def test_the_fingerprint_depends_on_weights_inputs_and_options() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    inputs = helpers.random_inputs(graph, 4)
    first = fingerprint(graph, inputs, ("svd",))
    assert fingerprint(helpers.graph_of(helpers.conv_net()), inputs, ("svd",)) == first
    kernel = np.array(graph.op("conv0").weights["kernel"])
    kernel[0, 0, 0, 0] += 1e-3
    others = [
        fingerprint(
            graph.with_weights({"conv0": {**graph.op("conv0").weights, "kernel": kernel}}),
            inputs,
            ("svd",),
        ),
        fingerprint(graph, (inputs[0] + 1,), ("svd",)),
        fingerprint(graph, inputs, ("tucker2",)),
    ]
    assert len({first, *others}) == 4


class Stopped(BaseException):
    """A kill in the middle of an exploration."""


def explore(state: State) -> State:
    return ExploreLayers(size=SIZE, sensitivity_images=32, cached=True)(state)


def test_a_killed_exploration_is_resumed_and_a_finished_one_not_repeated(monkeypatch) -> None:
    state = state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12, 14))))
    fresh = ExploreLayers(size=SIZE, sensitivity_images=32)(state).fact(DesignSpace)
    explored: list[str] = []

    def counted(graph, op, *rest, **options):
        if len(explored) == 2:
            raise Stopped
        explored.append(op.name)
        return original(graph, op, *rest, **options)

    original = ExploreLayers.__call__.__globals__["compared"]
    monkeypatch.setitem(ExploreLayers.__call__.__globals__, "compared", counted)
    with pytest.raises(Stopped):
        explore(state)
    assert len(explored) == 2
    monkeypatch.setitem(ExploreLayers.__call__.__globals__, "compared", original)
    again = explore(state).fact(DesignSpace)
    for result, expected in zip(again.spaces, fresh.spaces, strict=True):
        assert values(result.candidates) == values(expected.candidates)
        assert result.calls == expected.calls
    assert dict(again.skipped) == dict(fresh.skipped)
    monkeypatch.setitem(
        ExploreLayers.__call__.__globals__,
        "compared",
        lambda *rest, **options: pytest.fail("explored again"),
    )
    cached = explore(state)
    assert [values(s.candidates) for s in cached.fact(DesignSpace).spaces] == [
        values(s.candidates) for s in fresh.spaces
    ]


def test_factors_of_a_cached_layer_equal_those_of_an_explored_one() -> None:
    state = state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12))))
    first, second = explore(state), explore(replace(state, progress=Progress()))
    for result, known in zip(
        first.fact(DesignSpace).spaces, second.fact(DesignSpace).spaces, strict=True
    ):
        candidate = result.candidates[1]
        assert candidate.method is not None
        np.testing.assert_array_equal(
            result.factors[candidate.method].kernel(candidate.ranks),
            known.factors[candidate.method].kernel(candidate.ranks),
        )
    assert SelectRanks()(second) is not second
