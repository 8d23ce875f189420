"""The command line: output, exit codes, and files left behind, mostly of child processes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lrfc.cli import app as cli
from lrfc.data.load import load_data
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.results.folder import sha256
from lrfc.results.manifest import Manifest
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.disks import small_disk

DIGITS = Path(__file__).parents[1] / "examples" / "digits.keras"
#: The figures of NPUs and microcontrollers.
OTHER_DEVICES = {"cycles", "sram_bytes", "flash_bytes", "arena_head_bytes", "arena_tail_bytes"}
#: Ctrl-C works in the child even where the tests run in the background of a shell, which makes
#: their children ignore it.
MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lrfc.cli.app"
    " import main; main()"
)


@dataclass(frozen=True)
class Run:
    """A finished command, in a folder of its own."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    def left(self) -> set[str]:
        """Everything in its folder and in its folder of temporary files."""
        return {p.name for place in (self.folder, temporary(self.folder)) for p in place.iterdir()}

    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.stdout)


def temporary(folder: Path) -> Path:
    return folder.with_name(folder.name + "-tmp")


def start(folder: Path, *args: object) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    temporary(folder).mkdir(exist_ok=True)
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE")
    }
    env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(temporary(folder))}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, args)],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], folder: Path, said: str = "") -> Run:
    with process:
        stdout, stderr = process.communicate(timeout=240)
    return readable(Run(process.returncode, stdout, said + stderr, folder))


def readable(run: Run) -> Run:
    """The run, which printed neither a traceback nor escape sequences."""
    assert "Traceback" not in run.stdout + run.stderr
    assert "\x1b" not in run.stdout + run.stderr, "escape sequences without a terminal"
    return run


def lrfc(folder: Path, *args: object) -> Run:
    return finish(start(folder, *args), folder)


@pytest.fixture
def here(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Run]:
    """Run a command in this process, which has imported TensorFlow: in a new one that takes long.

    What the libraries of a new process write is looked at in the others.
    """
    folder = tmp_path / "run"
    for each in (folder, temporary(folder)):
        each.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(temporary(folder)))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def run(args: str) -> Run:
        capfd.readouterr()
        code = CliRunner().invoke(cli.app, args.format(files=files).split()).exit_code
        return readable(Run(code, *capfd.readouterr(), folder))

    return run


def refused(run: Run, code: int, *words: str) -> None:
    """Assert that a command ended with one line on stderr, an exit code and an empty stdout."""
    lines = [line for line in run.stderr.splitlines() if line.startswith("lrfc:")]
    assert len(lines) == 1, run.stderr
    assert run.code == code, run.stderr
    assert run.stderr.splitlines()[-1] == lines[0]
    for word in words:
        assert word in lines[0]
    assert run.stdout == ""


@dataclass(frozen=True)
class Case:
    """A build that is refused. ``{files}`` in an argument is the folder of the models."""

    args: str
    code: int
    words: tuple[str, ...] = field(default=())


CONV = "{files}/conv.keras"
TINY = f"{CONV} --data {{files}}/conv.npz --epochs 0"
REFUSED = {
    "missing model": Case("gone.keras", 2, ("gone.keras", "no such file")),
    "NaN weights": Case("{files}/nan.keras", 3, ("nan.keras", "NaN")),
    "budget out of reach": Case(
        f"{TINY} --max-macs 1%", 4, ("--max-macs 1% cannot be reached", "the least")
    ),
}
REFUSED_HERE = {
    "text file": Case("{files}/text.keras", 3, ("text.keras", "not a Keras model")),
    "truncated": Case("{files}/truncated.keras", 3, ("truncated.keras", "truncated or damaged")),
    "nothing to factorize": Case(
        "{files}/pooling.keras", 3, ("no convolution and no fully connected layer",)
    ),
    "wrong shape": Case(
        f"{CONV} --data {{files}}/wrong.npz", 2, ("wrong.npz", "(10, 10, 3)", "(12, 12, 3)")
    ),
    "budget 0%": Case(f"{TINY} --max-macs 0%", 2, ("--max-macs", "0%")),
    "budget 400%": Case(f"{TINY} --max-macs 400%", 2, ("--max-macs", "400%")),
    "budget banana": Case(f"{TINY} --max-macs banana", 2, ("--max-macs", "'banana'")),
    "unknown target": Case(f"{TINY} --target coreml", 2, ("'coreml'", "tflite, onnx")),
    "unknown precision": Case(f"{TINY} --precision int4", 2, ("precision", "int8")),
    "unknown method": Case(f"{TINY} --methods magic", 2, ("magic", "tucker2")),
    "int16x8 for onnx": Case(
        f"{TINY} --target onnx --precision int16x8",
        2,
        ("onnx", "int16x8", "fp16 or int8", "tflite"),
    ),
}


# -- a few child processes at a time ---------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data, good and bad."""
    import keras

    folder = tmp_path_factory.mktemp("files")
    conv = helpers.conv_net(filters=(16, 24))
    conv.save(folder / "conv.keras")
    x = np.random.default_rng(0).standard_normal((80, 12, 12, 3)).astype(np.float32)
    y = np.argmax(conv.predict(x, verbose=0), axis=1)
    np.savez(folder / "conv.npz", x=x, y=y)
    np.savez(folder / "wrong.npz", x=x[:, 1:-1, 1:-1], y=y)
    whole = (folder / "conv.keras").read_bytes()
    (folder / "truncated.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "text.keras").write_text("not a model\n")
    kernel, bias = conv.get_layer("head").get_weights()
    kernel[0, 0] = np.nan
    conv.get_layer("head").set_weights([kernel, bias])
    conv.save(folder / "nan.keras")
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)).save(
        folder / "pooling.keras"
    )
    (folder / "corrupt.tflite").write_bytes(bytes(range(256)) * 8)
    return folder


def on_a_full_disk(folder: Path, *args: object) -> Run:
    """Run the command in an almost full file system of 1 MB.

    The files left in it are recorded before it is unmounted.
    """
    with small_disk(folder, "1m"):
        (folder / "film").write_bytes(bytes(1_044_480))
        run = lrfc(folder, *args)
        after = folder.with_name(folder.name + "-after")
        after.mkdir()
        for path in folder.iterdir():
            (after / path.name).touch()
        temporary(folder).rename(temporary(after))
        return replace(run, folder=after)


def interrupted(sent: signal.Signals, *, writing: bool) -> Callable[..., Run]:
    """Return a runner that sends a signal to the command and its children.

    It sends it after the first pass or, with ``writing``, once the output folder is being written.
    """

    def run(folder: Path, *args: object) -> Run:
        process = start(folder, *args)
        assert process.stderr is not None
        said = ""
        try:
            while not (list(folder.glob(".*.partial")) if writing else "Canonicalise" in said):
                if writing:
                    assert process.poll() is None, "the build ended before it wrote anything"
                    time.sleep(0.01)
                else:
                    line = process.stderr.readline()
                    assert line, f"the build ended before its first pass: {said}"
                    said += line
            os.killpg(process.pid, sent)
            return finish(process, folder, said)
        finally:
            process.kill()

    return run


SMALLER = f"build {TINY} --methods channel_svd --max-macs 60%"
#: Name → how it is run, and the command.
COMMANDS: dict[str, tuple[Callable[..., Run], str]] = {
    "digits": (
        lrfc,
        f"build {DIGITS} --data digits --max-macs 50% --epochs 0 --json --out small",
    ),  # the longest comes first
    "full disk": (on_a_full_disk, f"{SMALLER} --out small"),
    "Ctrl-C while writing": (interrupted(signal.SIGINT, writing=True), SMALLER),
    "SIGTERM while writing": (interrupted(signal.SIGTERM, writing=True), SMALLER),
    "Ctrl-C while exploring": (interrupted(signal.SIGINT, writing=False), f"build {TINY}"),
    "doctor": (lrfc, "doctor --json"),
    **{name: (lrfc, f"build {case.args}") for name, case in REFUSED.items()},
}


@pytest.fixture(scope="module")
def begun(
    files: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[Run]]]:
    """The commands of the selected tests, three at a time.

    Most of the time of a child is the import of TensorFlow.
    """
    root = tmp_path_factory.mktemp("runs")
    wanted = {
        item.callspec.params.get("run")
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    }
    with ThreadPoolExecutor(3) as pool:
        yield {
            name: pool.submit(how, root / str(number), *args.format(files=files).split())
            for number, (name, (how, args)) in enumerate(COMMANDS.items())
            if name in wanted
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def run(begun: dict[str, Future[Run]], request: pytest.FixtureRequest) -> Run:
    """The command that the test names."""
    return begun[request.param].result()


def command(*names: str) -> pytest.MarkDecorator:
    """Mark a test with the names of its COMMANDS."""
    return pytest.mark.parametrize("run", names, indirect=True)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "case"), REFUSED.items(), ids=REFUSED, indirect=["run"])
def test_a_build_that_is_not_possible_is_refused_in_one_line(run: Run, case: Case) -> None:
    refused(run, case.code, *case.words)
    assert run.left() == set()


@pytest.mark.parametrize("case", REFUSED_HERE.values(), ids=REFUSED_HERE)
def test_other_builds_are_refused_in_one_line(case: Case, here: Callable[..., Run]) -> None:
    run = here(f"build {case.args}")
    refused(run, case.code, *case.words)
    assert run.left() == set()


def test_a_foreign_folder_is_not_touched(files: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run" / "mine"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("three years")
    run = lrfc(tmp_path / "run", "build", files / "conv.keras", "--out", "mine")
    refused(run, 2, "mine", "not empty and was not written by lrfc", "--out")
    assert run.left() == {"mine"}
    assert {p.name: p.read_text() for p in mine.iterdir()} == {"thesis.txt": "three years"}


@command("full disk")
def test_a_full_disk_is_reported_and_leaves_nothing(run: Run) -> None:
    refused(run, 2, "small", "--out")
    assert re.search("the disk is full|No space left on device", run.stderr)
    assert run.left() == {"film"}


@pytest.mark.parametrize(
    ("run", "code", "word"),
    [
        ("Ctrl-C while exploring", 130, "interrupted"),
        ("Ctrl-C while writing", 130, "interrupted"),
        ("SIGTERM while writing", 143, "terminated"),
    ],
    indirect=["run"],
)
def test_an_interrupt_leaves_nothing_behind(run: Run, code: int, word: str) -> None:
    refused(run, code, word)
    assert run.left() == set()


# -- a whole build ---------------------------------------------------------------------------------


def run_file(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The outputs of a .tflite file by the plain runtime, one sample at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in x.astype(np.float32):
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(wanted["index"])[0].copy())
    return np.array(outputs)


@command("digits")
def test_the_output_folder_is_complete_and_true(run: Run) -> None:
    import keras

    assert run.code == 0, run.stderr
    assert run.left() == {"small"}
    out = run.folder / "small"
    names = {
        "digits.tflite",
        "model.keras",
        "manifest.json",
        "layers.csv",
        "pareto.json",
        "candidates.csv",
        "ops.json",
        "report.html",
        "log.txt",
    }
    assert {p.name for p in out.iterdir()} == names

    manifest = Manifest.read(out)
    assert (manifest.target, manifest.input.sha256, manifest.seed) == ("tflite", sha256(DIGITS), 0)
    assert manifest.after.macs <= 0.5 * manifest.before.macs
    assert manifest.after.params < manifest.before.params
    assert {file.path: (file.sha256, file.bytes) for file in manifest.artifacts} == {
        name: (sha256(out / name), (out / name).stat().st_size)
        for name in ("digits.tflite", "model.keras")
    }
    assert manifest.after.file_bytes == (out / "digits.tflite").stat().st_size
    assert manifest.after.workspace_bytes == TFLite().workspace_bytes(out / "digits.tflite")
    for figures in (manifest.before, manifest.after):
        assert None not in figures.model_dump(exclude=OTHER_DEVICES).values()
    assert manifest.parity is not None
    assert manifest.parity.samples > 0

    # The reported accuracies are those of the files, on samples that the build did not choose by.
    original = keras.saving.load_model(DIGITS, compile=False)
    test = load_data("digits", keras_io.from_keras(original), seed=0).test
    assert test.targets is not None
    outputs = run_file(out / "digits.tflite", test.inputs[0])
    accuracy = float(np.mean(outputs.argmax(1) == test.targets[0]))
    assert (
        manifest.after.accuracy == manifest.accuracy.artifact == pytest.approx(accuracy, abs=1e-9)
    )
    before = float(
        np.mean(
            original.predict(test.inputs[0].astype(np.float32), verbose=0).argmax(1)
            == test.targets[0]
        )
    )
    assert manifest.accuracy.before == pytest.approx(before, abs=1e-9)
    assert accuracy >= before - 0.01

    # model.keras is the same network, in plain Keras.
    with zipfile.ZipFile(out / "model.keras") as archive:
        assert "lrfc" not in archive.read("config.json").decode()
    model = keras.saving.load_model(out / "model.keras", compile=False)
    np.testing.assert_allclose(
        model.predict(test.inputs[0].astype(np.float32), verbose=0),
        outputs,
        atol=1e-4 * np.ptp(outputs),
    )
    assert fold_batchnorm(keras_io.from_keras(model)).params == manifest.after.params

    rows = list(csv.DictReader((out / "layers.csv").read_text(encoding="utf-8").splitlines()))
    assert (
        [row["name"] for row in rows]
        == [layer.name for layer in manifest.layers]
        == ["conv1", "conv2", "conv3", "conv4", "hidden", "digit"]
    )
    assert any(row["method"] for row in rows)
    for row in rows:
        assert bool(row["method"]) != bool(row["reason"]), row
    points = json.loads((out / "pareto.json").read_text())["points"]
    assert len(points) > 5
    for small, large in itertools.pairwise(points):
        assert small["macs"] < large["macs"]
        assert small["predicted_divergence"] >= large["predicted_divergence"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert (
        re.search(
            r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?https?:|@import""", page
        )
        is None
    )
    assert "Factorize" in (out / "log.txt").read_text()

    assert "FineTune" not in run.stderr
    printed = run.json()
    assert printed["out"].endswith("small")
    assert printed["problem"] is None
    assert printed["speedup"]["low"] <= printed["speedup"]["median"] <= printed["speedup"]["high"]
    assert {key: printed[key] for key in manifest.to_json()} == json.loads(
        (out / "manifest.json").read_text()
    )


@command("digits")
def test_measure_compares_files(run: Run, tmp_path: Path) -> None:
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    for name in ("a.tflite", "b.tflite"):
        shutil.copyfile(run.folder / "small" / "digits.tflite", tmp_path / name)
    measured = lrfc(tmp_path, "measure", "a.tflite", "b.tflite", "--runs", "20", "--json")
    assert measured.code == 0, measured.stderr
    rows = measured.json()["measurements"]
    assert [row["path"] for row in rows] == ["a.tflite", "b.tflite"]
    assert all(
        0 < row["median_ms"] <= row["p90_ms"] and row["n"] == 20 and row["peak_rss_bytes"] > 0
        for row in rows
    )
    assert measured.left() == {"a.tflite", "b.tflite"}


# -- the other commands ----------------------------------------------------------------------------


def test_a_pass_is_printed_and_the_build_stops_after_it(here: Callable[..., Run]) -> None:
    run = here(f"{SMALLER} --print-after Factorize --stop-after Factorize")
    assert run.code == 0, run.stderr
    assert run.stdout == ""
    assert run.left() == set()
    assert "Factorize:" in run.stderr
    assert "RecalibrateBatchNorm" not in run.stderr
    assert len(re.findall("Conv2D", run.stderr)) > 2, "the printed graph has the factors of a layer"


def test_inspect_counts(here: Callable[..., Run]) -> None:
    run = here(f"inspect {CONV} --json")
    assert run.code == 0, run.stderr
    totals = run.json()
    # conv0: 3·3·3·16 + 16, bn0: 4·16, conv1: 3·3·16·24 + 24, bn1: 4·24, head: 24·5 + 5
    assert totals["params"] == 448 + 64 + 3480 + 96 + 125
    assert run.left() == set()


def test_a_corrupt_file_cannot_be_measured(here: Callable[..., Run]) -> None:
    run = here("measure {files}/corrupt.tflite")
    refused(run, 5, "cannot measure corrupt.tflite")
    assert run.left() == set()


@command("doctor")
def test_doctor_finds_this_environment_sound(run: Run) -> None:
    assert run.code == 0, run.stderr
    checks = {check["name"]: check["ok"] for check in run.json()["checks"]}
    assert checks["target tflite"]
    assert checks["target onnx"]


def test_a_table_on_a_terminal_without_colours(files: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    env = {
        **os.environ,
        "NO_COLOR": "1",
        "TERM": "xterm-256color",
        "COLUMNS": "120",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-m", "lrfc", "inspect", str(files / "conv.keras")]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 10_000):
            said += part
    except OSError:  # the end, on Linux
        pass
    os.close(ours)
    assert process.wait() == 0
    for word in ("conv0", "conv1", "head", "4,213 params"):
        assert word in said.decode()
    assert re.search(rb"\x1b\[(?:\d+;)*[349]\d", said) is None


def test_help_needs_no_heavy_package(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['lrfc', *sys.argv[1:]]\nfrom lrfc.cli.app import main\ntry:\n   "
        " main()\nexcept SystemExit as end:\n    print('loaded:', *sorted({name.partition('.')[0]"
        " for name in sys.modules}))\n    assert not end.code"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for args in (["--help"], ["build", "--help"], ["--version"]):
        run = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=tmp_path,
            env=env,
            text=True,
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        loaded = set(run.stdout.rpartition("loaded:")[2].split())
        assert "lrfc" in loaded
        assert not loaded & {
            "tensorflow",
            "keras",
            "numpy",
            "scipy",
            "networkx",
            "onnx",
            "onnxruntime",
            "ai_edge_litert",
        }


def test_explore_then_explain(here: Callable[..., Run]) -> None:
    run = here(
        f"explore {DIGITS} --data digits --methods spatial_svd,svd --over macs,ram --points 9"
        " --out seen"
    )
    assert run.code == 0, run.stderr
    assert "Pareto front" in run.stdout
    assert run.left() == {"seen"}
    told = here("explain seen conv2 --json")
    assert told.code == 0, told.stderr
    assert {row["method"] for row in told.json()["rows"]} == {None, "spatial_svd"}
    missing = here("explain seen conv9")
    assert missing.code == 2
    assert "no layer 'conv9' was explored; the layers are" in missing.stderr
    unknown = here(f"explore {DIGITS} --data digits --over watts")
    assert unknown.code == 2
    assert "cannot be drawn over 'watts'" in unknown.stderr
