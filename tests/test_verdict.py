"""The verdict on a build, as fields and as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrfc.config.build import BuildConfig
from lrfc.metrics.outcome import Kept, Speedup
from lrfc.results.manifest import Accuracy, Figures, FloatOriginal, Input, Latency, Layer, Manifest
from lrfc.results.verdict import details, headline, judged, parts
from lrfc.targets.devices import device

COSTS = {"params_before": 5, "params_after": 5, "macs_before": 7, "macs_after": 7}


def figures(source: Any = "measured", **changes: Any) -> Figures:
    latency = Latency(p50=changes.pop("ms", 2.0), p90=3.0, n=200, threads=1, source=source)
    costs = {"params": 100, "macs": 1_000, "file_bytes": 4_096, "arena_bytes": 2_048}
    return Figures(latency_ms=latency, **costs | {"accuracy": 0.98} | changes)


def kept(**changes: Any) -> Kept:
    fields = {"allowed": 0.01, "drop": 0.004, "low": -0.001, "high": 0.009, "confidence": 0.95}
    return Kept(**fields | {"samples": 400, "met": True, "margin": 0.006} | changes)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "input": Input(path="m.keras", sha256="ab" * 32),
        "config": BuildConfig(max_macs="50%").model_dump(mode="json") | {"precision": "fp32"},
        "seed": 0,
        "versions": {},
        "target": "tflite",
        "device": "host",
        "layers": (Layer(name="a", kind="Conv2D", method="cp", rank=(2,), **COSTS),),
        "before": figures(),
        "after": figures(macs=480, file_bytes=2_048, ms=1.0),
        "accuracy": Accuracy(metric="accuracy", before=0.98, artifact=0.976, kept=kept()),
        "speedup": Speedup(median=2.0, low=1.9, high=2.1),
        "artifacts": (),
    }
    return Manifest(**fields | changes)


def test_it_names_the_device_the_budget_and_the_margin() -> None:
    found = judged(manifest())
    assert (found.outcome, found.device, found.precision) == ("compressed", "host", "fp32")
    assert [(each.option, each.bound, each.value, each.met) for each in found.budgets] == [
        ("--max-macs 50%", 500.0, 480.0, True)
    ]
    assert (
        headline(found)
        == "On host the compressed tflite file (fp32) is ×2.00 as fast as the original (measured,"
        " 95 % interval 1.90 to 2.10). It keeps 48.00 % of the MACs, 100.00 % of the"
        " parameters and 50.00 % of the file size."
    )
    assert details(found) == [
        "--max-macs 50%: met, MACs 480 of at most 500 (4.00 % below).",
        (
            "Accuracy 97.60 % (original in float: 98.00 %): drop 0.40 pp (95 % interval −0.10 to"
            " 0.90, 400 samples); 1 pp allowed: met, 0.60 pp left."
        ),
        "No cost increased.",
    ]


def test_a_contract_that_is_broken_says_by_how_much() -> None:
    scores = Accuracy(
        metric="accuracy",
        before=0.98,
        artifact=0.96,
        kept=kept(drop=0.02, high=0.03, met=False, margin=-0.01),
    )
    found = judged(manifest(accuracy=scores, problem="not met: --max-drop 1pp"))
    assert found.outcome == "not met"
    assert "but it does not meet its constraints" in headline(found)
    assert details(found)[1].endswith("1 pp allowed: NOT met, 1.00 pp too much.")


@pytest.mark.parametrize(
    ("changes", "grown"),
    [
        ({"arena_bytes": 2_049}, ["arena_bytes"]),
        ({"file_bytes": 5_000, "params": 101, "macs": 1_001}, ["macs", "params", "file_bytes"]),
        ({"peak_rss_bytes": 1_019}, []),
        ({"peak_rss_bytes": 1_021}, ["peak_rss_bytes"]),
        ({"cycles": 1_001, "sram_bytes": 1_001, "flash_bytes": 999}, ["cycles", "sram_bytes"]),
    ],
)
def test_every_quantity_that_grew_is_named(changes: dict[str, int], grown: list[str]) -> None:
    before = figures(
        **{
            name: 1_000
            for name in changes
            if name not in ("arena_bytes", "file_bytes", "params", "macs")
        }
    )
    found = judged(manifest(before=before, after=before.model_copy(update=changes)))
    assert [change.quantity for change in found.grown] == grown


def test_a_measured_time_grew_when_the_whole_interval_says_so() -> None:
    slower = manifest(after=figures(ms=2.1), speedup=Speedup(median=0.95, low=0.93, high=0.97))
    assert [change.quantity for change in judged(slower).grown] == ["latency_ms"]
    unsure = manifest(after=figures(ms=2.1), speedup=Speedup(median=0.95, low=0.85, high=1.05))
    assert judged(unsure).grown == ()
    computed = manifest(
        before=figures("estimated"),
        after=figures("estimated", ms=2.001),
        speedup=Speedup(median=0.9995, source="estimated"),
    )
    assert [(change.quantity, change.source) for change in judged(computed).grown] == [
        ("latency_ms", "estimated")
    ]


def test_an_increase_has_both_values() -> None:
    found = judged(manifest(after=figures(arena_bytes=3_461)))
    assert "Increased: activation memory (planned) from 2 KiB to 3.38 KiB (+68.99 %)." in details(
        found
    )


def test_the_float_original_is_a_baseline_of_its_own() -> None:
    int8 = {"config": {"precision": "int8"}}
    slow = FloatOriginal(
        latency_ms=figures().latency_ms, speedup=Speedup(median=0.95, low=0.93, high=0.97)
    )
    found = judged(manifest(float_original=slow, **int8))
    assert [(each.precision, each.pace) for each in found.speeds] == [
        ("int8", "faster"),
        ("fp32", "slower"),
    ]
    assert "×2.00 as fast as the original's int8 file" in headline(found)
    told = (
        "Compared with the original in fp32 it is SLOWER, at ×0.95 its speed"
        " (measured, 95 % interval 0.93 to 0.97)."
    )
    assert told in details(found)
    none = judged(
        manifest(
            float_original=FloatOriginal(reason="board computes in int8, not in float"), **int8
        )
    )
    assert (
        "Speed against the original in fp32: unknown, board computes in int8, not in float."
        in details(none)
    )
    assert len(judged(manifest()).speeds) == 1, "in fp32 there is one baseline"


def test_the_limits_of_the_device() -> None:
    board = device.load("cortex-m7")
    sides = {
        "before": figures("estimated"),
        "after": figures("estimated", ms=1.0),
        "device": board.name,
    }
    computed = manifest(**sides, speedup=Speedup(median=2.0, source="estimated"))
    fits = judged(computed, board)
    assert [(room.memory, room.needed, room.limit, room.fits) for room in fits.rooms] == [
        ("flash", 4_096, 1_048_576, True), ("ram", 2_048, 327_680, True)]  # fmt: skip
    assert (
        "The file fits cortex-m7: flash 4 KiB of 1 MiB and RAM 2 KiB of 320 KiB (planned; pip"
        " install 'lrfc[micro]' measures it); the runtime itself comes on top." in details(fits)
    )
    large = judged(computed, board.model_copy(update={"ram_bytes": 2_047}))
    assert details(large)[-1].startswith("The file does NOT fit cortex-m7: ")
    assert "RAM 2 KiB of 1.999 KiB (TOO MUCH; planned; " in details(large)[-1]
    npu = judged(
        manifest(
            **sides | {"after": figures("compiled", sram_bytes=900, flash_bytes=700, cycles=5)}
        ),
        board,
    )
    assert [room.needed for room in npu.rooms] == [700, 900], "what the compiler plans"
    without = judged(computed, board.model_copy(update={"flash_bytes": None, "ram_bytes": None}))
    assert (
        details(without)[-1] == "The device profile of cortex-m7 has no limits for flash and RAM."
    )


def test_the_measured_arena_of_a_microcontroller_counts() -> None:
    board = device.load("cortex-m7")
    arena = {"arena_head_bytes": 2_000, "arena_tail_bytes": 1_072}
    sides = {
        "before": figures("estimated", **arena),
        "after": figures("estimated", ms=1.0, **arena | {"arena_tail_bytes": 1_073}),
        "device": board.name,
    }
    slightly = judged(manifest(**sides), board)
    (ram,) = (room for room in slightly.rooms if room.memory == "ram")
    assert (ram.needed, ram.head, ram.tail, ram.source) == (3_073, 2_000, 1_073, "measured")
    assert ram.remedy is None
    assert "(measured: 1.953 KiB of activations, 1.048 KiB of the runtime's structures)" in str(
        details(slightly)
    )
    assert [change.quantity for change in slightly.grown] == ["arena_total_bytes"], "no noise"
    assert "RAM of TensorFlow Lite Micro from 3 KiB to 3.001 KiB" in str(details(slightly))
    config = BuildConfig(max_ram="100%").model_dump(mode="json")
    (asked,) = judged(manifest(**sides, config=config), board).budgets
    assert (asked.quantity, asked.bound, asked.value, asked.met) == (
        "arena_total_bytes", 3_072, 3_073, False)  # fmt: skip
    half = sides | {"before": figures("estimated")}
    (asked,) = judged(manifest(**half, config=config), board).budgets
    assert asked.quantity == "arena_bytes", "both sides by one measure"


def test_figures_without_a_timed_run_are_not_called_measured() -> None:
    for source in ("estimated", "compiled"):
        speed = Speedup(median=2.0, source=source)
        found = judged(
            manifest(before=figures(source), after=figures(source, ms=1.0), speedup=speed)
        )
        text = " ".join([headline(found), *details(found)])
        assert "no device was timed" in text
        assert "measured" not in text
        assert "95 % interval 2" not in text


def test_the_parts_of_a_drop_are_its_sum() -> None:
    steps = [{"step": "compression", "drop": 0.0045}, {"step": "emission", "drop": -0.0023}]
    found = kept(drop=0.0022, parts=steps)
    assert (
        parts(found)
        == "0.45 pp by compression in float − 0.23 pp by emission of the file = 0.22 pp"
    )
    assert (
        parts(
            kept(parts=[{"step": "compression", "drop": 0.004}, {"step": "emission", "drop": 0.0}])
        )
        == ""
    )


def test_the_manifest_has_it_as_fields(tmp_path: Path) -> None:
    whole = manifest()
    whole = whole.model_copy(update={"verdict": judged(whole)})
    whole.write(tmp_path)
    assert Manifest.read(tmp_path) == whole
    written = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["verdict"]
    assert written["contract"]["margin"] == 0.006
    assert written["speeds"][0]["pace"] == "faster"
    assert {change["quantity"] for change in written["changes"] if change["grew"]} == set()


@pytest.mark.parametrize(("cycles", "source"), [(None, "estimated"), (500, "compiled")])
def test_a_manifest_of_an_older_lrfc_is_read(
    tmp_path: Path, cycles: int | None, source: str
) -> None:
    old = json.loads(manifest().model_dump_json())
    del old["verdict"], old["float_original"], old["speedup"]["source"]
    for side in (old["before"], old["after"]):
        del side["latency_ms"]["source"]
        side |= {"cycles": cycles, "latency_ms": side["latency_ms"] | {"estimated": True}}
    for key in ("margin", "parts"):
        del old["accuracy"]["kept"][key]
    (tmp_path / "manifest.json").write_text(json.dumps(old), encoding="utf-8")
    found = Manifest.read(tmp_path)
    assert found.after.latency_ms is not None
    assert found.after.latency_ms.source == source
    assert found.speedup == Speedup(median=2.0, source=source)  # type: ignore[arg-type]
    assert "no device was timed" in headline(judged(found))
