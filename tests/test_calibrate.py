"""Calibration on a fake device and on this machine: measurements, and the fitted profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pytest

from lrfc.costs import latency
from lrfc.costs.measurements import Store
from lrfc.costs.microbench import networks
from lrfc.costs.workload import workloads
from lrfc.errors import DeviceError, UsageError
from lrfc.protocols import Artifact
from lrfc.targets import calibrate as module
from lrfc.targets.calibrate import calibrate
from lrfc.targets.catalog import target as target_of
from lrfc.targets.devices import device as devices
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.runners.base import Facts
from tests import fake_runner


class Made:
    """A device whose ops take a nanosecond for each MAC and a microsecond each.

    ``left``: the number of files that it times before it goes away.
    """

    def __init__(self, left: int = 1000) -> None:
        self.left = left
        self.timed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def check(self) -> Facts:
        return Facts(
            "armv7", "Linux 5", "3.11", {"tflite": "LiteRT 2.1", "onnx": "onnxruntime 1.20"}
        )

    def times(
        self,
        files: Sequence[Artifact],
        *,
        turns: int = 12,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> list[list[float]]:
        if self.left < len(files):
            raise DeviceError("the device went away")
        self.left -= len(files)
        self.timed += len(files)
        return [[0.01 + float(file.path.read_text())] * 4 for file in files]


class Emitter:
    """A target whose files hold the milliseconds that the fake device takes for them."""

    def __init__(self, form: str) -> None:
        self.suffix, self.layouts = f".{form}", target_of(form).layouts

    def emit(self, graph, path, calibration=None) -> Artifact:
        path.write_text(str(sum(1e-6 * each.macs + 1e-3 for _, each in workloads(graph))))
        return Artifact(path, path.suffix[1:], "fp32")


@pytest.fixture
def made(monkeypatch, tmp_path) -> Made:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "target_of", lambda form, precision: Emitter(form))
    monkeypatch.setattr(latency, "user_file", lambda name: tmp_path / f"{name}.cost.json")
    return Made()


@pytest.fixture
def device(made) -> Device:
    return Device(
        name="made",
        description="a device of this test",
        formats=("tflite", "onnx"),
        connection=fake_runner.connection(made)(),
    )


def test_a_profile_is_fitted_and_written(device, made) -> None:
    report = calibrate(device, networks=45)
    assert (report.measured, report.reused, made.timed) == (90, 0, 90)
    assert report.to_json()["profiles"][0]["held_out"]["networks"]["mean"] < 0.05
    assert [each.format for each in latency.read(report.path).profiles] == ["onnx", "tflite"]
    found = latency.load("made", "tflite", "fp32", 1)
    assert found is not None
    assert (found.runtime, found.runtime_version, found.machine) == (
        "LiteRT",
        "2.1",
        "armv7, Linux",
    )
    fresh = [[each for _, each in workloads(graph)] for graph in networks(10, seed=5)]
    errors = [
        abs(found.predict(ops) / (0.01 + sum(1e-6 * each.macs + 1e-3 for each in ops)) - 1)
        for ops in fresh
    ]
    assert sum(errors) / len(errors) < 0.05


def test_only_what_is_missing_is_measured(device) -> None:
    calibrate(device, formats=["tflite"], networks=20)
    again = calibrate(device, formats=["tflite"], networks=30)
    assert (again.measured, again.reused) == (10, 20)
    fresh = calibrate(device, formats=["tflite"], networks=30, fresh=True)
    assert (fresh.measured, fresh.reused) == (30, 0)
    other = calibrate(device, formats=["tflite"], networks=20, threads=2)
    assert other.measured == 20
    assert [each.threads for each in latency.read(other.path).profiles] == [1, 2]


def test_what_was_measured_before_the_device_went_away_is_kept(device, made) -> None:
    made.left = module.TOGETHER
    with pytest.raises(DeviceError, match="went away"):
        calibrate(device, formats=["tflite"], networks=2 * module.TOGETHER)
    assert len(Store().history("made")) == module.TOGETHER
    made.left = 1000
    again = calibrate(device, formats=["tflite"], networks=2 * module.TOGETHER)
    assert again.reused == module.TOGETHER


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cortex-m7", "its times are computed"),
        ("ethos-u55-128", "Vela computes the cycles of each op"),
    ],
)
def test_a_device_that_is_not_timed_is_not_calibrated(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}' has nothing to calibrate: {why}"):
        calibrate(devices.load(name))


def test_a_format_that_the_device_does_not_run_is_refused(made) -> None:
    with pytest.raises(UsageError, match="does not run onnx; it runs tflite"):
        calibrate(Device(name="made", description="", formats=("tflite",)), formats=["onnx"])


@pytest.mark.parametrize("form", ["tflite", "onnx"])
def test_this_machine_is_calibrated(form: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path))
    monkeypatch.setattr(latency, "user_file", lambda name: tmp_path / f"{name}.cost.json")
    report = calibrate(devices.load("host"), formats=[form], networks=6)
    (found,) = report.profiles
    assert report.measured == 6
    assert found.runtime == {"tflite": "LiteRT", "onnx": "onnxruntime"}[form]
    assert found.held_out["networks"].n == 6
    assert all(0 < entry.sample.median < 1000 for entry in Store().history("host"))
