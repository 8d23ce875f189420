"""The drawings on the page of a build, and the tables that stand for them."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from lrfc.config.build import BuildConfig
from lrfc.results.memory_plan import MemoryPlans
from lrfc.results.report.chart import chart
from tests.report_pages import (
    BY_RAM,
    CANDIDATES,
    FASTER,
    OPS,
    PLANS,
    POINTS,
    PRUNED,
    Page,
    full,
    made,
    render,
)


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
