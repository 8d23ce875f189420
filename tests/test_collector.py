"""Collections of garbage pause during the import of a large package."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lrfc.cli import session
from lrfc.system import collector


@pytest.fixture
def freezes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One item for each time that the present objects are left out of later collections."""
    counts: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: counts.append(1))
    monkeypatch.setattr(collector, "_Process", SimpleNamespace(ours=False))
    yield counts
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before_after_an_import(freezes: list[int], enabled: bool) -> None:
    if not enabled:
        gc.disable()
    with collector.importing():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled
    with pytest.raises(ImportError), collector.importing():
        raise ImportError("not installed")
    assert gc.isenabled() == enabled
    assert not freezes, "the objects of a host program are left alone"


def test_in_a_process_of_lrfcs_own_the_imported_objects_are_not_searched_again(
    freezes: list[int],
) -> None:
    session.run(lambda: None)
    assert not freezes
    with collector.importing():
        pass
    assert len(freezes) == 1
