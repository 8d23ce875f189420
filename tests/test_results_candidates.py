"""candidates.csv: written and read back, and the sentences about a choice and its neighbours."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from lrfc.config.build import Budget
from lrfc.errors import UsageError
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pruning.facts import Selection
from lrfc.pruning.selection import LEFT_ASIDE
from lrfc.results import candidates as choices
from lrfc.results.candidates import Row, explain, read, write
from lrfc.results.manifest import Layer
from lrfc.search.facts import DesignSpace
from lrfc.state import State
from tests import helpers
from tests.compression import explored, state_of


@cache
def state() -> State:
    return explored(state_of(helpers.graph_of(helpers.conv_net(filters=(10, 12, 14)))))


@pytest.fixture
def folder(tmp_path):
    selection = SelectRanks(max_macs=Budget(value=0.5, relative=True))(state()).fact(Selection)
    write(
        tmp_path,
        state().fact(DesignSpace).spaces,
        {c.layer: (c.method, c.ranks) for c in selection.chosen},
    )
    return tmp_path


def test_the_file_has_every_candidate_and_one_chosen_for_each_layer(folder) -> None:
    rows, spaces = read(folder), state().fact(DesignSpace).spaces
    assert any(row.dominated for row in rows)
    assert [(r.layer, r.method, r.params, r.macs) for r in rows] == [
        (c.layer, c.method, c.params, c.macs) for s in spaces for c in s.candidates
    ]
    for space in spaces:
        own = [row for row in rows if row.layer == space.op.name]
        assert sum(row.chosen for row in own) == 1
        assert not any(row.chosen and row.dominated for row in own)
        for row, candidate in zip(own, space.candidates, strict=True):
            assert row.similarity == pytest.approx(1 - candidate.error, abs=1e-5)
            assert row.impact == pytest.approx(candidate.divergence, rel=1e-5)


def test_the_neighbours_of_the_choice_are_explained(folder) -> None:
    rows = read(folder)
    for layer in {row.layer for row in rows}:
        found = explain(rows, layer)
        assert found.chosen is not None
        assert found.sentences
        assert all("MACs" in sentence and "divergence" in sentence for sentence in found.sentences)
    with pytest.raises(
        UsageError, match=r"no layer 'nowhere' was explored; the layers are conv0, conv1"
    ):
        explain(rows, "nowhere")


def row(
    layer: str,
    rank: int,
    macs: int,
    impact: float,
    *,
    method: str | None = "svd",
    chosen: bool = False,
) -> Row:
    return Row(
        layer,
        method,
        str(rank),
        macs,
        macs,
        1 - impact,
        impact,
        None,
        dominated=False,
        chosen=chosen,
    )


def test_the_reasons_by_hand() -> None:
    rows = [
        row("a", 1, 100, 0.5),
        row("a", 2, 200, 0.2, chosen=True),
        row("a", 3, 300, 0.15),
        row("a", 0, 400, 0.0, method=None),
        row("b", 1, 50, 0.4, chosen=True),
        row("b", 2, 120, 0.1),
    ]
    smaller, larger, whole = explain(rows, "a").sentences
    assert (
        smaller
        == "smaller rank, svd 1: −100 MACs, −100 parameters, predicted divergence +0.3; it saves"
        " MACs, but saving them in other layers costs less divergence"
    )
    assert (
        larger
        == "larger rank, svd 3: +100 MACs, +100 parameters, predicted divergence −0.05; the same"
        " MACs are worth more in layer b (svd 2: −0.3)"
    )
    assert whole.startswith("without a method, unchanged: +200 MACs")
    assert explain([row("a", 1, 5, 0.1)], "a").chosen is None


def layer(name: str, **fields: Any) -> Layer:
    return Layer(
        name=name,
        kind="Conv2D",
        params_before=400,
        params_after=100,
        macs_before=400,
        macs_after=100,
        **fields,
    )


def test_the_layer_as_built_is_explained_with_its_candidates() -> None:
    rows = [row("a", 0, 400, 0.0, method=None, chosen=True), row("a", 1, 100, 0.5)]
    built = [
        layer("a", filters_before=16, filters_after=4, reason="no rank"),
        layer("b", reason="it is small"),
    ]
    found = explain(rows, "a", built)
    assert found.built == built[0]
    assert len(found.sentences) == 1
    assert found.to_json()["built"]["filters_after"] == 4
    assert explain(rows, "b", built) == choices.Explanation("b", (), None, (), built[1]), (
        "a layer without candidates has its reason"
    )
    assert explain(rows, "a", [layer("a", reason=LEFT_ASIDE)]).sentences == (), (
        "nothing was weighed against it"
    )
    with pytest.raises(UsageError, match=r"the layers are a, b$"):
        explain(rows, "c", built)


def test_a_folder_without_candidates_and_a_damaged_file_are_refused(tmp_path) -> None:
    with pytest.raises(
        UsageError,
        match=(
            r"holds no exploration: it has no readable candidates\.csv; create one with lrfc build"
            r" or lrfc explore"
        ),
    ):
        read(tmp_path)
    (tmp_path / choices.NAME).write_text("layer,method\nconv,svd\n")
    with pytest.raises(UsageError, match="is damaged"):
        read(tmp_path)
