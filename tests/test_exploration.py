"""lrfc explore and lrfc explain, end to end on the built-in example, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lrfc import api
from lrfc.cli import build_view
from lrfc.cli.console import Terminal
from lrfc.errors import UsageError
from lrfc.results import candidates as choices
from lrfc.results import folder as artifact
from lrfc.results.exploration import SHARES, Survey
from lrfc.results.report import exploration as page
from lrfc.search.pareto import SHARES as SHARES_OF_RAM

DIGITS = Path(__file__).parents[1] / "examples" / "digits.keras"


@pytest.fixture(scope="module")
def exploration(tmp_path_factory) -> tuple[Survey, Path]:
    out = tmp_path_factory.mktemp("survey") / "out"
    return (
        api.explore(
            DIGITS,
            data="digits",
            over=("macs", "params"),
            points=9,
            methods=("channel_svd", "spatial_svd", "svd"),
            out=out,
            resume=False,
        ),
        out,
    )


def test_the_folder_is_complete(exploration) -> None:
    survey, out = exploration
    assert {path.name for path in out.iterdir()} == {
        "pareto.json",
        "candidates.csv",
        "explore.html",
    }
    value = json.loads((out / "pareto.json").read_text())
    assert (
        value["candidates"] == survey.design.size > value["undominated"] > len(survey.design.spaces)
    )
    assert set(value["methods"]) == {"all", "channel_svd", "spatial_svd"}
    assert len(choices.read(out)) == survey.design.size
    assert value["over"] == ["macs", "params"]
    assert len(value["points"]) >= 3
    assert {point["share"] for point in value["by_ram"]} == {1.0, 0.75, 0.5}
    assert "at most 50 % of the MACs" in (out / "explore.html").read_text()


def test_the_table_compares_what_is_reachable(exploration) -> None:
    table = dict(exploration[0].table())
    for number in range(len(SHARES)):
        alone = [
            values[number]
            for name, values in table.items()
            if name != "all" and values[number] is not None
        ]
        assert table["all"][number] <= min(alone) * (1 + 1e-9)


def test_the_page_is_self_contained_and_names_every_layer(exploration) -> None:
    survey, out = exploration
    page = (out / "explore.html").read_text()
    assert not re.search(r"(src|href)=|<script|url\(", page)
    for space in survey.design.spaces:
        assert f"<strong>{space.op.name}</strong>" in page
    assert "NaN" not in page
    assert page.count("<polyline") == 2 * len(survey.fronts) + len(SHARES_OF_RAM)


def test_it_is_printed_and_a_layer_explained(exploration, capsys) -> None:
    import sys

    survey, out = exploration
    terminal = Terminal(sys.stdout, sys.stderr)
    build_view.exploration(terminal, survey, out)
    name = survey.design.spaces[0].op.name
    build_view.explanation(terminal, choices.explain(choices.read(out), name))
    printed = capsys.readouterr().out
    assert "least predicted divergence" in printed
    assert "Pareto front" in printed
    assert "of them undominated" in printed
    assert "this is an exploration" in printed


def write(survey: Survey, out: Path) -> Path:
    with artifact.reserved(out) as place:
        return page.write(survey, place)


def test_only_a_folder_of_lrfc_is_replaced(exploration, tmp_path) -> None:
    survey, out = exploration
    assert write(survey, out) == out
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not written by lrfc"):
        write(survey, tmp_path)
