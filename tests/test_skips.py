"""The line of a test run that counts the tests skipped for a missing program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest


@pytest.mark.parametrize("number", range(3))
def test_device(number):
    pytest.skip("no OpenSSH server is installed (sshd): apt-get install openssh-server")


@pytest.mark.skipif(
    True, reason="chromium is not installed (apt-get install chromium chromium-driver)"
)
def test_report():
    pass


def test_other():
    pytest.skip("this system has no /dev/full")
"""


@pytest.mark.parametrize("processes", ["0", "1"])
def test_skipped_tests_are_counted(processes: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        processes,
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
        "-p",
        "no:cacheprovider",
        ".",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("skipped, and run after")]
    (line,) = lines
    assert line == (
        "skipped, and run after apt-get install: 1 for want of chromium chromium-driver,"
        " 3 for want of openssh-server"
    )
