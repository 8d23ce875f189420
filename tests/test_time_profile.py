"""Where the time of a build goes: spans, their record in the manifest, and what is shown of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import lrfc
from lrfc.cli.app import app
from lrfc.engine.replay import Locked
from lrfc.results import manifest as manifests
from lrfc.results import time_profile
from lrfc.results.manifest import Manifest
from lrfc.results.report import command
from lrfc.results.time_profile import Entry, largest, layers
from lrfc.system import spans
from tests import fake_runner, helpers
from tests.fake_runner import FakeRunner

DIGITS = Path(__file__).parents[1] / "examples" / "digits.keras"


@dataclass
class Op:
    name: str


def busy(seconds: float = 0.02) -> None:
    """Use that much CPU time in this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def recorded() -> Entry:
    entry = time_profile.recorded()
    assert entry is not None
    return entry


def tree(entry: Entry) -> dict[str, Any]:
    return {part.name: tree(part) for part in entry.parts}


# -- spans -----------------------------------------------------------------------------------------


def test_spans_nest_and_those_of_one_name_are_one() -> None:
    with spans.recording("build", on=True):
        for _ in range(2):
            with spans.span("stage"):
                for _ in spans.layers([Op("conv"), Op("head")]):
                    busy(0.01)
        with spans.span("plan", "plan"):
            spans.verdict("too large")
        entry = recorded()
    assert tree(entry) == {"stage": {"conv": {}, "head": {}}, "plan": {}}
    stage, plan = entry.parts
    assert [part.kind for part in stage.parts] == ["layer", "layer"]
    assert (plan.kind, plan.verdict) == ("plan", "too large")
    for conv in stage.parts:
        assert 0.02 <= conv.seconds <= stage.seconds <= entry.seconds
        assert conv.cpu_seconds > 0


def test_nothing_is_recorded_outside_of_a_recording_or_when_it_is_off() -> None:
    with spans.span("stage"):
        spans.verdict("nowhere")
        assert spans.whole() is None
    with spans.recording("outer", on=True):
        with spans.recording("inner", on=False), spans.span("stage"):
            assert spans.whole() is None
        assert tree(recorded()) == {}
    assert spans.whole() is None


def test_a_function_is_a_stage_each_time_that_it_is_called() -> None:
    @spans.span("stage")
    def double(value: int) -> int:
        busy(0.01)
        return 2 * value

    with spans.recording("build", on=True):
        assert [double(1), double(2)] == [2, 4]
        (stage,) = recorded().parts
    assert stage.name == "stage"
    assert stage.cpu_seconds >= 0.02


def test_layers_in_threads_have_the_time_of_their_thread() -> None:
    def work(seconds: float) -> str:
        busy(seconds)
        return threading.current_thread().name

    with (
        spans.recording("build", on=True),
        spans.span("stage"),
        ThreadPoolExecutor(2, thread_name_prefix="pool") as pool,
    ):
        futures = [
            pool.submit(spans.in_thread(name, work), seconds)
            for name, seconds in (("small", 0.01), ("large", 0.2))
        ]
        assert all(future.result().startswith("pool") for future in futures)
        with spans.span("small", "layer", parallel=True):
            busy(0.01)
        entry = recorded()
    (stage,) = entry.parts
    small, large = sorted(stage.parts, key=lambda part: part.cpu_seconds)
    assert (small.name, large.name) == ("small", "large")
    assert small.parallel
    assert large.parallel
    assert small.cpu_seconds < 0.1 < large.cpu_seconds
    assert stage.cpu_seconds > 0.2


def test_a_thread_that_is_not_told_of_the_recording_adds_nothing() -> None:
    def work() -> None:
        with spans.span("elsewhere"):
            pass

    with spans.recording("build", on=True):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        assert tree(recorded()) == {}


def test_a_failure_ends_the_spans_around_it() -> None:
    loop = spans.layers([Op("conv"), Op("head")])
    with spans.recording("build", on=True):
        with contextlib.suppress(ValueError), spans.span("stage"):
            next(loop)
            raise ValueError
        with spans.span("next"):
            loop.close()  # type: ignore[attr-defined]  # as at any time after an exception
            with spans.span("part"):
                pass
        assert tree(recorded()) == {"stage": {"conv": {}}, "next": {"part": {}}}
    assert spans.whole() is None


# -- summaries -------------------------------------------------------------------------------------


def entry(name: str, seconds: float, *parts: Entry, **fields: Any) -> Entry:
    defaults: dict[str, Any] = {
        "kind": "stage",
        "parallel": False,
        "verdict": None,
        "user_seconds": seconds,
        "system_seconds": 0.0,
        "children_seconds": 0.0,
        "page_faults": 10 * int(seconds),
        "peak_growth_bytes": 0,
    }
    return Entry(name=name, seconds=seconds, parts=parts, **defaults | fields)


PROFILE = entry(
    "build",
    20,
    entry("data", 1),
    entry("ExploreLayers", 6, entry("conv", 5, kind="layer", parallel=True)),
    entry(
        "search",
        10,
        entry("half", 4, entry("Refit", 3, entry("conv", 2, kind="layer")), kind="plan"),
        entry("third", 5, entry("Refit", 4, entry("conv", 3, kind="layer")), kind="plan"),
    ),
    page_faults=None,
)


def test_the_largest_are_by_name_without_what_is_counted_elsewhere() -> None:
    assert [(total.name, total.seconds) for total in largest(PROFILE)] == [
        ("Refit", 7),
        ("ExploreLayers", 6),
        ("build", 3),
        ("plans", 2),
        ("data", 1),
    ]
    faults = {total.name: total.page_faults for total in largest(PROFILE, 9)}
    assert faults == {
        "Refit": 70, "ExploreLayers": 60, "build": None, "plans": 20, "data": 10, "search": 10,
    }  # fmt: skip


def test_layers_are_summed_over_all_runs_of_their_stage() -> None:
    seconds = {
        stage: {total.name: total.seconds for total in totals}
        for stage, totals in layers(PROFILE).items()
    }
    assert seconds == {"ExploreLayers": {"conv": 5}, "Refit": {"conv": 5}}


# -- builds ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The output of a build of digits whose lrfc.toml asks for the profile, and its folder."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "lrfc.toml").write_text("profile = true\n", encoding="utf-8")
    options = "--data digits --max-macs 50% --epochs 0 --target tflite --no-resume --out small"
    done = subprocess.run(
        [sys.executable, "-m", "lrfc", "build", str(DIGITS), *options.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "small"


def test_a_build_of_digits_tells_where_its_time_went(digits: tuple[str, Path]) -> None:
    profile = Manifest.read(digits[1]).profile
    assert profile is not None
    named = {(entry.kind, entry.name) for _, entry in profile.walk()}
    stages = (
        "start", "model", "TensorFlow", "data", "Canonicalise", "scores", "ExploreLayers",
        "tflite on host", "original on the device", "attempt 1", "search", "round 1", "allocation",
        "compression", "Factorize", "RecalibrateBatchNorm", "Refit", "FoldBatchNorm", "emission",
        "parity", "measurement", "final test", "output folder",
    )  # fmt: skip
    assert {("stage", name) for name in stages} <= named
    assert set(layers(profile)) == {"ExploreLayers", "Refit"}
    explored = [total.name for total in layers(profile)["ExploreLayers"]]
    assert {"conv1", "conv2", "digit"} <= set(explored)
    for _, above in profile.walk():
        serial = sum(part.seconds for part in above.parts if not part.parallel)
        assert serial <= above.seconds + 1e-3, above.name
    assert sum(part.seconds for part in profile.parts) >= 0.8 * profile.seconds
    assert profile.children_seconds > 0, "files are measured in processes of their own"


def test_the_profile_is_in_the_schema_the_report_and_the_terminal(
    digits: tuple[str, Path],
) -> None:
    stdout, folder = digits
    written = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    schema = manifests.schema()
    assert set(schema["required"]) | {"profile"} == set(written) == set(schema["properties"])
    assert list(written["profile"]) == schema["$defs"]["Entry"]["required"]
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Where the time of the build went" in html
    assert "The layers of Refit" in html
    last = stdout[stdout.index("\ntime: ") :]
    assert re.search(r"time: [0-9.]+ s; CPU: [0-9.]+ s, .* page faults", last)
    shown = re.findall(r"^ (\S.*?)  +[0-9.]+ +[0-9]+ %", last, re.MULTILINE)
    profile = Manifest.read(folder).profile
    assert profile is not None
    assert shown == [total.name for total in largest(profile)]


def test_it_is_not_part_of_what_is_repeated(digits: tuple[str, Path]) -> None:
    locked = Locked.read(digits[1])
    assert locked.manifest.config["profile"] is True
    assert "profile" not in locked.options({})
    assert "--profile" not in (command.command(locked.manifest) or "")


def test_python_asks_for_it_and_else_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake_runner.install(monkeypatch, FakeRunner(2.0))
    model = helpers.dense_net(features=32, widths=(64, 64))
    x = np.random.default_rng(1).standard_normal((300, 32)).astype(np.float32)
    options: dict[str, Any] = {
        "target": "tflite", "data": {"x": x, "y": np.argmax(model.predict(x, verbose=0), axis=1)},
        "max_macs": "60%", "methods": ("svd",), "epochs": 0, "resume": False,
    }  # fmt: skip
    results = [
        lrfc.build(model, out=name, profile=name == "timed", **options)
        for name in ("timed", "plain")
    ]
    timed, plain = (
        json.loads(Path(name, "manifest.json").read_text(encoding="utf-8"))
        for name in ("timed", "plain")
    )
    assert timed["profile"]["name"] == "build"
    assert "profile" not in plain
    assert "Where the time" not in Path("plain", "report.html").read_text(encoding="utf-8")
    assert results[0].artifact.read_bytes() == results[1].artifact.read_bytes()
    assert spans.whole() is None


def test_an_exploration_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    helpers.conv_net(filters=(16, 24)).save("net.keras")
    ran = CliRunner().invoke(
        app,
        "explore net.keras --methods svd,channel_svd --points 2 --profile --no-resume".split(),
    )
    assert ran.exit_code == 0, ran.output
    front = json.loads(Path("net-explore", "pareto.json").read_text(encoding="utf-8"))
    profile = Entry.model_validate(front["profile"])
    assert profile.name == "exploration"
    assert {"model", "data", "ExploreLayers", "Pareto fronts"} <= set(tree(profile))
    explored = {total.name for total in layers(profile)["ExploreLayers"]}
    assert {"conv0", "conv1"} <= explored
