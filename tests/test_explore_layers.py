"""Layers are explored side by side as far as memory allows; the results do not depend on it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lrfc.passes import explore_layers
from lrfc.search.facts import DesignSpace
from tests import helpers
from tests.compression import explored, state_of


def errors(state: Any) -> list[list[float]]:
    return [[c.error for c in s.candidates] for s in explored(state).fact(DesignSpace).spaces]


def test_layers_are_in_work_together_as_far_as_memory_allows(monkeypatch) -> None:
    state = state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12, 14))))
    original, meeting = explore_layers.answers, threading.Barrier(2)
    lock, running, most = threading.Lock(), 0, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            if together:
                meeting.wait(timeout=60)  # for another layer; an error if none is in work
            return original(*args, **options)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(explore_layers, "answers", counted)
    monkeypatch.setattr(explore_layers, "workers", lambda: 2)
    found = []
    for together in (True, False):
        most = 0
        if not together:
            monkeypatch.setattr(explore_layers, "WORKING", 1)
        found.append(errors(state))
        assert most == (2 if together else 1)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("needs", "together"), [([9], True), ([3, 1], True), ([3, 2], False), ([1, 1, 1, 1], False)]
)
def test_what_may_be_in_work_together(monkeypatch, needs: list[int], together: bool) -> None:
    monkeypatch.setattr(explore_layers, "WORKING", 4)
    monkeypatch.setattr(explore_layers, "workers", lambda: 2)
    assert explore_layers._together(needs) == together
