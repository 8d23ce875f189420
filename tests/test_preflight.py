"""Refusals without TensorFlow, in processes where it cannot be imported."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.config.build import PASSES
from lrfc.engine import preflight
from lrfc.errors import UsageError

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits.keras"

#: Runs each command line of the list on stdin, and prints a list of [exit code, stdout and stderr].
CHILD = """
import contextlib, io, json, os, runpy, sys, tempfile

FORBIDDEN = {"tensorflow", "keras", "tf_keras", "onnx", "onnxruntime", "scipy", "networkx"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"{name} is imported")


sys.meta_path.insert(0, Refuse())
from lrfc.cli.app import main


def run(arguments):
    sys.argv = ["lrfc", *arguments]
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, each in enumerate(saved, 1):
                os.dup2(each, number)
                os.close(each)
        file.seek(0)
        return code, file.read().decode()


print(json.dumps([run(each) for each in json.load(sys.stdin)]))
"""

#: The command, its exit code, and what its line says.
REFUSED = {
    f"{command} {rest}".strip(): (code, line)
    for command, rest, code, line in [
        (
            "build",
            "",
            2,
            (
                "no model is given: name a .keras or .h5 file, or with --locked a manifest.json"
                " that names one"
            ),
        ),
        ("build", "gone.keras", 2, "gone.keras: no such file"),
        ("build", "folder", 3, "folder is a folder: lrfc reads .keras and .h5 files"),
        ("build", "text.keras", 3, "text.keras is not a Keras model"),
        ("build", "{digits} --target tflit", 2, "unknown target 'tflit': did you mean 'tflite'?"),
        ("build", "{digits} --device hots", 2, "unknown device 'hots': did you mean 'host'?"),
        ("build", "{digits} --device gone.toml", 2, "gone.toml"),
        (
            "build",
            "{digits} --device cortex-m7 --target onnx",
            2,
            "device 'cortex-m7' runs tflite files, not onnx",
        ),
        (
            "build",
            "{digits} --device cortex-m7 --precision fp32",
            2,
            "device 'cortex-m7' computes in int8, not in fp32",
        ),
        ("build", "{digits} --precision int4", 2, "unknown precision 'int4': did you mean 'int8'?"),
        (
            "build",
            "{digits} --target onnx --precision int16x8",
            2,
            "target onnx has no precision 'int16x8'; choose fp32, fp16 or int8, or target tflite",
        ),
        ("build", "{digits} --int8-io", 2, "--int8-io goes with --precision int8, not fp32"),
        (
            "build",
            "{digits} --memory-mode Sram_Only",
            2,
            "--memory-mode Sram_Only: Vela reaches no device",
        ),
        (
            "build",
            "{digits} --device ethos-u55-128 --memory-mode sram_only",
            2,
            "--memory-mode sram_only: ",
        ),
        (
            "build",
            "{digits} --methods svd,tuker2",
            2,
            "--methods: unknown method tuker2: did you mean 'tucker2'?",
        ),
        (
            "build",
            "{digits} --metric acuracy",
            2,
            "--metric: unknown metric 'acuracy': did you mean 'accuracy'?",
        ),
        (
            "build",
            "{digits} --metric gone:score",
            2,
            "metric 'gone:score': there is no module 'gone'",
        ),
        ("build", "{digits} --metric mine:gone:min", 2, "metric 'mine:gone': "),
        ("build", "{digits} --data gone.npz", 2, "data file 'gone.npz' does not exist"),
        ("build", "{digits} --data gone", 2, "data 'gone' does not exist"),
        ("build", "{digits} --data text.keras", 2, "data 'text.keras' is a .keras file"),
        ("build", "{digits} --data folder", 2, "data folder 'folder' has no class folders"),
        (
            "build",
            "{digits} --data labels.npz",
            2,
            "data file 'labels.npz' has no array 'x'; it holds 'y', 'weight'",
        ),
        (
            "build",
            "{digits} --data unequal.npz",
            2,
            "data file 'unequal.npz': there are 8 in 'x' and 7 in 'y'",
        ),
        (
            "build",
            "{digits} --data damaged.npz",
            2,
            "data file 'damaged.npz' cannot be read as .npz",
        ),
        (
            "build",
            "{digits} --data unequal",
            2,
            "data folder 'unequal': there are 8 in 'x_val' and 7 in 'y_val'",
        ),
        (
            "build",
            "{digits} --data digits --test-data gone.npz",
            2,
            "data file 'gone.npz' does not exist",
        ),
        (
            "build",
            "{digits} --data gone.deep:load",
            2,
            "data 'gone.deep:load': there is no module 'gone.deep'",
        ),
        ("build", "{digits} --data mine:lod", 2, "data 'mine:lod': "),
        (
            "build",
            "{digits} --out taken",
            2,
            "output folder '{folder}/taken' is not empty and was not written by lrfc",
        ),
        ("build", "{digits} --out text.keras", 2, "output folder '{folder}/text.keras' is a file"),
        (
            "build",
            "{digits} --max-macs 50",
            2,
            "--max-macs: 50 has no unit: write 50% (of the original's MACs) or 50M",
        ),
        (
            "build",
            "{digits} --max-drop 1%",
            2,
            "--max-drop: 1% may be percentage points or a share of the score: write 1pp",
        ),
        ("build", "{digits} --epochs -1", 2, "--epochs: -1 is out of range"),
        ("build", "{digits} --threads 0", 2, "--threads: 0 is out of range"),
        (
            "build",
            "{digits} --objective cycles",
            2,
            "--objective cycles: device 'host' is timed in milliseconds",
        ),
        (
            "build",
            "{digits} --objective latncy",
            2,
            "--objective: 'latncy' is not known: did you mean 'latency'?",
        ),
        (
            "build",
            "{digits} --qat --data digits",
            2,
            "--qat goes with --target tflite and --precision int8, not tflite fp32",
        ),
        (
            "build",
            "{digits} --qat --precision int8",
            2,
            "--qat trains the network, and there is too little to train on",
        ),
        ("build", "{digits} --keep=", 2, "--keep: '' names no layer"),
        (
            "build",
            "{digits} --stop-after Factorise",
            2,
            "--stop-after: no pass is named 'Factorise': did you mean 'Factorize'?",
        ),
        ("build", "{digits} --config gone.toml", 2, "gone.toml: no such file"),
        (
            "build",
            "{digits} --config wrong.toml",
            2,
            "wrong.toml: unknown option 'max_mac': did you mean 'max_macs'?",
        ),
        ("build", "--locked gone.json", 2, "gone.json"),
        ("build", "{digits} --locked wrong.toml", 2, "wrong.toml"),
        ("explore", "gone.keras", 2, "gone.keras: no such file"),
        ("explore", "{digits} --over watts", 2, "a Pareto front cannot be drawn over 'watts'"),
        ("explore", "{digits} --data gone.npz", 2, "data file 'gone.npz' does not exist"),
        ("explore", "{digits} --methods magic", 2, "--methods: unknown method magic"),
        ("explore", "{digits} --device hots", 2, "unknown device 'hots': did you mean 'host'?"),
        ("explore", "{digits} --points 100000000", 2, "--points: 100000000 is out of range"),
        ("explore", "{digits} --out taken", 2, "output folder '{folder}/taken' is not empty"),
        ("inspect", "gone.keras", 2, "gone.keras: no such file"),
        ("inspect", "text.keras", 3, "text.keras is not a Keras model"),
        ("measure", "gone.tflite", 2, "gone.tflite: no such file"),
        ("measure", "text.keras", 2, "text.keras is no .tflite or .onnx file"),
        (
            "measure",
            "some.onnx --device cortex-m7",
            2,
            "device 'cortex-m7' runs tflite files, not some.onnx",
        ),
        ("measure", "some.onnx --device hots", 2, "unknown device 'hots': did you mean 'host'?"),
        (
            "measure",
            "some.onnx --runs 99999999999999999999",
            2,
            "--runs: 99999999999999999999 is out of range: 1 to 100,000",
        ),
        ("measure", "some.onnx --runs 0", 2, "--runs: 0 is out of range"),
        ("measure", "some.onnx --threads -2", 2, "--threads: -2 is out of range"),
        ("compare", "{digits} gone", 2, "gone: no such file or folder"),
        ("compare", "{digits} wrong.toml", 2, "wrong.toml is no output folder, manifest.json"),
        (
            "compare",
            "{digits} {digits} --max-regress speed=1%",
            2,
            "--max-regress speed=1%: give a quantity and its largest loss",
        ),
        ("report", "gone", 2, "'gone' is no output folder of lrfc"),
        ("explain", "gone conv1", 2, "'gone' holds no exploration"),
    ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with unusable files of every kind, and some usable ones."""
    place = tmp_path_factory.mktemp("preflight")
    for name in ("folder", "taken", "unequal"):
        (place / name).mkdir()
    (place / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    (place / "text.keras").write_text("not a model\n", encoding="utf-8")
    (place / "some.onnx").write_bytes(b"\x08\x08")
    (place / "wrong.toml").write_text("max_mac = '50%'\n", encoding="utf-8")
    (place / "mine.py").write_text("raise RuntimeError('run')\ndef load(): ...\n", encoding="utf-8")
    x, y = np.zeros((8, 8, 8, 1), np.float32), np.zeros(7, np.int32)
    np.savez(place / "labels.npz", y=y, weight=y)
    np.savez(place / "unequal.npz", x=x, y=y)
    (place / "damaged.npz").write_bytes((place / "unequal.npz").read_bytes()[:300])
    for name, array in (("x", x), ("x_val", x), ("y_val", y)):
        np.save(place / "unequal" / f"{name}.npy", array)
    return place


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, tuple[int, str]]:
    """The exit code and the last line of each command of REFUSED, all run in one process."""
    commands = [
        [word.format(digits=DIGITS, folder=folder) for word in command.split()]
        for command in REFUSED
    ]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("LRFC_BUILD_")
    } | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(commands),
        cwd=folder,
        env=env,
        text=True,
        capture_output=True,
        check=False,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(REFUSED, json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("command", REFUSED)
def test_it_is_refused_before_tensorflow_is_imported(
    command: str, said: dict[str, tuple[int, str]], folder: Path
) -> None:
    code, text = said[command]
    lines = text.splitlines()
    expected_code, expected = REFUSED[command]
    assert len(lines) == 1, text
    assert lines[0].startswith("lrfc: ")
    assert expected.format(folder=folder) in lines[0]
    assert code == expected_code


def test_nothing_is_left_behind(said: dict[str, tuple[int, str]], folder: Path) -> None:
    kept = {
        "folder",
        "taken",
        "unequal",
        "text.keras",
        "some.onnx",
        "wrong.toml",
        "mine.py",
        "labels.npz",
        "unequal.npz",
        "damaged.npz",
    }
    assert {each.name for each in folder.iterdir()} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dat": "digits"}, "unknown option 'dat': did you mean 'data'?"),
        ({"targets": "tflite"}, "unknown option 'targets': did you mean 'target'?"),
        ({"max_macs": 0.5}, "--max-macs: 0.5 has no unit: write 50%"),
        ({"max_drop": 0.01}, "--max-drop: 0.01 has no unit: write 1pp"),
        ({"lockd": "manifest.json"}, "unknown option 'lockd': did you mean 'locked'?"),
        ({"data": "gone.npz"}, "data file 'gone.npz' does not exist"),
    ],
)
def test_python_is_refused_by_the_same_lines(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lrfc.engine.build", None)  # importing it raises
    with pytest.raises(UsageError) as caught:
        lrfc.build(DIGITS, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"training": "compiled"}, "--training compiled"),
        ({"class_weights": "balanced"}, "--class-weights balanced"),
        ({"log_dir": "logs"}, "--log-dir"),
    ],
)
def test_options_of_a_fine_tune_that_does_not_take_place(
    options: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError, match=f"^{option} has no effect with --epochs 0"):
        preflight.build(str(DIGITS), options | {"epochs": 0})
    assert preflight.build(str(DIGITS), options | {"epochs": 1}).config.epochs == 1


@pytest.mark.parametrize("model", [None, 5, b"digits.keras", ["digits.keras"]])
def test_an_argument_that_is_no_model_is_refused(model: object) -> None:
    with pytest.raises(
        UsageError,
        match=(
            r"no model is given|a model is the path of a .keras or .h5 file, or a Keras model, not"
        ),
    ):
        preflight.build(model, {})


def test_arrays_may_be_named_like_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(DIGITS) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    (name,) = (layer["config"]["name"] for layer in layers if layer["class_name"] == "InputLayer")
    np.savez("named.npz", **{name: np.zeros((8, 8, 8, 1), np.float32)})
    assert preflight.build(str(DIGITS), {"data": "named.npz"}).data == "named.npz"
    np.savez("other.npz", pictures=np.zeros((8, 8, 8, 1), np.float32))
    with pytest.raises(UsageError, match="has no array 'x'; it holds 'pictures'"):
        preflight.build(str(DIGITS), {"data": "other.npz"})


def test_a_function_is_found_without_being_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "raise RuntimeError('run')\ntry:\n    def load(): ...\nfinally:\n    pass\nother = load\n",
        encoding="utf-8",
    )
    (tmp_path / "dynamic.py").write_text("globals()['load'] = print\n", encoding="utf-8")
    (tmp_path / "broken.py").write_text("def load(:\n", encoding="utf-8")
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("raise RuntimeError('run')\n", encoding="utf-8")
    (tmp_path / "pack" / "deep" / "__init__.py").write_text(
        "from os.path import *\n", encoding="utf-8"
    )
    for good in ("mine:load", "mine:other", "dynamic:load", "pack.deep:join", "json:loads"):
        assert preflight.build(str(DIGITS), {"data": good, "metric": good}).config.data == good
    for bad in ("mine:lod", "broken:load", "pack.shallow:load", "pack:load", "json:lods"):
        with pytest.raises(UsageError, match=f"data '{bad}': "):
            preflight.build(str(DIGITS), {"data": bad})


def test_the_passes_that_may_be_named_are_those_there_are() -> None:
    from lrfc import passes

    trees = (
        ast.parse(file.read_text(encoding="utf-8"))
        for file in Path(passes.__file__).parent.glob("*.py")
    )
    classes = [
        node
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    called = {
        node.name
        for node in classes
        if any(isinstance(each, ast.FunctionDef) and each.name == "__call__" for each in node.body)
    }
    assert called - set(PASSES) == {
        "PriceLayers",
        "ProfileModel",
    }, "which no build runs, and the measured loop runs silently"
    assert set(PASSES) <= called
