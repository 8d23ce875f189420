"""The output of commands without a reader at a terminal.

In a pipe, without colours, and in an encoding other than UTF-8.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import helpers

ROOT = Path(__file__).parent.parent
PLAIN = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def lrfc(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE", "COLUMNS", "NO_COLOR")
    }
    return subprocess.run(
        [sys.executable, "-m", "lrfc", *args],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """Run a build in a pipe, in ASCII, with NO_COLOR."""
    folder = tmp_path_factory.mktemp("plain")
    model = helpers.conv_net(size=8, filters=(8, 16))
    model.save(folder / "net.keras")
    x = np.random.default_rng(0).standard_normal((64, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.argmax(model.predict(x, verbose=0), axis=1))
    options = "--data data.npz --max-macs 50% --methods channel_svd,svd --epochs 0 --target tflite"
    return folder, lrfc(folder, "build", "net.keras", *options.split(), NO_COLOR="1", **PLAIN)


def test_a_build_in_plain_ascii(built: tuple[Path, subprocess.CompletedProcess[bytes]]) -> None:
    folder, done = built
    assert done.returncode in (0, 8), done.stderr  # so small a network need not become faster
    for stream in (done.stdout, done.stderr):
        assert stream.isascii()
        assert b"\x1b" not in stream
        assert b"\r" not in stream, "no bar that moves without a terminal"
        assert b"Traceback" not in stream
    text = done.stdout.decode()
    assert "x1." in text or "x0." in text or "x2." in text
    assert "accuracy: original in float 100.00 % -> factorized" in text
    assert "----" in text
    table = text[: text.index("accuracy: ")].splitlines()
    assert max(map(len, table)) <= 80
    assert any(
        line.startswith("|MACs ") and line.rstrip("| ").split()[-1].startswith("x")
        for line in table
    ), "no row is folded"
    assert "×" in (folder / "net-lrfc" / "report.html").read_text(encoding="utf-8"), (
        "files are UTF-8 everywhere"
    )


def test_the_same_in_utf_8(built: tuple[Path, subprocess.CompletedProcess[bytes]]) -> None:
    done = lrfc(built[0], "inspect", "net.keras", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0
    assert "8×8×8" in done.stdout.decode("utf-8")
    assert (
        max(
            len(line)
            for line in done.stdout.decode("utf-8").splitlines()
            if not line.startswith("total")
        )
        <= 80
    )


def test_compare_in_ascii(built: tuple[Path, subprocess.CompletedProcess[bytes]]) -> None:
    done = lrfc(built[0], "compare", "net-lrfc", "net-lrfc", **PLAIN)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"net-lrfc -> net-lrfc" in done.stdout


def test_json_is_one_object_in_any_encoding(tmp_path: Path) -> None:
    done = lrfc(tmp_path, "config", "--resolved", "--json", **PLAIN)
    assert done.stdout.isascii()
    found = json.loads(done.stdout)
    assert found["seed"] == {"value": 0, "source": "default"}
    assert found["epochs"] == {"value": None, "source": "default"}


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "lrfc", "config", "--schema"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said == b""
