"""``lrfc devices`` and ``lrfc measure --device``: output, exit codes, and errors in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lrfc.cli.app import app
from lrfc.targets.catalog import target
from lrfc.targets.devices import device
from tests import helpers, loopback
from tests.fake_runner import before_request


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path / "config")
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lrfc(capfd):
    """Run a command in this process: exit code, stdout and stderr.

    Not those of CliRunner: the terminal writes to the descriptors.
    """

    def run(*args):
        capfd.readouterr()
        code = CliRunner().invoke(app, list(map(str, args))).exit_code
        return code, *capfd.readouterr()

    return run


def test_list_and_show(lrfc, tmp_path):
    code, out, _ = lrfc("devices", "list", "--json")
    assert code == 0
    assert len(json.loads(out)["devices"]) == 10
    code, out, _ = lrfc("devices", "show", "host", "--json")
    assert (code, json.loads(out)["path"]) == (0, str(device.SHIPPED / "host.toml"))
    code, out, err = lrfc("devices", "show", "hots")
    assert (code, out) == (2, "")
    assert err.startswith("lrfc: unknown device 'hots': did you mean 'host'?")
    assert err.count("\n") == 1
    assert "host" in lrfc("devices", "list")[1]


def test_add(lrfc, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ndescription = "a board"\n')
    code, out, _ = lrfc("devices", "add", path)
    assert code == 0
    assert "device 'mine' added" in out
    assert lrfc("devices", "add", path)[0] == 2
    code, out, _ = lrfc("devices", "add", path, "--force", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"name": "mine", "path": str(tmp_path / "config" / "mine.toml")},
    )
    assert "a board" in lrfc("devices", "show", "mine")[1]
    path.write_text('name = "mine"\n')
    code, _, err = lrfc("devices", "add", path, "--force")
    assert code == 2
    assert "the key 'description' is missing" in err


def test_check(lrfc, monkeypatch):
    code, out, _ = lrfc("devices", "check", "host", "--json")
    assert code == 0
    assert json.loads(out)["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "is ready" in lrfc("devices", "check", "host")[1]
    code, out, err = lrfc("devices", "check", "cortex-m7")
    assert (code, out) == (5, "")
    assert "has no runner" in err


def test_calibrate(lrfc, monkeypatch):
    from lrfc.targets import calibrate

    asked = []

    def calibrated(device, *, progress, **options):
        asked.append((device.name, options))
        progress.stage("Measure", 1)(1)
        return calibrate.CalibrationReport(device.name, Path("x.cost.json"), (), 3, 0, 9, 1.0)

    real = calibrate.calibrate
    monkeypatch.setattr(calibrate, "calibrate", calibrated)
    code, out, _ = lrfc(
        "devices", "calibrate", "host", "--format", "onnx", "--threads", 2, "--fresh", "--json"
    )
    assert (code, json.loads(out)["networks_measured"]) == (0, 3)
    assert asked == [
        ("host", {"formats": ["onnx"], "precision": None, "threads": 2, "fresh": True})
    ]
    assert "3 networks measured" in lrfc("devices", "calibrate", "host")[1]
    monkeypatch.setattr(calibrate, "calibrate", real)
    code, out, err = lrfc("devices", "calibrate", "cortex-m7")
    assert (code, out) == (2, "")
    assert "nothing to calibrate" in err


def test_history(lrfc):
    code, out, _ = lrfc("devices", "history", "--json")
    assert (code, json.loads(out)) == (0, {"measurements": []})
    assert "nothing was measured yet" in lrfc("devices", "history", "host")[1]


@pytest.fixture
def emitted(tmp_path):
    return target("tflite").emit(helpers.graph_of(helpers.conv_net()), tmp_path / "m.tflite").path


def write(server, path):
    """The profile of the server, as a user would write it."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in server.device().connection.model_dump().items()
        if value is not None
    ]
    path.write_text(
        "\n".join(['name = "loopback"', 'description = ""', "threads = 2", "[connection]", *lines])
    )


def test_measure_on_a_device(lrfc, emitted, tmp_path):
    with loopback.Server(tmp_path / "sshd") as server:
        write(server, tmp_path / "loopback.toml")
        code, out, err = lrfc(
            "measure", emitted, emitted, "--device", "loopback.toml", "--runs", "20", "--json"
        )
        assert code == 0, err
        assert [(row["n"], row["threads"]) for row in json.loads(out)["measurements"]] == [
            (20, 2),
            (20, 2),
        ]
        assert server.left() == []
        assert lrfc("devices", "check", "loopback.toml")[0] == 0
    code, out, err = lrfc("measure", emitted, "--device", "loopback.toml")
    assert (code, out) == (5, "")
    assert "cannot be reached" in err
    assert err.count("\n") == 1


def test_measure_what_a_device_does_not_run(lrfc, tmp_path):
    (tmp_path / "m.onnx").touch()
    code, _, err = lrfc("measure", "m.onnx", "--device", "cortex-m4")
    assert (code, err) == (2, "lrfc: device 'cortex-m4' runs tflite files, not m.onnx\n")
    assert lrfc("measure", "m.onnx", "--device", "nothing")[0] == 2


def test_what_was_measured_before_a_failure_is_shown(lrfc, emitted, monkeypatch):
    before_request(monkeypatch, 10, lambda worker: worker._process.kill(), "runs")
    code, out, err = lrfc("measure", emitted, "--json")
    assert code == 5
    assert [len(row["rounds_ms"]) for row in json.loads(out)["measurements"]] == [8]
    assert "was killed by SIGKILL" in err


@pytest.mark.slow
def test_a_build_for_a_device_and_one_that_goes_away(lrfc, tmp_path, monkeypatch):
    digits = Path(__file__).parents[1] / "examples" / "digits.keras"
    build = (
        "build",
        digits,
        "--device",
        "loopback.toml",
        "--data",
        "digits",
        "--max-macs",
        "50%",
        "--epochs",
        "0",
        "--json",
    )
    with loopback.Server(tmp_path / "sshd") as server:
        write(server, tmp_path / "loopback.toml")
        code, out, err = lrfc(*build, "--out", "out")
        assert code == 0, err
        manifest = json.loads(out)
        assert manifest["device"] == "loopback"
        assert manifest["after"]["latency_ms"]["threads"] == 2
        assert server.left() == []

        before_request(monkeypatch, 30, lambda worker: server.kill())
        code, out, err = lrfc(*build, "--out", "lost")
        assert code == 5, err
        assert "lost" in err.splitlines()[-1]
        assert not (tmp_path / "lost").exists()
        assert server.left() == []
