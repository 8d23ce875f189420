"""The page of a build loads nothing from outside, and names how the build is repeated."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from typing import Any

import pytest

from lrfc.config.build import BuildConfig
from lrfc.results.manifest import (
    Input,
)
from lrfc.results.op_costs import OpProfile
from lrfc.results.report.command import command, option
from lrfc.text import NONE
from tests.report_pages import (
    CANDIDATES,
    FASTER,
    POINTS,
    PROFILE,
    Page,
    full,
    made,
    op,
    render,
)


def test_where_the_time_of_the_build_went() -> None:
    html = render(made(profile=PROFILE), FASTER, POINTS, None)
    rows = [row[:-1] for row in Page(html).tables["profile"]]
    heads = "Time, s;CPU, s;Kernel, s;Child processes, s;Page faults;Peak memory;Share".split(";")
    assert rows == [
        ["Stage", *heads],
        ["build", "20.00", "15.00", "5.00", "0.00", "20,000", "+2 KiB", "100.0 %"],
        ["ExploreLayers", "5.00", "3.75", "1.25", "0.00", "5,000", "+2 KiB", "25.0 %"],
        ["search", "10.00", "7.50", "2.50", "0.00", "10,000", "+2 KiB", "50.0 %"],
        ["Plan", *heads],
        ["half <b>", "8.00", "6.00", "2.00", "0.00", "8,000", "+2 KiB", "40.0 %"],
        ["Refit", "6.00", "4.50", "1.50", "0.00", "6,000", "+2 KiB", "30.0 %"],
        ["Layer", *heads],
        ["head", "25.00", "18.75", "6.25", "0.00", "25,000", "+2 KiB", "100.0 %"],
        ["conv1", "4.00", "3.00", "1.00", "0.00", "4,000", NONE, "20.0 %"],
    ]
    assert "<small>drop 0.10 pp</small>" in html
    assert "profile" not in Page(render(made(), FASTER, POINTS, None)).tables


def test_environment_and_configuration() -> None:
    text = re.sub(r"\s+", " ", Page(render(made(), FASTER, POINTS, None)).text)
    for said in (
        "models/digits.keras",
        "ab" * 32,
        "cd" * 32,
        "python 3.11.7",
        "ethos-u-vela not installed",
        "Seed 7",
        "max_macs 50%",
        "max_params —",
    ):
        assert said in text


def test_the_command_is_that_of_the_options() -> None:
    config = BuildConfig(
        targets=("tflite",),
        data="digits",
        max_macs="50%",
        max_latency="12ms",
        max_drop="1pp@95%",
        methods=("svd", "tt"),
        keep=("a b*",),
        time_budget="10m",
        seed=7,
        augment=False,
    ).model_dump(mode="json")
    assert (
        command(made(config=config))
        == "lrfc build models/digits.keras --target tflite --data digits --max-macs 50%"
        " --max-latency 12ms --max-drop 1pp@95% --methods svd,tt --keep 'a b*' --time-budget"
        " 600s --no-augment --seed 7"
    )
    assert command(made(config=config | {"data": "(from Python)"})) is None
    assert "lrfc build models/digits.keras --locked manifest.json" in render(
        made(), FASTER, POINTS, None
    )


def test_nothing_comes_from_outside_and_only_the_known_script_runs() -> None:
    html = full()
    page = Page(html)
    assert {name for _, name, _ in page.attributes} & {
        "src",
        "srcset",
        "onclick",
        "onload",
    } == set()
    assert [value for _, name, value in page.attributes if name == "href"] == ["data:,"]
    assert re.search(r"https?:|@import|url\(", html) is None
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert (
        f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        in html
    )
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_every_table_is_accessible() -> None:
    html = full()
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) == 12
    assert all("<caption>" in table for table in tables)
    assert re.findall(r"<th(?!ead)(?! scope)[^>]*>", html) == []
    ids = [value for _, name, value in Page(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {
        part
        for _, name, value in Page(html).attributes
        if name == "aria-labelledby"
        for part in value.split()
    }
    assert named <= set(ids)


def test_names_cannot_become_markup() -> None:
    evil = "<script>alert('x')</script>"
    layer = made().layers[0].model_copy(update={"name": evil, "reason": evil, "method": evil})
    candidates = [replace(row, layer=evil, method=row.method and evil) for row in CANDIDATES]
    ops = OpProfile(
        overhead_ms=0.1, before=(op(evil, evil, 1, 1.0),), after=(op(evil, evil, 1, 1.0),)
    )
    changed = made(
        layers=(layer,), input=Input(path=f"a/{evil}", sha256="ab" * 32), config={evil: [evil]}
    )
    html = render(changed, FASTER, POINTS, evil, candidates=candidates, ops=ops)
    assert html.count("<script") == 1
    assert html.count("&lt;script&gt;") >= 12


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, NONE), ((), NONE), (True, "yes"), (False, "no"), (0, "0"), (["a", "b"], "a, b"),
        ({"value": 0.01, "confidence": None}, "1pp"), ({"value": 0.5, "relative": True}, "50%"),
        ({"value": 2e6, "relative": False}, "2000000"),
        ({"value": 12.0, "relative": False, "given": "12ms"}, "12ms"),
    ],
)  # fmt: skip
def test_option(value: Any, shown: str) -> None:
    assert option(value) == shown
