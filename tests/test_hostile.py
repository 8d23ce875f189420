"""Regression tests of bad inputs: each ends at once in one line, with an exit code of the table."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lrfc.cli import app as cli
from lrfc.data import mapped as streams
from lrfc.data.load import load_data
from lrfc.errors import LrfcError, UsageError
from lrfc.ir.graph import Graph
from lrfc.targets.devices import measure
from lrfc.targets.devices.measure import Artifact
from tests import helpers

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def graph() -> Graph:
    return helpers.graph_of(helpers.conv_net(size=8))


def refusal(call: Callable[[], object], error: type[LrfcError] = UsageError) -> str:
    """The message, of one line, of the error that a call raises."""
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- samples ---------------------------------------------------------------------------------------


def npy(shape: object, dtype: str = "<f4", values: bytes = b"") -> bytes:
    """An .npy file with any header."""
    header = (
        repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            npy((10**12, 10**12)),
            "(1000000000000, 1000000000000) takes 4,000,000,000,000,000,000,000,000 bytes",
        ),
        (npy((10**9,), values=b"1234"), "takes 4,000,000,000 bytes, and there are 4"),
        (npy((-1, 4), values=b"1234" * 4), "of shape (-1, 4), not plain numbers"),
        (npy((True, 1), values=b"1234"), "not plain numbers"),
        (npy((2.5,), values=b"1234"), "shape is not valid"),
        (npy((1,), "O", b"12345678"), "it holds Python objects"),
        (npy((1,), "[('a', 'O')]", b"12345678"), "cannot be read"),
        (npy((1,), "<M8[s]", b"12345678"), "not plain numbers"),
        (npy(5, values=b"1234"), "cannot be read"),
        (npy("__import__('os').system('touch canary')"), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_invalid_arrays(
    content: bytes, text: str, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for place in ("arrays", "x.npz"):
        assert text in refusal(lambda place=place: load_data(place, graph, seed=0))
    assert not (tmp_path / "canary").exists()


def test_invalid_archives(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((64, 8, 8, 3), np.float32))
    whole = bytearray(path.read_bytes())
    # Set the flag of encrypted members.
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(signature) + offset] |= 1
    path.write_bytes(whole)
    assert "encrypted, password required" in refusal(lambda: load_data(str(path), graph, seed=0))
    np.savez_compressed(path, x=np.zeros((64, 8, 8, 3), np.float32))
    monkeypatch.setattr(streams, "KEPT", 10_000)
    assert "unpacks to 49,280 bytes; at most 10,000 fit here" in refusal(
        lambda: load_data(str(path), graph, seed=0)
    )
    monkeypatch.setattr(streams, "MEMBERS", 0)
    assert "holds 1 arrays; at most 0 are read" in refusal(
        lambda: load_data(str(path), graph, seed=0)
    )


def test_many_large_arrays_are_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LARGE", 40_000)
    arrays = {name: np.full((80, 64), i, np.float32) for i, name in enumerate("abc")}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = streams.npz(tmp_path / "x.npz")
        assert all((found[name] == arrays[name]).all() for name in arrays)
        assert [streams.is_mapped(found[name]) for name in arrays] == [
            False,
            save is np.savez,
            save is np.savez,
        ]


@pytest.mark.parametrize(
    "place",
    [
        "/dev/zero",
        "/dev/zero.npz",
        "a" * 300,
        "b" * 5000 + ".npz",
        "~nouser/x",
        "~nouser/x.npz",
        "\0",
        "",
    ],
)
def test_paths_without_samples(place: str, graph: Graph) -> None:
    assert len(refusal(lambda: load_data(place, graph, seed=0))) < 900


def test_pipes_are_not_read(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    (tmp_path / "arrays").mkdir()
    for name in ("x.npz", "arrays/x.npy"):
        os.mkfifo(tmp_path / name)
    for name in ("x.npz", "arrays"):
        assert "is a pipe, not a regular file" in refusal(
            lambda name=name: load_data(str(tmp_path / name), graph, seed=0)
        )
    small = helpers.graph_of(helpers.conv_net(size=8, classes=2))
    os.mkfifo(tmp_path / "images" / "a" / "x.png")
    (tmp_path / "images" / "b" / "x.png").write_bytes(b"no image")
    assert "is a pipe, not a regular file" in refusal(
        lambda: load_data(str(tmp_path / "images"), small, seed=0)
    )


class LoudError(Exception):
    """An error of a user's code, with a message of two lines."""


def midway(error: BaseException) -> Iterator[Any]:
    yield np.zeros((8, 8, 3), np.float32), 0
    raise error


@pytest.mark.parametrize(
    "error",
    [
        LoudError("one\ntwo"),
        SystemExit(7),
        RecursionError("deep"),
        MemoryError(),
        StopIteration(),
        UnicodeError("x"),
    ],
)
def test_functions_that_raise(
    error: BaseException, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given() -> Any:
        raise error

    assert type(error).__name__ in refusal(lambda: load_data(given, graph, seed=0))
    # Python turns a StopIteration in a generator into a RuntimeError.
    kind = "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
    assert kind in refusal(lambda: load_data(midway(error), graph, seed=0))
    assert kind in refusal(lambda: load_data(lambda: midway(error), graph, seed=0))
    monkeypatch.chdir(tmp_path)
    name = f"raises_{type(error).__name__.lower()}"
    raised = "ValueError" if isinstance(error, LoudError) else type(error).__name__
    Path(f"{name}.py").write_text(f"def f():\n    raise {raised}('x')\nraise_now = 1\n")
    assert f"data '{name}:f' failed with" in refusal(lambda: load_data(f"{name}:f", graph, seed=0))
    Path(f"{name}_early.py").write_text("import sys\nsys.path[:] = sys.path[1:]\nsys.exit(9)\n")
    assert "failed with SystemExit: 9" in refusal(
        lambda: load_data(f"{name}_early:f", graph, seed=0)
    )


def test_ctrl_c_in_a_function_propagates(graph: Graph) -> None:
    def given() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_data(given, graph, seed=0)
    with pytest.raises(KeyboardInterrupt):
        load_data(midway(KeyboardInterrupt()), graph, seed=0)


@pytest.mark.parametrize(
    "given",
    [
        5,
        b"x",
        [],
        {},
        {"x": None},
        {"x": "text"},
        [object()],
        iter([None]),
        iter([(None, None)]),
        iter([{}]),
        iter(["x"]),
        iter([5]),
    ],
)
def test_invalid_data(given: Any, graph: Graph) -> None:
    refusal(lambda: load_data(given, graph, seed=0))


# -- figures ---------------------------------------------------------------------------------------


def test_runs_of_infinite_figures(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"")
    file = Artifact(tmp_path / "m.tflite", "tflite", "fp32")
    assert "are at most 1,000,000" in refusal(
        lambda: measure.compare([file], runs=99999999999999999999)
    )
    assert "at most 1,024" in refusal(lambda: measure.compare([file], threads=10**30))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "5",
        "[" * 5000,
        '{"schema_version": NaN}',
        '{"schema_version": 1e999}',
        "\ud800",
        "{",
    ],
)
def test_invalid_manifests(text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for words in (
        ["report", str(tmp_path)],
        ["compare", str(path), str(tmp_path)],
        ["explain", str(tmp_path), "conv"],
    ):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 2, words
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "name", ["d" * 300, "~nouser/x.toml", "/dev/zero", "d" * 5000 + ".toml", "\0.toml"]
)
def test_invalid_devices(name: str) -> None:
    for words in (
        ["devices", "show", name],
        ["devices", "check", name],
        ["devices", "add", name],
        ["devices", "calibrate", name],
    ):
        assert CliRunner().invoke(cli.app, words).exit_code == 2, words


def test_a_name_that_is_too_long_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'name = "{"d" * 300}"\ndescription = ""\n')
    assert CliRunner().invoke(cli.app, ["devices", "add", str(tmp_path / "x.toml")]).exit_code == 2


# -- streams and environment -----------------------------------------------------------------------


def lrfc(*words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process, with streams redirected by the shell."""
    command = f'exec "{sys.executable}" -m lrfc {" ".join(words)} {shell}'
    kept = {name: value for name, value in os.environ.items() if environment.get(name) != ""}
    chosen = (
        kept
        | {name: value for name, value in environment.items() if value}
        | {"PYTHONPATH": str(ROOT)}
    )
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env=chosen, timeout=120
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("words", "shell", "code"),
    [
        ("ops", "> /dev/full", 2),
        ("ops --json", "> /dev/full", 2),
        ("--help", "> /dev/full", 2),
        ("ops", ">&-", 0),
        ("ops", ">&- 2>&- <&-", 0),
        ("inspect none.keras", "2> /dev/full", 2),
        ("config --config none", "2>&-", 2),
    ],
)
def test_full_and_closed_streams(words: str, shell: str, code: int) -> None:
    done = lrfc(words, shell=shell)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONWARNINGS": "error"},
        {"COLUMNS": "0"},
        {"COLUMNS": "x"},
        {"COLUMNS": "9" * 30},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        {"HOME": ""},
        {"TMPDIR": "/nowhere"},
    ],
    ids=str,
)
def test_unusual_environments(environment: dict[str, str]) -> None:
    done = lrfc("devices list", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cortex-m7" in done.stdout


def test_the_helper_writes_npy_files() -> None:
    assert (np.load(io.BytesIO(npy((2,), values=struct.pack("<2f", 1, 2)))) == [1, 2]).all()
