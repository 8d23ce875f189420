"""``lrfc doctor`` reports packages that are missing, too old or broken, with the fix."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from lrfc.cli import doctor as diagnosis
from lrfc.cli.doctor import Check, require, run
from lrfc.errors import DependencyError
from lrfc.ir import processor


def test_this_environment_is_in_order() -> None:
    checks = {check.name: check for check in run()}
    assert [check for check in checks.values() if not check.ok] == []
    assert checks["keras"].detail.endswith(", on tensorflow")
    assert checks["tensorflow"].detail == importlib.metadata.version("tensorflow")
    assert (
        checks["target tflite"].detail == checks["target onnx"].detail == "emits and runs a model"
    )
    assert "host" in checks["devices: local"].detail
    assert "ethos-u55-128" in checks["devices: vela"].detail
    assert checks["devices: analytic"].detail.startswith("cortex-m4, cortex-m7;")
    assert checks["oneDNN"].detail == str(processor.onednn())
    assert int(checks["CPUs"].detail) >= 1
    assert {"python", "numpy", "free memory", *diagnosis.REQUIRED, *diagnosis.OPTIONAL} <= set(
        checks
    )
    require(checks.values())


def test_the_bounds_are_those_of_the_project() -> None:
    project = tomllib.loads(
        (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    lower = {
        requirement.name: next(
            bound.version for bound in requirement.specifier if bound.operator == ">="
        )
        for requirement in map(Requirement, project["dependencies"])
    }
    assert {name: least for name, (_, least) in diagnosis.REQUIRED.items()} == lower
    assert project["requires-python"] == f">={'.'.join(map(str, diagnosis.PYTHON))}"
    for name, (extra, least) in diagnosis.OPTIONAL.items():
        (wanted,) = (
            requirement
            for requirement in map(Requirement, project["optional-dependencies"][extra])
            if requirement.name == name
        )
        assert least in {bound.version for bound in wanted.specifier if bound.operator == ">="}
    assert {extra for extra, _ in diagnosis.OPTIONAL.values()} == set(
        project["optional-dependencies"]
    ) - {"test", "docs"}


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    """Let the named packages have another version, or none."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = changed.get(name.replace("-", "_"), "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_missing_and_an_old_package_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, tf2onnx=None, keras="2.15.0")
    checks = run()
    failed = {check.name: check.detail for check in checks if not check.ok}
    assert failed == {
        "tf2onnx": "not installed; pip install 'tf2onnx>=1.17'",
        "keras": "2.15.0 is too old; pip install 'keras>=3.12'",
    }
    assert not any(check.name.startswith("target") for check in checks)  # they could only repeat it
    with pytest.raises(DependencyError) as caught:
        require(checks)
    assert caught.value.exit_code == 6
    assert all(f"{name}: {detail}" in str(caught.value) for name, detail in failed.items())
    assert "\n" not in str(caught.value)


def test_optional_packages_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, ethos_u_vela=None, tensorflow_model_optimization=None, tflite_micro=None)
    checks = [diagnosis._extra(name) for name in diagnosis.OPTIONAL]
    assert [check.detail for check in checks] == [
        "not installed; pip install 'lrfc[npu]'",
        "not installed; pip install 'lrfc[qat]'",
        "not installed; pip install 'lrfc[micro]'",
    ]
    require(checks)
    vela = {check.name: check for check in diagnosis._devices()}["devices: vela"]
    assert (vela.ok, vela.detail.endswith("cannot be built for; pip install 'lrfc[npu]'")) == (
        True,
        True,
    )


def test_an_optional_package_that_is_there_has_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, ethos_u_vela="3.9")
    old = diagnosis._extra("ethos-u-vela")
    assert (old.ok, old.detail) == (False, "3.9 is too old; pip install 'lrfc[npu]'")

    def fail(module: str) -> Any:
        raise ImportError(f"no {module}")

    versions(monkeypatch, ethos_u_vela="5.2.0")
    monkeypatch.setattr(diagnosis.importlib, "import_module", fail)
    broken = diagnosis._extra("ethos-u-vela")
    assert not broken.ok
    assert "no ethosu.vela; pip install --force-reinstall 'ethos-u-vela>=5'" in broken.detail


def test_what_devices_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, str | None] = {"ssh": "/usr/bin/ssh", "adb": None}
    monkeypatch.setattr(diagnosis.shutil, "which", found.get)
    checks = {check.name: check for check in diagnosis._devices()}
    assert (
        checks["devices: ssh"].detail
        == "jetson-orin, raspberry-pi-4, with /usr/bin/ssh; check one with lrfc devices check NAME"
    )
    assert checks["devices: adb"].ok, "a device that only ships need not be reached"
    assert checks["devices: adb"].detail.startswith(
        "android cannot be reached: adb is not installed; it comes with Android's platform-tools"
    )


def test_the_profiles_of_the_user_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis.shutil, "which", lambda program: None)
    monkeypatch.setattr("lrfc.targets.devices.device.own_folder", lambda: tmp_path)
    (tmp_path / "phone.toml").write_text(
        'name = "phone"\ndescription = "mine"\n[connection]\nkind = "adb"\n'
    )
    (tmp_path / "board.toml").write_text('name = "board"\ndescription = "mine"\nthread = 4\n')
    checks = {check.name: check for check in diagnosis._devices()}
    assert not checks["device board"].ok
    assert "unknown key 'thread' (= 4): did you mean 'threads'?" in checks["device board"].detail
    assert (checks["devices: adb"].ok, checks["devices: adb"].detail.split()[:2]) == (
        False,
        ["android,", "phone"],
    )
    assert checks["devices: ssh"].ok
    with pytest.raises(DependencyError, match=r"board\.toml: unknown key"):
        require(checks.values())


def test_a_package_that_does_not_import_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> Any:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(diagnosis.importlib, "import_module", fail)
    check = diagnosis._package("onnxruntime")
    assert not check.ok
    assert "libgomp.so.1: cannot open" in check.detail
    assert "pip install --force-reinstall 'onnxruntime>=1.20'" in check.detail


def test_another_backend_of_keras_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    check = diagnosis._package("keras")
    assert (check.ok, "'jax'" in check.detail, "unset KERAS_BACKEND" in check.detail) == (
        False,
        True,
        True,
    )


def test_a_target_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrfc.ir.keras import io as keras_io

    monkeypatch.setattr(
        keras_io, "predict", lambda graph, inputs: [np.full((1, 3), 9.0, "float32")]
    )
    check = diagnosis._target("onnx")
    assert not check.ok
    assert "differ by" in check.detail


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PYTHON", (99, 1))
    assert not diagnosis._python().ok
    assert "install Python 99.1 or newer" in diagnosis._python().detail


@pytest.mark.parametrize(
    ("older", "newer"),
    [("2.9", "2.21"), ("3.12.0rc1", "3.12.1"), ("2", "2.0.1"), ("1.9.9", "1.17")],
)
def test_versions_compare_as_numbers(older: str, newer: str) -> None:
    assert diagnosis._release(older) < diagnosis._release(newer)
    assert diagnosis._release("2.0.0") == diagnosis._release("2")


def test_nothing_failed_nothing_raised() -> None:
    require([Check("a", True, "1")])
    with pytest.raises(DependencyError, match=r"^b: gone; install it$"):
        require([Check("a", True, "1"), Check("b", False, "gone; install it")])
