"""The examples run, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import typer
import yaml

from lrfc.cli import app as cli
from lrfc.results.compare import parse
from lrfc.targets.devices import device

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
    options = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.slow
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
    assert [line.split()[:2] for line in done.stdout.splitlines()[-2:]] == [
        ["ok:", "accuracy"],
        ["ok:", "size"],
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-again"}


def test_own_device_is_a_profile() -> None:
    found = device.read(EXAMPLES / "own_device.toml")
    assert (found.name, found.connection.kind) == ("own-board", "ssh")
    for line in re.findall(
        r"^#   lrfc (.*?)(?:  +.*)?$",
        (EXAMPLES / "own_device.toml").read_text(encoding="utf-8"),
        re.MULTILINE,
    ):
        known(line)


def test_the_pipeline_calls_what_there_is() -> None:
    text = (EXAMPLES / "ci" / "github-actions.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["compress"]["steps"]
    lines = [
        line.strip()
        for step in steps
        for line in step.get("run", "").splitlines()
        if line.strip().startswith("lrfc ")
    ]
    assert [line.split()[1] for line in lines] == ["build", "compare"]
    for line in lines:
        known(line.removeprefix("lrfc "))
    for limit in re.findall(r"--max-regress (\S+)", text):
        parse(limit)


class Workflow:
    """Run the commands of the pipeline one after the other, as a release or a change does.

    ``gh`` is a stand-in that keeps releases in a folder; lrfc is installed already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, programs = folder, folder / "bin"
        self.steps = yaml.safe_load(
            (EXAMPLES / "ci" / "github-actions.yml").read_text(encoding="utf-8")
        )["jobs"]["compress"]["steps"]
        programs.mkdir()
        kept = folder / "releases"
        kept.mkdir()
        gh = (
            f'if [ "$2" = upload ]; then shift 3; cp "$@" {kept};'
            f" else mkdir -p baseline && cp {kept}/manifest.json baseline; fi"
        )
        for name, line in (
            ("lrfc", f'exec "{sys.executable}" -m lrfc "$@"'),
            ("pip", '[ "$*" = "install lrfc" ]'),
            ("gh", gh),
        ):
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        self._env = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LRFC_CACHE": str(folder / "cache"),
        }

    def run(
        self, event: str, names: frozenset[str] | None = None
    ) -> subprocess.CompletedProcess[str] | None:
        """The last command that ran: one that failed, or that of the last step.

        ``names``: of the steps that run, all where it is None.
        """
        done = None
        for step in self.steps:
            wanted = {
                "github.event_name != 'release'": event != "release",
                "github.event_name == 'release'": event == "release",
            }.get(step.get("if"), True)
            if (
                "run" not in step
                or not wanted
                or (names is not None and step.get("name") not in names)
            ):
                continue
            command = re.sub(r"\$\{\{ (.*?) \}\}", "v1", step["run"])
            done = subprocess.run(
                ["bash", "-e", "-c", command],
                cwd=self.folder,
                env=self._env,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            if done.returncode:
                break
        return done


@pytest.mark.slow
def test_the_pipeline_keeps_a_release_and_stops_a_change_that_is_worse(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "digits.keras", tmp_path / "model.keras")
    (tmp_path / "lrfc.toml").write_text(
        'target = ["tflite"]\ndata = "digits"\nmax_macs = "50%"\nmax_drop = "2pp"\nepochs = 0\n'
        'methods = ["spatial_svd", "svd"]\n'
    )
    workflow = Workflow(tmp_path)
    released = workflow.run("release")
    assert released is not None
    assert released.returncode == 0, released.stderr
    assert {path.name for path in (tmp_path / "releases").iterdir()} == {
        "manifest.json",
        "model.tflite",
    }
    same = workflow.run("pull_request", frozenset({"The last release's manifest", "Compare"}))
    assert same is not None
    assert same.returncode == 0, same.stderr
    manifest = tmp_path / "releases" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["after"]["file_bytes"] //= 2
    manifest.write_text(json.dumps(told))
    worse = workflow.run("pull_request", frozenset({"The last release's manifest", "Compare"}))
    assert worse is not None
    assert worse.returncode == 4, worse.stderr
    (failed,) = ET.parse(tmp_path / "compare.xml").findall(".//testcase[failure]")
    assert "size" in failed.attrib["name"]


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
