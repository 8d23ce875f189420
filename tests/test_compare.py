"""The comparison of two builds: regressions, figures that cannot be compared, JUnit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from lrfc.cli import app as cli
from lrfc.config.build import BuildConfig
from lrfc.errors import UsageError
from lrfc.metrics.outcome import Speedup
from lrfc.results.compare import compare, parse, side
from lrfc.results.manifest import Accuracy, Figures, File, Input, Latency, Layer, Manifest
from tests import helpers


def folder(place: Path, **changes: Any) -> Path:
    """An output folder with a manifest and nothing else."""
    latency = changes.pop("latency", 2.0)
    accuracy = changes.pop("accuracy", 0.98)
    scores = changes.pop("scores", {"metric": "accuracy"})
    rank = changes.pop("rank", (4,))
    source = changes.pop("source", "measured")
    after = {"params": 60, "macs": 420, "file_bytes": 2048, "arena_bytes": 1024} | {
        k: changes.pop(k) for k in list(changes) if k in Figures.model_fields
    }
    fields: dict[str, Any] = {
        "input": Input(path="net.keras", sha256="ab" * 32),
        "config": BuildConfig().model_dump(mode="json"),
        "seed": 0,
        "versions": {},
        "target": "tflite",
        "device": "host",
        "layers": (
            Layer(
                name="conv",
                kind="Conv2D",
                method="svd",
                rank=rank,
                params_before=100,
                params_after=10 * rank[0],
                macs_before=1000,
                macs_after=400,
                similarity=0.9,
            ),
            Layer(
                name="head",
                kind="Dense",
                params_before=20,
                params_after=20,
                macs_before=20,
                macs_after=20,
                reason="small",
            ),
        ),
        "before": Figures(params=120, macs=1020, accuracy=0.98),
        "after": Figures(
            **after,
            accuracy=accuracy,
            latency_ms=(
                None
                if latency is None
                else Latency(p50=latency, p90=latency, n=9, threads=1, source=source)
            ),
        ),
        "accuracy": Accuracy(**scores),
        "speedup": Speedup(median=1.5, low=1.4, high=1.6),
        "artifacts": (File(path="net.tflite", sha256="cd" * 32, bytes=2048, format="tflite"),),
    }
    place.mkdir(parents=True)
    Manifest(**fields | changes).write(place)
    return place


@pytest.mark.parametrize(
    ("limit", "changes", "ok", "detail"),
    [
        ("latency=5%", {"latency": 2.1}, True, "latency 2 ms -> 2.1 ms, 5.00 % worse, 5% allowed"),
        ("latency=5%", {"latency": 2.11}, False, "5.50 % worse, 5% allowed"),
        ("latency=0%", {"latency": 1.0}, True, "50.00 % better"),
        ("accuracy=0.5pp", {"accuracy": 0.975}, True, "accuracy 98.00 % -> 97.50 %, 0.50 pp worse"),
        ("accuracy=0.5pp", {"accuracy": 0.974}, False, "0.60 pp worse, 0.5pp allowed"),
        ("accuracy=1%", {"accuracy": 0.96}, False, "2.04 % worse"),
        (
            "size=1%",
            {"file_bytes": 2100},
            False,
            "size 2 KiB (2,048 bytes) -> 2.051 KiB (2,100 bytes)",
        ),
        ("macs=0%", {"macs": 420}, True, "unchanged, 0% allowed"),
        ("params=0%", {"params": 61}, False, "params 60 -> 61"),
        (
            "arena=10%",
            {"arena_bytes": 1200},
            False,
            "ram 1 KiB (1,024 bytes) -> 1.172 KiB (1,200 bytes)",
        ),
        (
            "speedup=10%",
            {"speedup": Speedup(median=1.3, low=1.2, high=1.4)},
            False,
            "speedup ×1.50 -> ×1.30",
        ),
        ("speedup=10%", {"speedup": Speedup(median=1.9, low=1.2, high=2.4)}, True, "better"),
        ("latency=5%", {"latency": None}, False, "latency cannot be compared: "),
        (
            "latency=5%",
            {"device": "pixel"},
            False,
            "host tflite on 1 threads, measured against pixel tflite",
        ),
        (
            "latency=5%",
            {"config": {"memory_mode": "Sram_Only"}},
            False,
            "measured against host Sram_Only tflite on 1 threads",
        ),
        (
            "latency=5%",
            {"source": "estimated"},
            False,
            "measured against host tflite on 1 threads, estimated",
        ),
        ("accuracy=1pp", {"scores": {"metric": "miou"}}, False, "accuracy against miou"),
        (
            "ram=5%",
            {"arena_head_bytes": 900, "arena_tail_bytes": 100},
            False,
            "ram cannot be compared: planned against measured",
        ),
        ("cycles=5%", {}, False, "cycles cannot be compared"),
    ],
)
def test_a_limit(
    tmp_path: Path, limit: str, changes: dict[str, Any], ok: bool, detail: str
) -> None:
    (verdict,) = compare(
        folder(tmp_path / "a"), folder(tmp_path / "b", **changes), [limit]
    ).verdicts
    assert detail in verdict.detail
    assert verdict.ok is ok


def test_on_a_microcontroller_the_tail_is_ram(tmp_path: Path) -> None:
    places = [
        folder(tmp_path / str(tail), arena_head_bytes=924, arena_tail_bytes=tail)
        for tail in (100, 1124)
    ]
    (verdict,) = compare(*places, ["ram=10%"]).verdicts
    assert "ram 1 KiB (1,024 bytes) -> 2 KiB (2,048 bytes), 100.00 % worse" in verdict.detail
    assert "(measured)" in verdict.detail


def test_where_less_is_better_more_is_a_regression(tmp_path: Path) -> None:
    scores = {"metric": "mse", "percent": False, "higher_is_better": False}
    places = [folder(tmp_path / str(value), accuracy=value, scores=scores) for value in (2.0, 2.3)]
    assert not compare(*places, ["accuracy=10%"]).verdicts[0].ok
    assert compare(*reversed(places), ["accuracy=10%"]).verdicts[0].ok
    assert "mse is not a percentage" in compare(*places, ["accuracy=1pp"]).verdicts[0].detail


@pytest.mark.parametrize(
    "text", ["latency", "latency=5", "latency=x%", "weight=5%", "size=1pp", "latency=-5%"]
)
def test_a_wrong_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--max-regress {text}: ")):
        parse(text)


def test_sides_are_folders_manifests_and_models(tmp_path: Path) -> None:
    out = folder(tmp_path / "a")
    assert side(out).figures == side(out / "manifest.json").figures
    model = helpers.dense_net(features=8, widths=(16,))
    model.save(tmp_path / "net.keras")
    found = side(tmp_path / "net.keras")
    assert (found.figures["params"], found.figures["latency"]) == (model.count_params(), None)
    assert all(layer.label == "unchanged" for layer in found.layers.values())
    (tmp_path / "net.tflite").write_bytes(b"1234")
    assert side(tmp_path / "net.tflite").figures["size"] == 4
    for name in ("gone", "text.txt"):
        (tmp_path / "text.txt").write_text("")
        with pytest.raises(UsageError, match=name):
            side(tmp_path / name)


def test_layers_that_differ(tmp_path: Path) -> None:
    found = compare(folder(tmp_path / "a"), folder(tmp_path / "b", rank=(6,)))
    assert [(name, old and old.label, new and new.label) for name, old, new in found.changed] == [
        ("conv", "svd 4", "svd 6")
    ]
    assert compare(folder(tmp_path / "c"), folder(tmp_path / "d")).changed == []


def test_layers_that_have_lost_filters(tmp_path: Path) -> None:
    costs: dict[str, Any] = {
        "kind": "Conv2D",
        "params_before": 9,
        "params_after": 9,
        "macs_before": 9,
        "macs_after": 9,
    }

    def layers(conv: int, svd: int) -> tuple[Layer, ...]:
        return (
            Layer(name="conv", **costs, filters_before=64, filters_after=conv),
            Layer(
                name="other", **costs, method="svd", rank=(4,), filters_before=32, filters_after=svd
            ),
            Layer(
                name="plain",
                **costs,
                filters_before=8,
                filters_after=8,
                filters_reason="its filters are the model's output 'y'",
            ),
        )

    whole = (
        *(
            layer.model_copy(update={"filters_before": None, "filters_after": None})
            for layer in layers(64, 32)
        ),
    )
    found = compare(
        folder(tmp_path / "a", layers=whole), folder(tmp_path / "b", layers=layers(16, 24))
    )
    assert [(name, old and old.label, new and new.label) for name, old, new in found.changed] == [
        ("conv", "unchanged", "16 of 64 filters"),
        ("other", "svd 4", "svd 4, 24 of 32 filters"),
    ]
    assert found.to_json()["layers"][0]["after"]["filters"] == (16, 64)


def test_the_command_reports_to_pipelines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old, new = folder(tmp_path / "old"), folder(tmp_path / "new", latency=3.0, rank=(6,))
    limits = ["--max-regress", "latency=5%", "--max-regress", "accuracy=0.5pp"]

    def lrfc(*args: object) -> tuple[int, str, str]:
        code = CliRunner().invoke(cli.app, ["compare", *map(str, args)]).exit_code
        return code, *capfd.readouterr()

    code, out, err = lrfc(old, new, *limits, "--junit", tmp_path / "junit.xml")
    assert code == 4
    assert err == "lrfc: regressed: latency 2 ms -> 3 ms, 50.00 % worse, 5% allowed (measured)\n"
    assert re.search(r"latency, measured +2 ms +3 ms +\+50.00 %", out)
    assert re.search(r"conv +svd 4 +svd 6 +\+50.00 %", out)
    assert "layers: 1 differ, 1 are equal" in out
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert (root.tag, root.attrib["tests"], root.attrib["failures"]) == ("testsuites", "2", "1")
    cases = {case.attrib["name"]: [child.tag for child in case] for case in root.iter("testcase")}
    assert cases == {"latency=5%": ["failure"], "accuracy=0.5pp": ["system-out"]}

    code, out, _ = lrfc(old, new, *limits, "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["figures"]["latency"]) == (
        4,
        False,
        {"before": 2.0, "after": 3.0, "source": {"before": "measured", "after": "measured"}},
    )
    code, out, err = lrfc(old, old, *limits, "--junit", tmp_path / "junit.xml")
    assert (code, err) == (0, "")
    assert ET.parse(tmp_path / "junit.xml").getroot().attrib["failures"] == "0"
    assert lrfc(old, tmp_path / "gone")[0] == 2
