"""The examples run, and what they name is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import typer
import yaml

from lrfc import cli
from lrfc.comparison import parse
from lrfc.targets import device

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def known(line: str) -> None:
    """The command and its flags are those of the command line."""
    words = line.split()
    group = typer.main.get_command(cli.app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    while hasattr(command, "commands"):
        words = words[1:]
        command = command.commands[words[0]]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options, line


def test_python_api_runs(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "python_api.py", tmp_path / "out"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"digits.tflite: [\d,]+ of [\d,]+ bytes, \d+\.\d\d times as fast", done.stdout)
    assert "  layers: " in done.stdout, "the callback for progress was called"
    assert [line.split()[:2] for line in done.stdout.splitlines()[-2:]] == [["ok:", "accuracy"], ["ok:", "size"]]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-again"}


def test_own_device_is_a_profile() -> None:
    found = device.read(EXAMPLES / "own_device.toml")
    assert (found.name, found.reach.kind) == ("own-board", "ssh")
    for line in re.findall(r"^#   lrfc (.*?)(?:  +.*)?$", (EXAMPLES / "own_device.toml").read_text(encoding="utf-8"), re.MULTILINE):
        known(line)


def test_the_pipeline_calls_what_there_is() -> None:
    text = (EXAMPLES / "ci" / "github-actions.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["compress"]["steps"]
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines() if line.strip().startswith("lrfc ")]
    assert [line.split()[1] for line in lines] == ["build", "compare"]
    for line in lines:
        known(line.removeprefix("lrfc "))
    for limit in re.findall(r"--max-regress (\S+)", text):
        parse(limit)


def test_the_container_holds_what_the_repository_has() -> None:
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    assert [line.split()[0] for line in text.splitlines() if line and line[0] not in "# "] == [
        "FROM",
        "COPY",
        "RUN",
        "ENV",
        "WORKDIR",
        "ENTRYPOINT",
        "CMD",
    ]
    assert (ROOT / "constraints.txt").is_file()
    assert "npu = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = re.findall(r"docker run .* lrfc (build .*)$", text, re.MULTILINE)
    known(line)
