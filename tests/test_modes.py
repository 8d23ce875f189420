"""Memory modes and system configurations of an Ethos-U from the command line.

Wrong names are refused, and no figure of one mode is taken for another's.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lrfc
from lrfc.cli import app as cli
from lrfc.costs.measurements import Store
from lrfc.engine.destinations import destination
from lrfc.engine.preflight import goals
from lrfc.engine.replay import Locked
from lrfc.errors import BudgetError, NoGainError, UsageError
from lrfc.results.compare import compare
from lrfc.targets.devices import device
from lrfc.targets.ethos_u.modes import configured
from tests.helpers import residual

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None,
    reason="ethos-u-vela is not installed: pip install 'lrfc[npu]'",
)


def test_only_devices_of_vela_are_changed() -> None:
    given = [device.load(name) for name in ("host", "ethos-u55-128", "ethos-u85-512")]
    assert configured(given) == given
    host, *npus = configured(given, memory_mode="Sram_Only")
    assert host == given[0]
    for before, after in zip(given[1:], npus, strict=True):
        assert after == before.model_copy(
            update={"connection": before.connection.model_copy(update={"memory_mode": "Sram_Only"})}
        )
    (both,) = configured(
        given[1:2], memory_mode="internal-default", system_config="Ethos_U55_Deep_Embedded"
    )
    assert (both.connection.memory_mode, both.connection.system_config) == (
        "internal-default",
        "Ethos_U55_Deep_Embedded",
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            (),
            {"memory_mode": "Sram_Only"},
            r"--memory-mode Sram_Only: Vela reaches no device of this call \(host\); .*ethos-u55",
        ),
        (
            ("host", "cortex-m4"),
            {"system_config": "x"},
            r"--system-config x: .*\(host, cortex-m4\)",
        ),
        (
            ("host", "ethos-u55-128"),
            {"memory_mode": "sram_only"},
            r"sram_only: .*vela\.ini .*did you mean 'Sram_Only'\?; it has .*Shared_Sram",
        ),
        (
            ("ethos-u65-512",),
            {"system_config": "Shared_Sram"},
            r"--system-config Shared_Sram: .*vela\.ini .*it has .*Ethos_U65_High_End",
        ),
    ],
)
def test_unknown_names_are_refused(
    names: tuple[str, ...], options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        goals(["tflite"], names, None, None, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_vela_ini_of_ones_own(tmp_path: Path) -> None:
    shipped = device.load("ethos-u55-128")

    def named(path: Path) -> device.Device:
        return shipped.model_copy(
            update={"connection": shipped.connection.model_copy(update={"config": str(path)})}
        )

    path = tmp_path / "vela.ini"
    with pytest.raises(
        UsageError, match=r"vela\.ini: no such vela\.ini; it is the key connection\.config"
    ):
        configured([named(path)], memory_mode="Mine")
    path.write_text("Memory_Mode.Mine\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"vela\.ini is no vela\.ini"):
        configured([named(path)], memory_mode="Mine")
    path.write_text("[Memory_Mode.Mine]\nconst_mem_area=Axi0\n", encoding="utf-8")
    (found,) = configured([named(path)], memory_mode="Mine")
    assert found.connection.memory_mode == "Mine"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="it has Mine"):
        configured([named(path)], memory_mode="Sram_Only")


def test_the_cost_profile_that_ships_is_called_that_of_another_mode() -> None:
    modes: tuple[dict[str, str], ...] = (
        {},
        {"memory_mode": "Shared_Sram"},
        {"memory_mode": "Sram_Only"},
    )
    own, same, other = (
        destination(goal)
        for mode in modes
        for goal in goals([], ["ethos-u55-128"], None, None, **mode)
    )  # type: ignore[arg-type]
    assert own.profile()[1] is same.profile()[1] is None
    profile, note = other.profile()
    assert profile.unit == "cycles"
    assert note is not None
    assert "no cost profile for ethos-u55-128, Ethos_U55_High_End_Embedded, Sram_Only" in note


def test_builds_in_two_modes_share_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((64, 16, 16, 3)).astype(np.float32),
        "y": rng.integers(0, 3, 64),
    }
    model = residual(size=16, filters=16)

    def built(out: str, **options: str) -> lrfc.Result:
        try:
            return lrfc.build(  # type: ignore[no-any-return]
                model,
                device="ethos-u55-128",
                data=data,
                max_macs="70%",
                epochs=0,
                out=tmp_path / out,
                methods=("channel_svd",),
                **options,
            )
        except (BudgetError, NoGainError) as error:
            return error.result  # type: ignore[return-value]

    shared, inside = built("shared"), built("inside", memory_mode="Sram_Only")
    assert inside.manifest.config["memory_mode"] == "Sram_Only"
    assert shared.manifest.config["memory_mode"] is None
    assert shared.manifest.before.cycles != inside.manifest.before.cycles
    (artifact,) = tmp_path.glob("inside/*_vela.tflite")
    file = artifact.with_name(artifact.name.replace("_vela", ""))
    line = [
        "measure",
        str(file),
        "--device",
        "ethos-u55-128",
        "--memory-mode",
        "Sram_Only",
        "--json",
    ]
    capfd.readouterr()
    assert CliRunner().invoke(cli.app, line).exit_code == 0
    (measured,) = json.loads(capfd.readouterr().out)["measurements"]
    assert (measured["cycles"], measured["sram_bytes"]) == (
        inside.manifest.after.cycles,
        inside.manifest.after.sram_bytes,
    )
    versions = {entry.key.runtime_version for entry in Store(log=print).history("ethos-u55-128")}
    assert {version.split()[-1] for version in versions} == {"Shared_Sram", "Sram_Only"}
    subjects = [
        {e.key.subject for e in Store(log=print).history() if e.key.runtime_version.endswith(mode)}
        for mode in ("Shared_Sram", "Sram_Only")
    ]
    assert any(
        subject.startswith("model:") for subject in subjects[0] & subjects[1]
    )  # the original: one file, two figures
    assert Locked(tmp_path, inside.manifest).options({})["memory_mode"] == "Sram_Only"
    (verdict,) = compare(tmp_path / "shared", tmp_path / "inside", ["cycles=5%"]).verdicts
    assert "against ethos-u55-128 Sram_Only tflite" in verdict.detail
