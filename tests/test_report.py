"""The page of a build: the verdict, the figures and the layers are those of the manifest."""

from __future__ import annotations

import re

import pytest

from lrfc.metrics.outcome import Kept, Speedup
from lrfc.results.manifest import (
    Accuracy,
    Figures,
    Latency,
    Round,
    Search,
)
from lrfc.results.op_costs import OpProfile
from lrfc.results.report import tables
from lrfc.text import NONE
from tests.report_pages import (
    FASTER,
    OPS,
    POINTS,
    PRUNED,
    Page,
    drawn,
    full,
    full_manifest,
    made,
    ratio_of,
    render,
    rounded,
)


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
