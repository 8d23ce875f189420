"""The output folder is whole or not there; manifest.json is what its schema says."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lrfc.errors import BudgetError, ModelError, UsageError
from lrfc.results import folder as artifact
from lrfc.results import manifest
from lrfc.results.folder import folder, record, sha256, versions
from lrfc.results.manifest import (
    Accuracy,
    Figures,
    Input,
    Latency,
    Layer,
    Manifest,
    Parity,
    Round,
    Search,
)
from lrfc.system import swap


def fill(out: Path, text: str = "{}") -> None:
    with folder(out) as work:
        (work / "manifest.json").write_text(text)
        (work / "sub").mkdir()
        (work / "sub" / "big.bin").write_bytes(bytes(1000))


def fail(out: Path, failure: BaseException) -> None:
    """Write half a result, then fail."""
    with folder(out) as work:
        (work / "manifest.json").write_text('{"new": 1}')
        (work / "deep").mkdir()
        (work / "deep" / "half").write_text("half")
        raise failure


# -- the folder ------------------------------------------------------------------------------------


def test_nothing_shows_before_the_end(tmp_path: Path) -> None:
    out = tmp_path / "new" / "parent" / "out"
    with folder(out) as work:
        (work / "a").write_text("a")
        assert not out.exists()
        assert work.parent == out.parent
    assert [p.name for p in out.iterdir()] == ["a"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_the_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("x"), KeyboardInterrupt(), SystemExit(3), BudgetError("x"), GeneratorExit()],
    ids=lambda e: type(e).__name__,
)
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    out = tmp_path / "new" / "out"
    with pytest.raises(type(failure)) as caught:
        fail(out, failure)
    assert caught.value is failure
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, '{"old": 1}')
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt())
    assert (out / "manifest.json").read_text() == '{"old": 1}'
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_old_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, '{"old": 1}')
    (out / "report.html").write_text("old")
    with folder(out) as work:
        (work / "manifest.json").write_text('{"new": 1}')
        assert (out / "manifest.json").read_text() == '{"old": 1}'
    assert {p.name: p.read_text() for p in out.iterdir()} == {"manifest.json": '{"new": 1}'}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_the_old_result_comes_back_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    out = tmp_path / "out"
    fill(out, '{"old": 1}')
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    def exchange(a: Path, b: Path) -> bool:
        if exchanged:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(swap, "exchange", exchange)
    with pytest.raises(KeyboardInterrupt), folder(out) as work:
        (work / "manifest.json").write_text('{"new": 1}')
    assert (out / "manifest.json").read_text() == '{"old": 1}'
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "manifest.json").exists()


def test_what_is_not_ours_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(out: Path, **options: Any) -> str:
        with pytest.raises(UsageError) as caught, folder(out, **options):
            pytest.fail("the block must not run")
        return str(caught.value)

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("precious")
    assert "not empty and was not written by lrfc" in said(tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").read_text() == "precious"
    assert "is a file" in said(tmp_path / "photos" / "one.jpg")
    assert "cannot be created" in said(tmp_path / "photos" / "one.jpg" / "out")
    fill(tmp_path / "ours")
    assert "exists already" in said(tmp_path / "ours", overwrite=False)
    monkeypatch.chdir(tmp_path / "ours")
    assert "current folder" in said(Path())
    assert "current folder" in said(tmp_path)


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def meanwhile() -> None:
        with folder(out) as work:
            (work / "manifest.json").write_text("{}")
            out.mkdir()
            (out / "mine").write_text("mine")

    with pytest.raises(UsageError, match="not empty"):
        meanwhile()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "mine").exists()


def wrapped() -> None:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise ModelError("the converter failed") from error


def by_text() -> None:
    raise RuntimeError("RESOURCE_EXHAUSTED: x.tflite; No space left on device")


def on_a_full_device() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)


@pytest.mark.parametrize("write", [wrapped, by_text, on_a_full_device])
def test_a_full_disk_is_one_line_with_the_space_that_is_left(tmp_path: Path, write: Any) -> None:
    if write is on_a_full_device and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(
            UsageError, match=r"disk is full: [\d.]+ (B|KiB|MiB|GiB) of free space.*--out"
        ) as caught,
        folder(tmp_path / "out"),
    ):
        write()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UsageError, match="disk is full"), folder(tmp_path / "out"):
        pytest.fail("the block must not run")


# -- the manifest ----------------------------------------------------------------------------------


def example() -> Manifest:
    digest = hashlib.sha256(b"").hexdigest()
    return Manifest(
        input=Input(path="model.keras", sha256=digest),
        config={"targets": ["tflite"], "max_macs": "50%"},
        seed=3,
        versions={"python": "3.11", "lrfc": None},
        onednn=True,
        target="tflite",
        device="local",
        layers=(
            Layer(
                name="conv",
                kind="Conv2D",
                method="tucker2",
                rank=(4, 8),
                params_before=100,
                params_after=50,
                macs_before=9,
                macs_after=4,
                similarity=0.98,
            ),
            Layer(
                name="head",
                kind="Dense",
                params_before=10,
                params_after=10,
                macs_before=1,
                macs_after=1,
                reason='too small, "kept"',
            ),
        ),
        before=Figures(params=110, macs=10, latency_ms=Latency(p50=1.0, p90=1.5, n=50, threads=1)),
        after=Figures(params=60, macs=5, file_bytes=300, accuracy=0.5),
        accuracy=Accuracy(before=0.75),
        search=Search(
            candidates=7, seconds=0.1, rounds=(Round(predicted_ms=1.0, measured_ms=1.1),)
        ),
        parity=Parity(max_abs_diff=1e-6, samples=8),
        artifacts=(),
    )


def test_the_shipped_schema_is_that_of_the_models() -> None:
    assert manifest.SCHEMA.read_text(encoding="utf-8") == manifest.schema_text(), (
        "run: python -m lrfc.results.manifest"
    )


def test_round_trip(tmp_path: Path) -> None:
    example().write(tmp_path)
    assert Manifest.read(tmp_path) == example()


def test_the_manifest_of_an_earlier_build_is_read(tmp_path: Path) -> None:
    value = json.loads(example().write(tmp_path).read_text(encoding="utf-8"))
    for layer in value["layers"]:
        del layer["filters_before"], layer["filters_after"], layer["filters_reason"]
    del value["accuracy"]["pruned"]
    (tmp_path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    assert Manifest.read(tmp_path) == example()


def test_the_keys_are_those_of_the_design_and_missing_values_are_null(tmp_path: Path) -> None:
    value = json.loads(example().write(tmp_path).read_text(encoding="utf-8"))
    assert value["schema_version"] == 1
    keys = (
        "schema_version input config seed versions onednn target device layers filters before after"
        " accuracy search finetune speedup float_original verdict problem parity patches artifacts"
    )
    assert list(value) == keys.split()
    keys = (
        "name kind method rank params_before params_after macs_before macs_after similarity reason"
        " filters_before filters_after filters_reason".split()
    )
    assert [list(layer) for layer in value["layers"]] == [keys, keys]
    assert value["layers"][0]["filters_before"] is None
    assert value["layers"][0]["rank"] == [4, 8]
    assert value["layers"][1]["method"] is None
    assert value["before"] == {
        "params": 110,
        "macs": 10,
        "file_bytes": None,
        "arena_bytes": None,
        "workspace_bytes": None,
        "accuracy": None,
        "latency_ms": {"p50": 1.0, "p90": 1.5, "n": 50, "threads": 1, "source": "measured"},
        "peak_rss_bytes": None,
        "cycles": None,
        "sram_bytes": None,
        "flash_bytes": None,
        "arena_head_bytes": None,
        "arena_tail_bytes": None,
    }
    assert value["accuracy"] == {
        "metric": None,
        "percent": True,
        "higher_is_better": True,
        "before": 0.75,
        "factorized": None,
        "pruned": None,
        "recalibrated": None,
        "refitted": None,
        "finetuned": None,
        "artifact": None,
        "kept": None,
        "kernels": None,
        "stage_samples": None,
    }
    assert value["after"]["latency_ms"] is None


def test_every_key_is_required_by_the_schema() -> None:
    schema = manifest.schema()
    optional = {"lrfc manifest.json": ["profile"]}
    for model in (schema, *schema["$defs"].values()):
        assert model["required"] + optional.get(model["title"], []) == list(model["properties"])
        assert model["additionalProperties"] is False


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Input(path="x", sha256="abc"),
        lambda: Figures(params=-1, macs=0),
        lambda: Figures(params=1, macs=1, accuracy=float("nan")),
        lambda: Accuracy(before=91.7),
        lambda: Latency(p50=0.0, p90=1.0, n=1, threads=1),
        lambda: Figures(params=1, macs=1, latency=3),  # type: ignore[call-arg]
    ],
)
def test_impossible_values_are_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        wrong()


def test_reading_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no output folder of lrfc"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 2}')
    with pytest.raises(UsageError, match="not a manifest of schema version 1") as caught:
        Manifest.read(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        Manifest.read(tmp_path)


def test_layers_csv(tmp_path: Path) -> None:
    with example().write_layers(tmp_path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [
        (row["name"], row["method"], row["rank"], row["similarity"], row["reason"]) for row in rows
    ] == [
        ("conv", "tucker2", "4x8", "0.98", ""),
        ("head", "", "", "", 'too small, "kept"'),
    ]


def test_record(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.tflite").write_bytes(b"abc")
    found = record(tmp_path / "sub" / "m.tflite", tmp_path, "tflite")
    assert found.path == "sub/m.tflite"
    assert found.bytes == 3
    assert (
        found.sha256 == sha256(tmp_path / "sub" / "m.tflite") == hashlib.sha256(b"abc").hexdigest()
    )


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    import lrfc

    monkeypatch.setattr(artifact, "PACKAGES", ("lrfc", "numpy", "no-such-package"))
    found = versions()
    assert set(found) == {"python", "lrfc", "numpy", "no-such-package"}
    assert found["numpy"] == np.__version__
    assert found["lrfc"] == lrfc.__version__
    assert found["no-such-package"] is None
