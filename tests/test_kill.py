"""A build that is killed at any moment loses nothing, and the next one leaves no temporary file."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.results.folder import sha256
from lrfc.results.manifest import Manifest
from tests import helpers

pytestmark = pytest.mark.slow

#: Moments of each half: over the whole build, and while the folder is written.
MOMENTS = 15

#: Reads a command a line, runs it in a fork, and answers with the exit code. Every file operation
#: of the fork is counted, those from the making of the staging folder to the end of the lock also
#: by themselves; it kills itself before the one that is asked for, and otherwise writes the two
#: counts.
SERVER = """
import json, os, signal, sys, tempfile
import keras, tensorflow  # half of a build's time; it starts no thread
from lrfc.cli import app as cli
from lrfc.engine import build as compiler

CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir",
    "shutil.rmtree", "shutil.copyfile", "subprocess.Popen",
)

def counted(kind, wanted):
    seen = {"whole": 0, "writing": 0}
    inside = False
    def hook(event, args):
        nonlocal inside
        if event != "open" and event not in CHANGES:
            return
        inside = inside or event == "os.mkdir" and str(args[0]).endswith(".out.partial")
        seen["whole"] += 1
        seen["writing"] += inside
        if event == "os.remove" and str(args[0]).endswith(".out.lrfc-lock"):
            inside = False
        if seen[kind] == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return seen

def run(job):
    os.chdir(job["folder"] + "/in")
    log = os.open(job["folder"] + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tempfile.tempdir = job["folder"] + "/temporary"  # the imports may have asked for it already
    os.environ.update(TMPDIR=tempfile.tempdir, LRFC_CACHE=job["folder"] + "/cache")
    sys.argv = ["lrfc", *job["command"]]
    seen = counted(job["kind"], job["moment"])
    try:
        cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        with open(job["folder"] + "/count", "w") as file:
            file.write(json.dumps(dict(seen)))
        return end.code or 0
    return 99

for line in sys.stdin:
    number = os.fork()
    if not number:
        try:
            os._exit(run(json.loads(line)))
        finally:
            os._exit(98)
    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    conv = helpers.conv_net(filters=(16, 24))
    conv.save(folder / "conv.keras")
    x = np.random.default_rng(0).standard_normal((80, 12, 12, 3)).astype(np.float32)
    np.savez(folder / "conv.npz", x=x, y=np.argmax(conv.predict(x, verbose=0), axis=1))
    return folder / "conv.keras"


@pytest.fixture(scope="module")
def servers() -> Iterator[queue.Queue[subprocess.Popen[str]]]:
    """Two processes that run commands."""
    free: queue.Queue[subprocess.Popen[str]] = queue.Queue()
    with ExitStack() as stack:
        for _ in range(2):
            command = [sys.executable, "-c", SERVER]
            server = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            free.put(stack.enter_context(server))
        yield free
        for _ in range(2):
            free.get().communicate("")


class Place:
    """A folder with an output folder in it, a folder of temporary files, and caches."""

    def __init__(
        self, folder: Path, model: Path, servers: queue.Queue[subprocess.Popen[str]]
    ) -> None:
        self.folder, self.model, self.servers = folder, model, servers
        for name in ("in", "temporary", "cache"):
            (folder / name).mkdir(parents=True)

    def build(self, seed: int, *, writing: bool = False, moment: int = 0) -> int:
        data = self.model.with_suffix(".npz")
        options = (
            f"--data {data} --methods channel_svd --max-macs 60% --epochs 0 --device cortex-m7"
            f" --seed {seed} --out out"
        )
        job = {
            "folder": str(self.folder), "kind": "writing" if writing else "whole", "moment": moment,
            "command": ["build", str(self.model), *options.split()],
        }  # fmt: skip
        server = self.servers.get()
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        finally:
            self.servers.put(server)
        assert code in (0, -signal.SIGKILL), (self.folder / "log").read_text()
        return code

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "count").read_text())
        return found

    def seed(self) -> int | None:
        """The seed of the build in the output folder, whose files match its manifest."""
        out = self.folder / "in" / "out"
        if not out.exists():
            return None
        manifest = Manifest.read(out)
        assert {file.path: file.sha256 for file in manifest.artifacts} == {
            file.path: sha256(out / file.path) for file in manifest.artifacts
        }
        names = {
            "conv.tflite",
            "model.keras",
            "manifest.json",
            "layers.csv",
            "pareto.json",
            "candidates.csv",
            "ops.json",
            "report.html",
            "log.txt",
        }
        assert {path.name for path in out.iterdir()} == names
        return manifest.seed

    def left(self) -> set[str]:
        """The files that are left, without the caches themselves."""
        beside = {
            path.name for name in ("in", "temporary") for path in (self.folder / name).iterdir()
        }
        return beside | {
            path.name for path in (self.folder / "cache").rglob("*") if path.suffix == ".part"
        }


def test_thirty_kills_spread_over_the_whole_build(
    model: Path, servers: Any, tmp_path: Path
) -> None:
    first = Place(tmp_path / "first", model, servers)
    assert first.build(1) == 0
    assert first.build(0) == 0  # with what is known from before, as those that are killed
    counts = first.counts()
    assert first.left() == {"out"}
    assert counts["writing"] > 2 * MOMENTS, counts

    def killed(case: tuple[bool, int]) -> dict[str, Any]:
        writing, moment = case
        place = Place(tmp_path / f"{writing}-{moment}", model, servers)
        for name in ("in", "cache"):
            shutil.copytree(first.folder / name, place.folder / name, dirs_exist_ok=True)
        code = place.build(1, writing=writing, moment=moment)
        between, behind = place.seed(), place.left()
        assert place.build(2) == 0
        return {
            "writing": writing,
            "moment": moment,
            "code": code,
            "between": between,
            "behind": sorted(behind),
            "after": place.seed(),
            "left": sorted(place.left()),
        }

    half = [0.02 + 0.96 * number / (MOMENTS - 1) for number in range(MOMENTS)]
    cases = [
        (writing, max(1, int(share * counts["writing" if writing else "whole"])))
        for writing in (False, True)
        for share in half
    ]
    with ThreadPoolExecutor(2) as pool:
        moments = list(pool.map(killed, cases))
    for moment in moments:
        assert moment["between"] in (0, 1), moment
        assert moment["after"] == 2, moment
        assert moment["left"] == ["out"], moment
    behind = [moment["behind"] for moment in moments if moment["code"] == -signal.SIGKILL]
    assert any(name.startswith("lrfc-") for names in behind for name in names), (
        "a kill leaves temporary files, which the next build removes"
    )
    assert any(".out.partial" in names for names in behind)
    writing = [moment for moment in moments if moment["writing"]]
    assert all(moment["code"] == -signal.SIGKILL for moment in writing)
    assert {moment["between"] for moment in writing} == {0, 1}
    # Threads open files in another order each time; the last moments may come after the end.
    assert sum(moment["code"] == -signal.SIGKILL for moment in moments) >= 2 * MOMENTS - 2
