"""The streams of the command line and the output on builds, in text and JSON."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrfc.cli import build_view
from lrfc.cli.console import Terminal, quiet
from lrfc.engine.package import Result
from lrfc.metrics.outcome import Kept, Speedup
from lrfc.results.candidates import Explanation, Row
from lrfc.results.manifest import Accuracy, Figures, Input, Kernels, Latency, Layer, Manifest
from lrfc.system import scratch
from lrfc.targets.devices.speed import Ratio


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(*, screen: bool = False) -> tuple[Terminal, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), Screen() if screen else io.StringIO()
    return Terminal(out, err), out, err


# -- silence ---------------------------------------------------------------------------------------


def test_the_output_of_libraries_is_hidden(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with quiet() as (out, err, _):
        os.write(1, b"noise")
        os.write(2, b"more noise")
        out.write("result")
        err.write("progress")
    sys.stdout.write("after")
    sys.stdout.flush()
    assert capfd.readouterr() == ("resultafter", "progress")
    assert list(tmp_path.iterdir()) == []


def test_the_noise_is_kept_with_the_traceback_of_a_bug(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with quiet() as (_, _, details):
        os.write(2, b"the last words of a library\n")
        try:
            _ = 1 // 0
        except ZeroDivisionError as error:
            log = details(error)
    assert log.parent == scratch.root()
    assert "the last words" in log.read_text()
    assert "ZeroDivisionError" in log.read_text()
    assert capfd.readouterr() == ("", "")


def test_the_streams_come_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    os.write(1, b"here again")
    assert capfd.readouterr().out == "here again"


# -- lines -----------------------------------------------------------------------------------------


def test_a_failure_is_one_line_and_an_exit_code() -> None:
    term, out, err = terminal()
    with pytest.raises(SystemExit) as caught:
        term.fail("file [bold]x[/bold]\n  is " + 40 * "very " + "long", 3)
    assert caught.value.code == 3
    assert err.getvalue() == "lrfc: file [bold]x[/bold] is " + 40 * "very " + "long\n"
    assert out.getvalue() == ""


def test_progress_without_a_terminal_is_plain_lines() -> None:
    term, out, err = terminal()
    progress = term.progress()
    progress.stage("candidates", 3)(1)
    progress.log("ExploreLayers: [3] done")
    assert err.getvalue() == "ExploreLayers: [3] done\n"
    assert out.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    term, out, err = terminal(screen=True)
    progress = term.progress()
    for title in ("candidates", "sensitivity"):
        step = progress.stage(title, 2)
        step(1)
        step(1)
    progress.log("a line above the bar")
    with pytest.raises(SystemExit):
        term.fail("over", 1)
    assert "a line above the bar" in err.getvalue()
    assert "2/2" in err.getvalue()
    assert err.getvalue().endswith("lrfc: over\n")
    assert out.getvalue() == ""


def test_json_is_one_object_and_has_no_nan() -> None:
    term, out, _ = terminal()
    term.json({"a": [1, None]})
    assert json.loads(out.getvalue()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        term.json({"a": float("nan")})


# -- results ---------------------------------------------------------------------------------------


def result(name: str = "small", accuracy: float | None = 0.9) -> Result:
    def figures(factor: int, score: float | None) -> Figures:
        return Figures(
            params=1000 * factor,
            macs=20_000 * factor,
            file_bytes=4096 * factor,
            arena_bytes=512,
            accuracy=score,
            latency_ms=Latency(p50=0.5 * factor, p90=0.75 * factor, n=200, threads=2),
        )

    cost = {"params_before": 5, "params_after": 5, "macs_before": 7, "macs_after": 7}
    manifest = Manifest(
        input=Input(path="model.keras", sha256="0" * 64),
        config={"precision": "fp32"},
        seed=0,
        versions={},
        target="tflite",
        layers=(
            Layer(name="a", kind="Conv2D", method="svd", **cost),
            Layer(name="b", kind="Dense", reason="too small", **cost),
        ),
        before=figures(4, accuracy),
        after=figures(1, accuracy),
        accuracy=Accuracy(before=accuracy, artifact=accuracy),
        speedup=Speedup(median=3.9, low=3.8, high=4.1),
        artifacts=(),
    )
    return Result(Path(name), manifest, Ratio(3.9, 3.8, 4.1))


def test_the_measured_memory_of_a_microcontroller() -> None:
    term, out, _ = terminal()
    built = result()
    arena = {"arena_head_bytes": 2048, "arena_tail_bytes": 1024}
    sides = {
        side: getattr(built.manifest, side).model_copy(update=arena) for side in ("before", "after")
    }
    manifest = built.manifest.model_copy(update=sides)
    build_view.results(term, [replace(built, manifest=manifest)], as_json=False)
    text = " ".join(out.getvalue().split())
    assert "arena head, measured 2 KiB 2 KiB" in text
    assert "arena tail, measured 1 KiB 1 KiB" in text


def test_the_table_of_a_build() -> None:
    term, out, _ = terminal()
    build_view.results(term, [result()], as_json=False)
    text = " ".join(out.getvalue().split())
    assert "MACs 80,000 20,000 25.00 % 75.00 % ×4.00" in text
    assert "file 16 KiB 4 KiB 25.00 % 75.00 % ×4.00" in text
    assert "peak RSS" not in text, "what was not measured is not a number"
    assert "latency p50, n=200 2 ms 0.5 ms 25.64 % 74.36 % ×3.90" in text, (
        "the speed-up, not the quotient"
    )
    assert "latency p90 3 ms 0.75 ms — — —" in text
    assert "×3.90 as fast as the original" in text
    assert "×4.00 as" not in text
    assert "accuracy: original in float 90.00 % → emitted file 90.00 %" in text
    assert "measured, 95 % interval 3.80 to 4.10" in text
    assert "1 svd" in text
    assert "1 not factorized" in text
    assert "layers.csv" in text


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (True, "which board follows; the difference is part of the drop"),
        (False, "which microcontrollers follow"),
    ],
)
def test_the_score_by_the_reference_kernels(counted: bool, said: str) -> None:
    plain = result()
    scores = plain.manifest.accuracy.model_copy(
        update={"kernels": Kernels(reference=0.89, optimised=0.9, samples=1_200, counted=counted)}
    )
    term, out, _ = terminal()
    built = replace(
        plain,
        manifest=plain.manifest.model_copy(update={"accuracy": scores, "device": "board"}),
    )
    build_view.results(term, [built], as_json=False)
    text = " ".join(out.getvalue().split())
    assert (
        "on 1,200 samples 90.00 % with LiteRT's optimised kernels, 89.00 % with its reference"
        f" kernels, {said}" in text
    )


def test_the_original_in_float_and_its_file_are_distinguished() -> None:
    for file, said in ((0.92, True), (0.9, False)):
        plain = result()
        before = plain.manifest.before.model_copy(update={"accuracy": file})
        term, out, _ = terminal()
        built = replace(
            plain,
            manifest=plain.manifest.model_copy(
                update={"before": before, "config": {"precision": "int8"}}
            ),
        )
        build_view.results(term, [built], as_json=False)
        told = (
            "the drop is relative to the original in float; the original's own int8 file has"
            " 92.00 %"
        )
        assert (told in " ".join(out.getvalue().split())) == said


def test_a_drop_has_a_unit() -> None:
    plain = result()
    kept = Kept(
        allowed=0.01,
        drop=0.02,
        low=0.0,
        high=0.03,
        confidence=0.95,
        samples=400,
        met=False,
        margin=-0.01,
        unit="% of the variance of the labels",
    )
    scores = plain.manifest.accuracy.model_copy(update={"percent": False, "kept": kept})
    term, out, _ = terminal()
    built = replace(plain, manifest=plain.manifest.model_copy(update={"accuracy": scores}))
    build_view.results(term, [built], as_json=False)
    told = (
        "drop 2.00 % of the variance of the labels (95 % interval 0.00 to 3.00, 400 samples); 1 %"
        " allowed: NOT met, 1.00 % too much."
    )
    assert told in " ".join(out.getvalue().split())


def test_accuracy_that_was_not_measured_is_not_shown() -> None:
    term, out, _ = terminal()
    build_view.results(term, [result(accuracy=None)], as_json=False)
    assert "accuracy: not measured" in out.getvalue()


def test_filters_are_counted_by_layer() -> None:
    plain = result()
    cut = plain.manifest.layers[0].model_copy(update={"filters_before": 32, "filters_after": 16})
    layers = [cut.model_copy(update={"name": f"conv{i}"}) for i in range(14)]
    term, out, _ = terminal()
    built = replace(
        plain,
        manifest=plain.manifest.model_copy(update={"layers": (*layers, plain.manifest.layers[1])}),
    )
    build_view.results(term, [built], as_json=False)
    text = " ".join(out.getvalue().split())
    assert "filters: conv0 32 → 16, conv1 32 → 16, " in text
    assert text.count("32 → 16") == 12
    assert "and 2 more layers" in text


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (
            {"filters_before": 8, "filters_after": 2, "params_after": 1, "macs_after": 3},
            ["→ as built 1 3 42.86 %", "filters: 2 of 8 are left", "as built:"],
        ),
        (
            {"filters_before": 8, "filters_after": 8, "filters_reason": "it has a reason"},
            ["→ unchanged 5 7 100.00 %", "filters: all 8 are kept: it has a reason"],
        ),
        ({}, ["→ unchanged 5 7 100.00 %", "chosen: unchanged too small"]),
    ],
)
def test_an_explanation_shows_what_was_built(filters: dict[str, Any], said: list[str]) -> None:
    built = result().manifest.layers[1].model_copy(update=filters)
    rows = (Row("b", None, "", 5, 7, 1.0, 0.0, None, dominated=False, chosen=True),)
    term, out, _ = terminal()
    build_view.explanation(term, Explanation("b", rows, rows[0], (), built))
    text = " ".join(out.getvalue().split())
    for each in said:
        assert each in text
    assert text.count("→") == 1
    assert ("filters" in text) == bool(filters)


def test_an_explanation_without_candidates_has_costs_and_the_reason() -> None:
    term, out, _ = terminal()
    build_view.explanation(term, Explanation("b", (), None, (), result().manifest.layers[1]))
    assert (
        " ".join(out.getvalue().split()) == "params 5 → 5, MACs 7 → 7 chosen: unchanged too small"
    )


@pytest.mark.parametrize("names", [(), ("one",), ("one", "two")], ids=len)
def test_results_as_json(names: tuple[str, ...]) -> None:
    term, out, _ = terminal()
    build_view.results(term, [result(name) for name in names], as_json=True)
    if not names:
        assert out.getvalue() == ""
        return
    printed = json.loads(out.getvalue())
    builds = [printed] if len(names) == 1 else printed["builds"]
    assert [build["out"] for build in builds] == list(names)
    assert all(
        build["speedup"] == {"median": 3.9, "low": 3.8, "high": 4.1, "source": "measured"}
        and build["problem"] is None
        for build in builds
    )
