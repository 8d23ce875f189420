"""The output on devices and their measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from lrfc.cli import devices_view as terminal_devices
from lrfc.costs.measurements import Entry, Key, Sample
from lrfc.targets.devices import device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.runners.base import Facts
from tests.test_console import terminal


def measured(name, ms, **other):
    made = Measurement(
        Path("dir") / name,
        ms,
        ms,
        0.1,
        200,
        1,
        (ms,) * 20,
        1,
        3.0,
        "LiteRT",
        "2.1",
        None,
        2**21,
        file_bytes=2048,
        cores=(3,),
    )
    return replace(made, **other)


def shown(call, *args):
    """The text, its white space made single."""
    term, out, _ = terminal()
    call(term, *args, as_json=False)
    return " ".join(out.getvalue().split())


def printed(call, *args):
    """The JSON."""
    term, out, _ = terminal()
    call(term, *args, as_json=True)
    return json.loads(out.getvalue())


def test_measurements():
    rows = [
        measured("a.tflite", 2.0),
        measured("b.tflite", 1.0, outliers=0.25, notes=("the device became 9 % slower",)),
    ]
    text = shown(terminal_devices.measurements, rows)
    assert "a.tflite 2 2 0.1 3 2 KiB 2 MiB ×1.00 (1.00–1.00)" in text
    assert "b.tflite 1 1 0.1 3 2 KiB 2 MiB ×2.00 (2.00–2.00)" in text
    assert (
        "LiteRT 2.1, 1 thread(s), bound to core 3, batch 1, 200 interleaved runs of each file in"
        " 1 fresh process" in text
    )
    assert "b.tflite: the device became 9 % slower b.tflite: 25 % of the runs are outliers" in text
    assert "a.tflite:" not in text
    assert [
        row["median_ms"] for row in printed(terminal_devices.measurements, rows)["measurements"]
    ] == [2.0, 1.0]


def test_estimates_are_called_so():
    rows = [
        measured(
            name,
            ms,
            source="compiled",
            cycles=int(ms * 5e5),
            sram_bytes=1024,
            flash_bytes=None,
            runtime="Vela",
            cold_start_ms=None,
        )
        for name, ms in (("a.tflite", 2.0), ("b.tflite", 1.0))
    ]
    text = shown(terminal_devices.measurements, rows)
    assert "a.tflite 2 1,000,000 1 KiB — ×1.00" in text
    assert "b.tflite 1 500,000 1 KiB — ×2.00" in text
    assert "compiled by Vela 2.1, batch 1; no device was timed" in text


def test_profiles(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # in a row each
    known = [
        ("host", device.SHIPPED / "host.toml", device.load("host")),
        ("mine", Path("/c/mine.toml"), device.load("raspberry-pi-4")),
    ]
    text = shown(terminal_devices.profiles, known, device.SHIPPED)
    assert "host local tflite onnx fp32 fp16 dynamic int8 int16x8 1 shipped" in text
    assert "mine ssh tflite onnx fp32 fp16 dynamic int8 int16x8 4 yours" in text
    rows = printed(terminal_devices.profiles, known, device.SHIPPED)["devices"]
    assert [
        (row["name"], row["path"], row["shipped"], row["connection"]["kind"]) for row in rows
    ] == [
        ("host", str(device.SHIPPED / "host.toml"), True, "local"),
        ("raspberry-pi-4", "/c/mine.toml", False, "ssh"),
    ]


def test_a_profile():
    text = shown(terminal_devices.profile, Path("/c/x.toml"), device.load("ethos-u55-128"))
    assert "ethos-u55-128: Arm Ethos-U55 with 128 MACs per cycle" in text
    assert "/c/x.toml" in text
    assert "connection.accelerator ethos-u55-128" in text
    assert "ram_bytes —" in text
    assert (
        printed(terminal_devices.profile, Path("/c/x.toml"), device.load("host"))["connection"][
            "kind"
        ]
        == "local"
    )


def test_facts():
    found = Facts("aarch64", "Linux 6.6", "3.11.2", {"tflite": "LiteRT 2.1"}, 3 * 2**30)
    text = shown(terminal_devices.facts, device.load("host"), found)
    assert (
        "machine aarch64 system Linux 6.6 python 3.11.2 runs .tflite LiteRT 2.1 free 3 GiB" in text
    )
    assert "device 'host' is ready" in text
    assert printed(terminal_devices.facts, device.load("host"), found)["free_bytes"] == 3 * 2**30


def test_calibration():
    class Report:
        device, path, ops, measured, reused, seconds = (
            "host",
            Path("/c/host.cost.json"),
            300,
            40,
            20,
            61.4,
        )
        profiles = (
            SimpleNamespace(
                format="tflite",
                precision="fp32",
                threads=2,
                held_out={"networks": SimpleNamespace(n=10, mean=0.051, p90=0.12)},
            ),
        )

        def to_json(self):
            return {"device": self.device}

    text = shown(terminal_devices.calibration, Report())
    assert "tflite fp32, 2 thread(s) networks 10 5.10 % 12.00 %" in text
    assert (
        "300 ops in small networks: 40 networks measured, 20 reused; 61 s written:"
        " /c/host.cost.json" in text
    )
    assert printed(terminal_devices.calibration, Report()) == {"device": "host"}


def test_history():
    entry = Entry(
        Key("host", "LiteRT", "2.1", "tflite", "fp32", 2, "op:conv"),
        Sample(0.5, 0.6, 0.1, 40, "2026-01-02T03:04:05+00:00"),
    )
    assert "op:conv host LiteRT 2.1 fp32 2 0.5 40 2026-01" in shown(
        terminal_devices.history, [entry]
    ).replace("- ", "-")
    vela = replace(entry, key=replace(entry.key, device="ethos-u55-128", runtime="Vela"))
    assert "2 figures: 1 measured, 1 compiled" in shown(terminal_devices.history, [entry, vela])
    assert [
        row["source"] for row in printed(terminal_devices.history, [entry, vela])["measurements"]
    ] == ["measured", "compiled"]
    assert "nothing was measured yet" in shown(terminal_devices.history, [])
    assert printed(terminal_devices.history, [entry])["measurements"][0]["median"] == 0.5
