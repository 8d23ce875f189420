"""The page says what the manifest says, leaves out what was not measured, and needs nothing from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from lrfc.config import BuildConfig
from lrfc.manifest import Accuracy, Figures, File, Input, Latency, Layer, Manifest, Parity
from lrfc.report.page import NONE, option, percent, render, rows, size
from lrfc.targets.measure import Ratio

FASTER = Ratio(1.8, 1.7, 1.9)
POINTS: list[dict[str, Any]] = [
    {"macs": 500, "params": 60, "predicted_divergence": 0.4},
    {"macs": 1000, "params": 100, "predicted_divergence": 0.0},
]


def made(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "input": Input(path="models/digits.keras", sha256="ab" * 32),
        "config": BuildConfig(max_macs="50%", seed=7).model_dump(mode="json"),
        "seed": 7,
        "versions": {"python": "3.11.7", "keras": "3.15.1", "ethos-u-vela": None},
        "target": "tflite",
        "device": "local",
        "layers": (
            Layer(
                name="conv1", kind="conv2d", method="tucker2", rank=(4, 8), params_before=100, params_after=40,
                macs_before=1000, macs_after=400, similarity=0.9876,
            ),
            Layer(name="head", kind="dense", params_before=20, params_after=20, macs_before=20, macs_after=20, reason="no rank pays"),
        ),
        "before": Figures(
            params=120, macs=1020, file_bytes=4096, arena_bytes=2048, accuracy=0.98, latency_ms=Latency(p50=2.0, p90=3.0, n=200, threads=1),
            peak_rss_bytes=50 * 2**20,
        ),
        "after": Figures(
            params=60, macs=420, file_bytes=2048, arena_bytes=1024, accuracy=0.97, latency_ms=Latency(p50=1.0, p90=1.5, n=180, threads=1),
            peak_rss_bytes=40 * 2**20,
        ),
        "accuracy": Accuracy(before=0.98, factorized=0.61, recalibrated=0.83, artifact=0.97),
        "parity": Parity(max_abs_diff=1.5e-6, samples=64),
        "artifacts": (File(path="digits.tflite", sha256="cd" * 32, bytes=2048, format="tflite"),),
    }  # fmt: skip
    return Manifest(**fields | changes)


class Page(HTMLParser):
    """The rows of each table by its section's heading id, the visible text, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":  # the only one without an end
            self._open.append(tag)
        if tag == "dd":
            self.text += " "
        if tag == "section":
            self._section = dict(attrs)["aria-labelledby"] or ""
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("th", "td"):
            self.tables[self._section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "title"} & set(self._open):
            return
        self.text += data
        if {"th", "td"} & set(self._open) and "small" not in self._open:
            self.tables[self._section][-1][-1] += data


def test_figures_before_and_after() -> None:
    table = Page(render(made(), FASTER, POINTS, None)).tables["figures"]
    assert table == [
        ["Quantity", "Before", "After", "Kept", "Saved", "Factor"],
        ["MACs", "1,020", "420", "41.18 %", "58.82 %", "×2.43"],
        ["Parameters", "120", "60", "50.00 %", "50.00 %", "×2"],
        ["File size", "4.0 KiB (4,096 bytes)", "2.0 KiB (2,048 bytes)", "50.00 %", "50.00 %", "×2"],
        ["Planned activation arena", "2.0 KiB (2,048 bytes)", "1.0 KiB (1,024 bytes)", "50.00 %", "50.00 %", "×2"],
        ["Latency, median", "2 ms", "1 ms", "50.00 %", "50.00 %", "×2"],
        ["Latency, 90th percentile", "3 ms", "1.5 ms", "50.00 %", "50.00 %", "×2"],
        ["Peak resident memory", "50.0 MiB (52,428,800 bytes)", "40.0 MiB (41,943,040 bytes)", "80.00 %", "20.00 %", "×1.25"],
        ["Accuracy", "98.00 %", "97.00 % (−1.00 pp)", "98.98 %", NONE, NONE],
    ]


def test_what_was_not_measured_is_a_dash_and_never_zero() -> None:
    bare = made(before=Figures(params=0, macs=10), after=Figures(params=0, macs=20), accuracy=Accuracy(), device=None, parity=None)
    page = Page(render(bare, FASTER, [], None))
    by_name = {row[0]: row[1:] for row in page.tables["figures"]}
    for name in ("File size", "Planned activation arena", "Latency, median", "Latency, 90th percentile", "Peak resident memory", "Accuracy"):
        assert by_name[name] == [NONE] * 5
    assert by_name["Parameters"] == ["0", "0", NONE, NONE, NONE]  # nothing can be kept of nothing
    assert by_name["MACs"] == ["10", "20", "200.00 %", "−100.00 %", "×0.5"]
    assert "Accuracy was not measured." in page.text
    assert "accuracy" not in page.tables


def test_a_latency_names_runs_and_threads_of_both_files() -> None:
    notes = {row.name: row.note for row in rows(made())}
    assert notes["Latency, median"] == "n = 200, 1 thread / n = 180, 1 thread"
    assert {row.name: row.note for row in rows(made().model_copy(update={"after": made().before}))}["Latency, median"] == "n = 200, 1 thread"


def test_the_ladder_has_the_steps_that_were_measured() -> None:
    assert Page(render(made(), FASTER, POINTS, None)).tables["accuracy"][1:] == [
        ["Original", "98.00 %"],
        ["Factorized", "61.00 %"],
        ["BatchNorm re-estimated", "83.00 %"],
        ["Emitted file", "97.00 %"],
    ]


def test_every_layer_has_its_row() -> None:
    assert Page(render(made(), FASTER, POINTS, None)).tables["layers"][1:] == [
        ["conv1", "conv2d", "tucker2", "4 × 8", "100", "40", "1,000", "400", "0.9876", NONE],
        ["head", "dense", NONE, NONE, "20", "20", "20", "20", NONE, "no rank pays"],
    ]


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (FASTER, "is 1.80 times as fast"),
        (Ratio(0.5, 0.4, 0.6), "is slower, at 0.50 times the speed"),
        (Ratio(1.2, 0.9, 1.4), "is not measurably faster or slower"),
        (Ratio(1.004, 1.001, 1.006), "is as fast as the original"),
    ],
)
def test_the_verdict_claims_a_speed_only_when_the_whole_interval_does(ratio: Ratio, said: str) -> None:
    text = Page(render(made(), ratio, POINTS, None)).text
    assert said in text
    assert "its accuracy is 97.00 % (−1.00 pp)" in text
    assert 'role="alert"' not in render(made(), ratio, POINTS, None)


def test_a_problem_stands_before_all_figures() -> None:
    text = Page(render(made(), FASTER, POINTS, "--max-macs 30%: 420 of 1,020")).text
    assert text.index("--max-macs 30%: 420 of 1,020") < text.index("Before and after")
    assert "keeps 41.18 % of the MACs" in text


def test_without_gain_nothing_is_claimed_of_the_original() -> None:
    layers = tuple(layer.model_copy(update={"method": None}) for layer in made().layers)
    text = Page(render(made(layers=layers, after=made().before), Ratio(0.5, 0.4, 0.6), POINTS, "no gain: slower")).text
    assert "the original model was kept" in text
    assert "The compressed model" not in text
    assert "of the factorized file, which was not kept" in text


def test_the_plot_is_well_formed_and_has_a_table() -> None:
    html = render(made(), FASTER, list(reversed(POINTS)), None)
    svg = ET.fromstring(re.search(r"<svg.*</svg>", html, re.DOTALL)[0])  # type: ignore[index]
    marks = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in svg.iter("circle")]
    assert len(marks) == 2
    assert marks[0][0] < marks[1][0]  # more MACs to the right
    assert marks[0][1] < marks[1][1]  # more divergence above
    width, height = (float(value) for value in svg.attrib["viewBox"].split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in marks)
    assert Page(html).tables["front"][1:] == [["500", "60", "0.4"], ["1,000", "100", "0"]]


@pytest.mark.parametrize("points", [[], [{"macs": 0, "params": 0, "predicted_divergence": 0.0}]])
def test_a_front_may_be_empty_or_a_single_point(points: list[dict[str, Any]]) -> None:
    html = render(made(), FASTER, points, None)
    assert ("<svg" in html) == bool(points)
    assert "nan" not in html.lower()


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


def test_nothing_comes_from_outside_and_nothing_runs() -> None:
    html = render(made(), FASTER, POINTS, None)
    page = Page(html)
    assert {name for _, name, _ in page.attributes} & {"src", "href", "srcset", "onclick", "onload"} == set()
    assert re.search(r"https?:|@import|url\(|<script", html) is None
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_every_table_is_accessible() -> None:
    html = render(made(), FASTER, POINTS, None)
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert len(tables) == 4
    assert all("<caption>" in table for table in tables)
    assert re.findall(r"<th(?!ead)(?! scope)[^>]*>", html) == []
    ids = [value for _, name, value in Page(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {part for _, name, value in Page(html).attributes if name == "aria-labelledby" for part in value.split()}
    assert named <= set(ids)


def test_names_cannot_become_markup() -> None:
    evil = "<script>alert('x')</script>"
    layer = made().layers[0].model_copy(update={"name": evil, "reason": evil, "method": evil})
    html = render(made(layers=(layer,), input=Input(path=f"a/{evil}", sha256="ab" * 32), config={evil: [evil]}), FASTER, POINTS, evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, NONE), ((), NONE), (True, "yes"), (False, "no"), (0, "0"), (["a", "b"], "a, b"),
        ({"value": 0.5, "relative": True}, "50%"), ({"value": 2e6, "relative": False}, "2000000"),
    ],
)  # fmt: skip
def test_option(value: Any, shown: str) -> None:
    assert option(value) == shown


def test_numbers() -> None:
    assert [size(value) for value in (None, 0, 1023, 1536)] == [NONE, "0 bytes", "1,023 bytes", "1.5 KiB (1,536 bytes)"]
    assert [percent(value) for value in (None, 0.0, -0.25)] == [NONE, "0 %", "−25.00 %"]
