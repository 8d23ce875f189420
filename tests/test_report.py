"""The page of a build: it has all of the manifest and loads nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from lrfc.config.build import BuildConfig
from lrfc.metrics.outcome import Kept, Part, Speedup
from lrfc.results.candidates import Row
from lrfc.results.manifest import (
    Accuracy,
    Attempt,
    Figures,
    File,
    Filters,
    FineTuning,
    Input,
    Kernels,
    Latency,
    Layer,
    Manifest,
    Parity,
    Round,
    Search,
)
from lrfc.results.memory_plan import MemoryPlan, MemoryPlans, Place, Region, Step
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.results.report import page as pages
from lrfc.results.report import tables
from lrfc.results.report.chart import chart
from lrfc.results.report.command import command, option
from lrfc.results.report.page import Content
from lrfc.results.time_profile import Entry
from lrfc.text import NONE


def ratio_of(median: float, low: float, high: float) -> Speedup:
    return Speedup(median=median, low=low, high=high)


FASTER = ratio_of(1.8, 1.7, 1.9)
POINTS: list[dict[str, Any]] = [
    {"macs": 500, "params": 60, "predicted_divergence": 0.4},
    {"macs": 1000, "params": 100, "predicted_divergence": 0.002},
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
                name="conv1",
                kind="conv2d",
                method="tucker2",
                rank=(4, 8),
                params_before=100,
                params_after=40,
                macs_before=1000,
                macs_after=400,
                similarity=0.9876,
            ),
            Layer(
                name="head",
                kind="dense",
                params_before=20,
                params_after=20,
                macs_before=20,
                macs_after=20,
                reason="no rank pays",
            ),
        ),
        "before": Figures(
            params=120,
            macs=1020,
            file_bytes=4096,
            arena_bytes=2048,
            accuracy=0.98,
            latency_ms=Latency(p50=2.0, p90=3.0, n=200, threads=1),
            peak_rss_bytes=50 * 2**20,
        ),
        "after": Figures(
            params=60,
            macs=420,
            file_bytes=2048,
            arena_bytes=1024,
            accuracy=0.97,
            latency_ms=Latency(p50=1.0, p90=1.5, n=180, threads=1),
            peak_rss_bytes=40 * 2**20,
        ),
        "accuracy": Accuracy(before=0.98, factorized=0.61, recalibrated=0.83, artifact=0.97),
        "parity": Parity(max_abs_diff=1.5e-6, samples=64),
        "artifacts": (File(path="digits.tflite", sha256="cd" * 32, bytes=2048, format="tflite"),),
    }
    return Manifest(**fields | changes)


def render(
    manifest: Manifest,
    ratio: Speedup | None,
    points: list[dict[str, Any]],
    problem: str | None,
    **content: Any,
) -> str:
    return pages.render(
        Content(
            manifest.model_copy(update={"speedup": ratio, "problem": problem}), points, **content
        )
    )


def op(
    name: str,
    layer: str,
    live: int,
    ms: float | None,
    kernel: tuple[int, ...] | None = None,
    weight_bytes: int = 0,
) -> OpCost:
    return OpCost(
        name=name,
        layer=layer,
        kind="Conv2D",
        kernel=kernel,
        output=(8, 8, 4),
        params=0,
        macs=0,
        weight_bytes=weight_bytes,
        live_bytes=live,
        predicted_ms=ms,
    )


STEPS = tuple(
    Step(operator=operator, layer=layer)
    for operator, layer in (
        ("CONV_2D", "conv1"),
        ("MAX_POOL_2D", "pool"),
        ("FULLY_CONNECTED", "head"),
    )
)
PLANS = MemoryPlans(
    runtime="tflm",
    before=MemoryPlan(
        steps=STEPS,
        places=(
            Place(name="image", bytes=1024, first=0, last=0, planned=2048, own=2048),
            Place(name="conv1", bytes=2048, first=0, last=1, planned=0, own=0),
            Place(name="pool", bytes=512, first=1, last=2, planned=2048, own=2048),
            Place(name="head", bytes=16, first=2, last=2, planned=0, own=0),
        ),
    ),
    after=MemoryPlan(
        steps=(STEPS[0], STEPS[0], Step(operator="CONCATENATION", layer="conv1"), *STEPS[1:]),
        places=(
            Place(name="image", bytes=1024, first=0, last=1, planned=1024, own=2048),
            Place(name="conv1, rows 0 to 3", bytes=512, first=0, last=2, planned=0, own=3072),
            Place(name="conv1, rows 4 to 7", bytes=512, first=1, last=2, planned=512, own=1536),
            Place(name="conv1", bytes=1024, first=2, last=3, planned=1024, own=0),
            Place(name="pool", bytes=512, first=3, last=4, planned=0, own=1024),
            Place(name="head", bytes=16, first=4, last=4, planned=512, own=0),
        ),
        regions=(Region(first=0, last=2, start="conv1", end="conv1", strips=2),),
    ),
)
BY_RAM: list[dict[str, Any]] = [
    {"macs": 500, "params": 60, "predicted_divergence": 0.4, "ram": 1536, "tail": 512},
    {"macs": 900, "params": 90, "predicted_divergence": 0.02, "ram": 2048, "tail": 600},
    {"macs": 500, "params": 60, "predicted_divergence": 0.4, "ram": 1536, "tail": 512},
]
for _point, _share in zip(BY_RAM, (1.0, 1.0, 0.5), strict=True):
    _point |= {"share": _share, "of": "latency", "latency": _point["macs"] / 500}

OPS = OpProfile(
    overhead_ms=0.1,
    before=(
        op("conv1", "conv1", 2048, 1.0, (3, 3, 4, 8), 400),
        op("pool", "pool", 1024, 0.5),
        op("head", "head", 100, 0.4, (8, 2), 80),
    ),
    after=(
        op("conv1__in", "conv1", 3072, 0.2, (1, 1, 4, 2), 40),
        op("conv1", "conv1", 2048, 0.3, (3, 3, 2, 8), 120),
        op("pool", "pool", 1024, 0.5),
        op("head", "head", 100, 0.4, (8, 2), 80),
    ),
)
CANDIDATES = (
    Row("conv1", None, "", 100, 1000, 1.0, 0.0, 1.0, False, False),
    Row("conv1", "svd", "2", 20, 200, 0.6, 0.5, 0.4, False, False),
    Row("conv1", "svd", "4", 40, 400, 0.9, 0.1, 1.2, False, True),
    Row("conv1", "tucker2", "2x2", 30, 300, 0.5, 0.6, 0.5, True, False),
    Row("head", None, "", 20, 20, 1.0, 0.0, 0.4, False, True),
)


VOID = {"meta", "link", "br", "input"}


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
        if tag not in VOID:  # those without an end
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
        if {"style", "title", "script"} & set(self._open):
            return
        self.text += data
        if {"th", "td"} & set(self._open) and "small" not in self._open:
            self.tables[self._section][-1][-1] += data


def test_figures_before_and_after() -> None:
    table = Page(render(made(), FASTER, POINTS, None)).tables["figures"]
    assert table == [
        ["Quantity", "Before", "After", "Kept", "Saved", "Factor"],
        ["MACs", "1,020", "420", "41.18 %", "58.82 %", "×2.43"],
        ["Parameters", "120", "60", "50.00 %", "50.00 %", "×2.00"],
        ["File size", "4 KiB (4,096 bytes)", "2 KiB (2,048 bytes)", "50.00 %", "50.00 %", "×2.00"],
        [
            "Planned activation arena",
            "2 KiB (2,048 bytes)",
            "1 KiB (1,024 bytes)",
            "50.00 %",
            "50.00 %",
            "×2.00",
        ],
        ["Latency, median", "2 ms", "1 ms", "55.56 %", "44.44 %", "×1.80"],
        ["Latency, 90th percentile", "3 ms", "1.5 ms", NONE, NONE, NONE],
        [
            "Peak resident memory",
            "50 MiB (52,428,800 bytes)",
            "40 MiB (41,943,040 bytes)",
            "80.00 %",
            "20.00 %",
            "×1.25",
        ],
        ["Accuracy", "98.00 %", "97.00 %", NONE, NONE, NONE],
    ]


def test_what_was_not_measured_is_a_dash_and_never_zero() -> None:
    bare = made(
        before=Figures(params=0, macs=10),
        after=Figures(params=0, macs=20),
        accuracy=Accuracy(),
        device=None,
        parity=None,
    )
    page = Page(render(bare, FASTER, [], None))
    by_name = {row[0]: row[1:] for row in page.tables["figures"]}
    for name in (
        "File size",
        "Planned activation arena",
        "Latency, median",
        "Peak resident memory",
        "Accuracy",
    ):
        assert by_name[name] == [NONE] * 5
    assert by_name["Parameters"] == ["0", "0", NONE, NONE, NONE]  # nothing can be kept of nothing
    assert by_name["MACs"] == ["10", "20", "200.00 %", "−100.00 %", "×0.50"]
    assert "Accuracy was not measured." in page.text
    assert "accuracy" not in page.tables


def test_a_latency_names_runs_and_threads_of_both_files() -> None:
    notes = {row.name: row.note for row in tables.figures(made())}
    assert notes["Latency, median"] == "measured, n = 200, 1 thread / measured, n = 180, 1 thread"
    assert {
        row.name: row.note
        for row in tables.figures(made().model_copy(update={"after": made().before}))
    }["Latency, median"] == "measured, n = 200, 1 thread"


def test_the_measured_memory_of_a_microcontroller_is_beside_its_estimated_time() -> None:
    sides = [
        side.model_copy(
            update={
                "latency_ms": Latency(p50=ms, p90=ms, n=1, threads=1, source="estimated"),
                "peak_rss_bytes": None,
                "arena_head_bytes": head,
                "arena_tail_bytes": 1024,
            }
        )
        for side, ms, head in ((made().before, 2.0, 2048), (made().after, 1.0, 1024))
    ]
    rows = {row.name: row for row in tables.figures(made(before=sides[0], after=sides[1]))}
    assert rows["Arena head: activations"].note == "measured with TensorFlow Lite Micro"
    assert "3,072" in rows["Arena, both"].before
    assert "2,048" in rows["Arena, both"].after
    assert "Latency, estimated" in rows
    assert "Peak resident memory" not in rows
    assert "Arena, both" not in {row.name for row in tables.figures(made())}


def test_a_page_of_estimates_does_not_speak_of_measurements() -> None:
    sides = [
        side.model_copy(
            update={
                "latency_ms": Latency(p50=ms, p90=ms, n=1, threads=1, source="estimated"),
                "peak_rss_bytes": None,
            }
        )
        for side, ms in ((made().before, 2.0), (made().after, 1.0))
    ]
    turns = Search(rounds=(Round(predicted_ms=1.0, measured_ms=1.0, source="estimated"),))
    manifest = made(before=sides[0], after=sides[1], search=turns, device="board")
    html = render(manifest, Speedup(median=2.0, source="estimated"), POINTS, None, ops=OPS)
    page = Page(html)
    assert ["Latency, estimated", "2 ms", "1 ms", "50.00 %", "50.00 %", "×2.00"] in page.tables[
        "figures"
    ]
    left = [
        line
        for line in page.text.splitlines()
        if "measured" in line and "not measured" not in line and "were not" not in line
    ]
    assert left == []
    assert "in turns" not in html
    assert "interval" not in " ".join(note for _, _, note in tables.cards(manifest))
    assert "plan 1: predicted 1 ms, estimated 1 ms" in html
    assert "original: estimated 2 ms" in html


def test_the_accuracy_by_stage_has_the_measured_stages() -> None:
    assert Page(render(made(), FASTER, POINTS, None)).tables["accuracy"][1:] == [
        ["Original in float", "98.00 %"],
        ["Factorized", "61.00 %"],
        ["BatchNorm re-estimated", "83.00 %"],
        ["Emitted file", "97.00 %"],
    ]


def test_every_layer_has_its_row() -> None:
    assert Page(render(made(), FASTER, POINTS, None, ops=OPS)).tables["layers"][1:] == [
        [
            "conv1",
            "tucker2",
            "4x8",
            "1,000 → 400 ",
            "100 → 40 ",
            "400 B → 160 B ",
            "1 → 0.5 ",
            "0.9876",
            "conv2d",
            "3×3×4×8 → 1×1×4×2 · 3×3×2×8",
            NONE,
        ],
        ["head", NONE, NONE, "20", "20", "80 B", "0.4", NONE, "dense", "8×2", "no rank pays"],
    ]
    bare = Page(render(made(), FASTER, POINTS, None)).tables["layers"][1]
    assert bare[5] == bare[6] == bare[9] == NONE


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (
            FASTER,
            "is ×1.80 as fast as the original (measured, 95 % interval 1.70 to 1.90)",
        ),
        (ratio_of(0.5, 0.4, 0.6), "is slower than the original, at ×0.50 its speed"),
        (ratio_of(1.2, 0.9, 1.4), "is not measurably faster or slower"),
        (ratio_of(1.004, 1.001, 1.006), "is as fast as the original"),
    ],
)
def test_the_verdict_claims_a_speed_only_when_the_whole_interval_does(
    ratio: Speedup, said: str
) -> None:
    text = Page(render(made(), ratio, POINTS, None)).text
    assert said in text
    assert "Accuracy 97.00 % (original in float: 98.00 %)." in text
    assert 'role="alert"' not in render(made(), ratio, POINTS, None)


def test_a_problem_stands_before_all_figures() -> None:
    text = Page(render(made(), FASTER, POINTS, "--max-macs 30%: 420 of 1,020")).text
    assert text.index("--max-macs 30%: 420 of 1,020") < text.index("Before and after")
    assert "keeps 41.18 % of the MACs" in text


def test_without_gain_nothing_is_claimed_of_the_original() -> None:
    layers = tuple(layer.model_copy(update={"method": None}) for layer in made().layers)
    text = Page(
        render(
            made(layers=layers, after=made().before),
            ratio_of(0.5, 0.4, 0.6),
            POINTS,
            "no gain: slower",
        )
    ).text
    assert "Compression brought no gain on local, so the original was kept." in text
    assert "It keeps" not in text
    assert "of the compressed file, which does not ship" in text


def test_the_plot_is_well_formed_and_has_a_table() -> None:
    html = render(made(), FASTER, list(reversed(POINTS)), None)
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", html, re.DOTALL)[0])  # type: ignore[index]
    marks = [
        (float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in svg.iter("circle")
    ]
    assert len(marks) == 2
    assert marks[0][0] < marks[1][0]  # more MACs to the right
    assert marks[0][1] < marks[1][1]  # more divergence above
    width, height = (float(value) for value in svg.attrib["viewBox"].split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in marks)
    assert Page(html).tables["front"][1:] == [["500", "60", "0.4"], ["1,000", "100", "0.002"]]


@pytest.mark.parametrize("points", [[], [{"macs": 0, "params": 0, "predicted_divergence": 0.0}]])
def test_a_front_may_be_empty_or_a_single_point(points: list[dict[str, Any]]) -> None:
    html = render(made(), FASTER, points, None)
    assert ("Pareto" in html and "No front was computed" in html) == (not points)
    assert "nan" not in html.partition("<script>")[0].lower()


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


#: The layers of ``made`` when filters could be cut, and were.
PRUNED: dict[str, Any] = {
    "layers": (
        made().layers[0].model_copy(update={"filters_before": 64, "filters_after": 16}),
        made()
        .layers[1]
        .model_copy(
            update={
                "filters_before": 2,
                "filters_after": 2,
                "filters_reason": "its filters are the model's output 'head'",
            }
        ),
    ),
    "filters": (
        Filters(name="conv1", layers=("conv1", "conv2"), units=2, kept=(1,), impact=0.0125),
    ),
}


def entry(name: str, seconds: float, *parts: Entry, **fields: Any) -> Entry:
    """An entry of the time profile."""
    defaults: dict[str, Any] = {
        "kind": "stage",
        "parallel": False,
        "verdict": None,
        "user_seconds": seconds / 2,
        "system_seconds": seconds / 4,
        "children_seconds": 0.0,
        "page_faults": 1_000 * int(seconds),
        "peak_growth_bytes": 2_048,
    }
    return Entry(name=name, seconds=seconds, parts=parts, **defaults | fields)


PROFILE = entry(
    "build",
    20,
    entry(
        "ExploreLayers",
        5,
        entry("conv1", 4, kind="layer", parallel=True, peak_growth_bytes=None),
        entry("head", 25, kind="layer", parallel=True),
    ),
    entry(
        "search",
        10,
        entry("half <b>", 8, entry("Refit", 6), kind="plan", verdict="drop 0.10 pp"),
    ),
)


def full() -> str:
    """A page with everything on it."""
    return drawn(full_manifest())


def full_manifest() -> Manifest:
    """The manifest of that page."""
    kept = Kept(
        allowed=0.01, drop=0.005, low=-0.001, high=0.011, confidence=0.95, samples=400, met=True
    )
    attempts = (
        Attempt(allowed_divergence=0.1, kept=kept, accuracy=0.9, latency_ms=0.8, ram_bytes=1536),
        Attempt(allowed_divergence=0.05, kept=kept),
    )
    manifest = made(
        search=Search(
            candidates=4,
            seconds=1.0,
            rounds=(
                Round(predicted_ms=1.0, measured_ms=1.3),
                Round(predicted_ms=1.2, measured_ms=1.25),
            ),
            attempts=attempts,
        ),
        finetune=FineTuning(
            losses=(None, 0.5, 0.3),
            scores=(0.9, 0.95, None),
            best=1,
            learning_rate=1e-3,
            steps=20,
            seconds=3.0,
        ),
        accuracy=Accuracy(
            metric="accuracy",
            before=0.98,
            artifact=0.97,
            kept=kept,
            kernels=Kernels(reference=0.965, optimised=0.972, samples=1_200, counted=True),
        ),
        profile=PROFILE,
    )
    return manifest.model_copy(update=PRUNED)


def drawn(manifest: Manifest) -> str:
    """The page with everything on it, of a manifest."""
    by_latency = [{**point, "latency": point["macs"] / 500} for point in POINTS]
    return render(
        manifest,
        FASTER,
        POINTS,
        None,
        by_latency=by_latency,
        by_ram=BY_RAM,
        candidates=CANDIDATES,
        ops=OPS.model_copy(update={"memory": PLANS}),
    )


def test_the_verdict_shows_kept_and_saved_and_how_sure_both_are() -> None:
    text = re.sub(r"\s+", " ", Page(full()).text)
    for said in (
        "41.18 % kept",
        "58.82 % saved",
        "×1.80",
        "95 % interval 1.70 to 1.90",
        "97.00 %",
        "original in float 98.00 %; drop 0.50 pp (95 % interval −0.10 to 1.10, 400 samples)",
        (
            "On 1,200 samples the file that ships has 97.20 % with the former, 96.50 % with the"
            " latter. local rounds as the reference kernels do"
        ),
    ):
        assert said in text


def test_the_report_says_by_what_the_epoch_was_chosen() -> None:
    run = full_manifest().finetune
    assert run is not None
    plain = Page(full()).text
    assert "was trained on the validation samples" not in plain
    assert "Validation accuracy, % by epoch" in full()
    changed = run.model_copy(
        update={
            "scores": (-0.3, -0.2, None),
            "measure": "divergence from the original on changed samples",
            "seen": "its loss on them is 0.01, on the test samples 0.4",
        }
    )
    html = drawn(full_manifest().model_copy(update={"finetune": changed}))
    assert "Validation minus the divergence from the original on changed samples by epoch" in html
    text = re.sub(r"\s+", " ", Page(html).text)
    assert (
        "The original was trained on the validation samples (its loss on them is 0.01, on the test"
        " samples 0.4), so the epoch was chosen by the divergence from the original on changed"
        " samples."
    ) in text


def test_filters_are_counted_and_groups_are_in_units() -> None:
    page = Page(full())
    head, conv, dense = page.tables["layers"]
    assert [row[3].strip() for row in (head, conv, dense)] == ["Filters", "64 → 16", "2"]
    assert "1 of 2 layers factorized, 1 pruned." in page.text
    assert "Filters: its filters are the model's output 'head'" in page.text
    assert page.tables["filters"] == [
        ["Group", "Units", "Predicted divergence", "Layers"],
        ["conv1", "2 → 1 ", "0.0125", "conv1, conv2"],
    ]
    plain = Page(render(made(), FASTER, POINTS, None))
    assert "Filters" not in plain.tables["layers"][0]
    assert "filters" not in plain.tables


def test_a_layer_that_was_cut_shows_the_kernel_that_ships() -> None:
    layers = tuple(
        layer.model_copy(update={"method": None, "rank": None}) for layer in made().layers
    )
    cut = made(layers=layers, filters=PRUNED["filters"])
    html = render(cut, FASTER, POINTS, "not met: --max-macs 10%", ops=OPS)
    assert Page(html).tables["layers"][1][9] == "3×3×4×8 → 1×1×4×2 · 3×3×2×8"
    assert "the original model was kept" not in html
    assert html.count("data-kept") == 1 + 1, "only the head, and the script's own"
    kept = Page(render(made(layers=layers), FASTER, POINTS, "no gain", ops=OPS))
    assert kept.tables["layers"][1][9] == "3×3×4×8", "the ops are those of a file that did not ship"


def test_without_methods_no_other_plans_are_drawn() -> None:
    only = made(config=BuildConfig(prune="only").model_dump(mode="json"), filters=PRUNED["filters"])
    html = render(
        only,
        FASTER,
        POINTS,
        None,
        by_latency=[{**POINTS[0], "latency": 1.0}],
        candidates=CANDIDATES,
    )
    page = Page(html)
    assert "No factorization was tried (--prune only)" in page.text
    assert "front" not in page.tables
    assert "curves" not in page.tables
    assert "Similarity against rank" not in page.text
    assert "accuracy against measured latency" in html, "the files that were emitted are drawn"


def rounded(*, counted: bool = True) -> Manifest:
    """A build of integers, whose original has one score in float and another as a file."""
    steps = [
        ("compression", -0.002),
        ("emission", 0.007),
        *([("kernels", 0.013)] if counted else []),
    ]
    kept = Kept(
        allowed=0.02,
        drop=0.018 if counted else 0.005,
        low=0.001,
        high=0.03,
        confidence=0.95,
        samples=1_000,
        met=True,
        margin=0.002 if counted else 0.015,
        parts=tuple(Part(step=step, drop=drop) for step, drop in steps),
    )
    kernels = Kernels(reference=0.371, optimised=0.384, samples=1_000, counted=counted)
    sides = [
        side.model_copy(update={"accuracy": score})
        for side, score in ((made().before, 0.405), (made().after, 0.384))
    ]
    scores = Accuracy(metric="accuracy", before=0.389, artifact=0.384, kept=kept, kernels=kernels)
    return made(before=sides[0], after=sides[1], accuracy=scores, config={"precision": "int8"})


def test_the_score_of_the_original_says_whether_it_is_that_of_its_file() -> None:
    page = Page(render(rounded(), FASTER, POINTS, None))
    for said in (
        "Accuracy 38.40 % (original in float: 38.90 %): drop 1.80 pp (95 % interval",
        "original in float 38.90 %; drop 1.80 pp (95 % interval",
        "The original's emitted file and the one that ships, both int8.",
        (
            "The drop in parts: −0.20 pp by compression in float + 0.70 pp by emission of the file"
            " + 1.30 pp by the reference kernels"
        ),
        (
            "The drop is relative to the original in float (38.90 %); the original's own file has"
            " 40.50 %."
        ),
    ):
        assert said in page.text
    assert page.tables["accuracy"][1] == ["Original in float", "38.90 %"]
    assert page.tables["figures"][-1][:3] == ["Accuracy", "38.90 %", "38.40 % (drop 1.80 pp)"]
    drops = re.findall(r"drop (\S+) pp", page.text)
    assert set(drops) == {"1.80"}, "one drop on the page"
    assert "−2.10" not in page.text


def test_one_baseline_needs_no_words() -> None:
    assert "kernels" not in tables.baselines(rounded(counted=False))
    same = made(accuracy=Accuracy(before=0.98, artifact=0.97))
    assert tables.baselines(same) == ""
    assert "the original's file" not in Page(render(same, FASTER, POINTS, None)).text


def test_where_cycles_are_known_the_times_of_layers_add_up_to_the_latency() -> None:
    spent = {"conv1": 700, "pool": 100, "head": 200, "conv1__in": 100}
    sides = [
        [each.model_copy(update={"cycles": spent[each.name]}) for each in side]
        for side in (OPS.before, OPS.after)
    ]
    sides[0][0] = sides[0][0].model_copy(update={"cycles": 1_700})
    latency = Latency(p50=1.0, p90=1.0, n=1, threads=1, source="compiled")
    manifest = made(
        before=made().before.model_copy(update={"cycles": 2_000, "latency_ms": latency}),
        after=made().after.model_copy(
            update={"cycles": 1_100, "latency_ms": latency.model_copy(update={"p50": 0.55})}
        ),
    )
    ops = OpProfile(overhead_ms=0.1, before=tuple(sides[0]), after=tuple(sides[1]))
    page = Page(render(manifest, FASTER, POINTS, None, ops=ops))
    assert page.tables["times"][1:] == [
        ["conv1", "0.85", "0.4", ""],
        ["pool", "0.05", "0.05", ""],
        ["head", "0.1", "0.1", ""],
    ]
    assert [row[6].strip() for row in page.tables["layers"][1:]] == ["0.85 → 0.4", "0.1"]
    assert (
        "Time: compiled: the cycles that the compiler of local counts, at its clock." in page.text
    )
    assert (
        "Compiled: the cycles that the compiler of local counts, at its clock; they add up to the"
        " compiled latency." in page.text
    )
    assert "Predicted for local" not in page.text


def test_a_drop_has_a_unit() -> None:
    kept = Kept(
        allowed=None, drop=0.02, low=-0.01, high=0.03, confidence=0.95, samples=400, met=True
    )
    told = {
        "% of the variance of the labels": (
            "original in float 3.1; drop 2.00 % of the variance of the labels (95 % interval −1.00"
            " to 3.00,"
        ),
        None: "drop 2.00 % (95 % interval",
    }
    for unit, text in told.items():
        scores = Accuracy(
            metric="mean squared error",
            percent=False,
            before=3.1,
            artifact=3.2,
            kept=kept.model_copy(update={"unit": unit}),
        )
        assert (
            text
            in tables.cards(
                made(accuracy=scores, after=made().after.model_copy(update={"accuracy": 3.2}))
            )[-1][2]
        )


def test_an_increase_is_not_called_kept() -> None:
    manifest = made()
    grown = manifest.model_copy(
        update={
            "after": manifest.after.model_copy(
                update={"arena_bytes": 2 * (manifest.before.arena_bytes or 0)}
            )
        }
    )
    assert ("Activation memory", "×2.00", "100.00 % more than before") in tables.cards(grown)


def test_no_axis_goes_beyond_what_there_is() -> None:
    drawn = chart(
        {"score": [(0, 99.6, ""), (1, 99.9, "")]},
        "score",
        "epoch",
        "score, %",
        from_zero=(True, False),
        most_y=100,
    )
    ticks = [float(value) for value in re.findall(r'text-anchor="end">([\d.]+)<', drawn)]
    assert ticks
    assert max(ticks) <= 100


@pytest.mark.parametrize(
    ("title", "points"),
    [
        ("Predicted divergence of the output against predicted latency", 2),
        ("accuracy against measured latency of the emitted files", 3),
        ("accuracy against activation memory of the emitted files", 3),
        ("conv1: similarity against the MACs that a rank keeps", 3 + 1 + 1),
        ("Predicted divergence of the output against activation memory", 3),
        ("Before, by the plan in the file: 3 KiB", 4),
        ("Before, as TensorFlow Lite Micro places them itself: 3 KiB", 4),
        ("After, by the plan in the file: 2 KiB", 6),
        ("After, as TensorFlow Lite Micro places them itself: 3.5 KiB", 6),
        ("Measured against predicted latency", 2),
        ("Validation accuracy, % by epoch", 2),
        ("Training loss by epoch", 2),
    ],
)
def test_every_drawing_has_a_title_and_its_points(title: str, points: int) -> None:
    found = [
        svg
        for svg in re.findall(r"<svg.*?</svg>", full(), re.DOTALL)
        if f"<title>{title}</title>" in svg
    ]
    assert len(found) == 1
    svg = ET.fromstring(found[0])
    assert svg.attrib["aria-label"] == title
    assert (
        sum(
            each.tag != "polyline" and "mark" in each.attrib.get("class", "") for each in svg.iter()
        )
        == points
    )


def test_the_table_names_what_sets_the_peak_and_the_patches() -> None:
    page = Page(full())
    assert page.tables["memory"] == [
        [
            "File",
            "Peak",
            "Plan in the file",
            "Own placement",
            "Operator at the peak",
            "Alive then",
        ],
        [
            "Before",
            "3,072",
            "3,072",
            "3,072",
            "conv1 (CONV_2D)",
            "conv1: 2 KiB; image: 1 KiB",
        ],
        [
            "After",
            "2,048",
            "2,048",
            "3,584",
            "conv1 (CONV_2D), conv1 (CONCATENATION)",
            "image: 1 KiB; conv1, rows 0 to 3: 512 B; conv1, rows 4 to 7: 512 B",
        ],
    ]
    assert "After: conv1 to conv1 in 2 strips, the operators 1 to 3 of the file." in page.text


def test_boxes_are_at_their_places_and_the_peak_is_marked() -> None:
    svgs = re.findall(r"<svg.*?</svg>", full(), re.DOTALL)
    (drawn,) = (svg for svg in svgs if "<title>After, by the plan in the file" in svg)
    svg = ET.fromstring(drawn)
    boxes = {
        each.findtext("title", "").split(":")[0]: each.attrib
        for each in svg.iter("rect")
        if "tensor" in each.attrib["class"]
    }
    coloured = [name for name, box in boxes.items() if "peak" in box["class"]]
    assert coloured == ["image", "conv1, rows 0 to 3", "conv1, rows 4 to 7"]
    first, second, whole = (boxes[name] for name in (*coloured[1:], "conv1"))
    assert float(first["y"]) == pytest.approx(
        float(second["y"]) + float(second["height"]), abs=0.11
    )
    assert float(whole["height"]) == pytest.approx(2 * float(first["height"]), abs=0.11)
    assert float(first["width"]) == pytest.approx(1.5 * float(second["width"]), abs=0.11)
    (region,) = (each for each in svg.iter("rect") if each.attrib["class"] == "region")
    (reached,) = (each for each in svg.iter("rect") if each.attrib["class"] == "reached")
    assert float(region.attrib["width"]) == pytest.approx(float(first["width"]), abs=0.11)
    assert float(reached.attrib["x"]) == pytest.approx(float(second["x"]), abs=0.11)
    assert "2 strips" in [each.text for each in svg.iter("text")]


def test_on_a_host_the_runtime_places_the_activations() -> None:
    sides = (
        side.model_copy(
            update={
                "places": tuple(p.model_copy(update={"planned": None}) for p in side.places),
                "regions": (),
            }
        )
        for side in (PLANS.before, PLANS.after)
    )
    plans = MemoryPlans(runtime="litert", **dict(zip(("before", "after"), sides, strict=True)))
    html = render(made(), FASTER, [], None, ops=OPS.model_copy(update={"memory": plans}))
    page = Page(html)
    heads = "File,Peak,Placed by LiteRT,Operator at the peak,Alive then".split(",")
    assert page.tables["memory"][0] == heads
    assert page.tables["memory"][2][1:3] == ["2,048", "3,584"]
    assert "strips" not in page.text
    assert "plan in the file" not in html


def test_without_the_plans_of_the_files_the_bytes_alive_are_drawn() -> None:
    html = render(made(), FASTER, [], None, ops=OPS)
    assert html.count("<title>Activation memory alive while each op runs</title>") == 1
    assert "memory" not in Page(html).tables


def test_the_front_over_memory_has_the_file_and_a_table() -> None:
    page = Page(full())
    assert [
        "Memory",
        "Of it tail",
        "Latency, at most",
        "Predicted latency, ms",
        "MACs",
        "Parameters",
        "Predicted divergence",
    ] in page.tables["front"]
    row = ["2 KiB (2,048 bytes)", "600 B", "100 %", "1.8", "900", "90", "0.02"]
    assert row in page.tables["front"]
    assert "at most 50 % of the predicted latency" in page.text
    by_macs = [{**point, "tail": 0, "of": "macs", "latency": None} for point in BY_RAM]
    html = render(made(), FASTER, POINTS, None, by_ram=by_macs)
    assert "at most 50 % of the MACs" in html
    assert "structures behind" not in html
    same = [{**point, "ram": 2048} for point in BY_RAM]
    assert "All plans take the same memory" in render(made(), FASTER, POINTS, None, by_ram=same)


def test_bars_follow_one_another() -> None:
    html = full()
    table = Page(html).tables["times"]
    assert table[1:] == [
        ["conv1", "1", "0.5", ""],
        ["pool", "0.5", "0.5", ""],
        ["head", "0.4", "0.4", ""],
        ["outside of the ops", "0.1", "0.1", ""],
    ]
    assert "margin-left:0.00%;width:50.00%" in html
    assert "margin-left:50.00%;width:25.00%" in html
    assert "Predicted for local from its cost profile, not measured" in html


def test_the_layer_that_changed_is_shown_first_and_slower_ranks_are_ringed() -> None:
    html = full()
    assert "<option selected>conv1</option><option>head</option>" in html
    assert "similarity 0.9000 at 40.00 % of the MACs and 120.00 % of the predicted time" in html


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
