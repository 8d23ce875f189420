"""Some hundred mutations of every input of lrfc, the same in every run.

Each is accepted or refused in one line, without a traceback or a hang.
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.cli import build_view
from lrfc.cli import console as terminal
from lrfc.config import resolve as settings
from lrfc.costs import latency, measurements
from lrfc.costs.workload import Workload
from lrfc.data.load import load_data
from lrfc.engine.replay import Locked
from lrfc.errors import DeviceError, UsageError
from lrfc.results import candidates as choices
from lrfc.results import compare as comparison
from lrfc.results.manifest import (
    Accuracy,
    Attempt,
    FineTuning,
    Kept,
    Kernels,
    Manifest,
    Round,
    Search,
)
from lrfc.results.report import page
from lrfc.search import cache as store
from lrfc.system import reader
from lrfc.targets.devices import answers, device
from lrfc.targets.devices.runners import benchmark_model
from lrfc.targets.ethos_u import modes
from lrfc.training.checkpoint import Checkpoint, Saved
from tests import helpers, hostile
from tests import report_pages as report

pytestmark = pytest.mark.skipif(
    not hasattr(hostile.signal, "SIGALRM"), reason="a hang is noticed by SIGALRM"
)


def tried(count: int, call: Callable[[int], object], what: str) -> None:
    """Some of the inputs are refused; were none, nothing would be tried."""
    outcomes = [
        hostile.survives(lambda number=number: call(number), f"{what} {number}")
        for number in range(count)
    ]
    assert not all(outcomes), f"{what}: every mutation is taken"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# -- samples ---------------------------------------------------------------------------------------


def test_arrays(tmp_path: Path) -> None:
    graph = helpers.graph_of(helpers.conv_net(size=8))
    rng = np.random.default_rng(0)
    arrays = {"x": rng.random((40, 8, 8, 3), np.float32), "y": rng.integers(0, 4, 40)}
    for name, save in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
        save(tmp_path / name, **arrays)
        good = (tmp_path / name).read_bytes()
        assert load_data(str(tmp_path / name), graph, seed=0).train
        path = tmp_path / f"bad-{name}"
        tried(
            70,
            lambda number, good=good, path=path: load_data(
                str(written(path, edges(good, number))), graph, seed=0
            ),
            name,
        )
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    good = (folder / "x.npy").read_bytes()
    tried(
        60,
        lambda number: load_data(
            str(written(folder / "x.npy", edges(good, number)).parent), graph, seed=0
        ),
        "x.npy",
    )


def edges(content: bytes, number: int) -> bytes:
    """Damage the beginning or the end, where headers and tables of contents are, or anywhere."""
    if number % 3 == 0:
        return hostile.damaged(content[:200], number) + content[200:]
    if number % 3 == 1:
        return content[:-300] + hostile.damaged(content[-300:], number)
    return hostile.damaged(content, number)


# -- the output folder -----------------------------------------------------------------------------


def folder_of_a_build(place: Path) -> Path:
    kept = Kept(
        allowed=0.01, drop=0.005, low=-0.001, high=0.011, confidence=0.95, samples=400, met=True
    )
    search = Search(
        candidates=4,
        seconds=1.0,
        rounds=(Round(predicted_ms=1.0, measured_ms=1.3),),
        attempts=(Attempt(allowed_divergence=0.1, kept=kept),),
    )
    kernels = Kernels(reference=0.965, optimised=0.972, samples=1_200, counted=True)
    changes = report.PRUNED | {
        "accuracy": Accuracy(
            metric="accuracy", before=0.98, artifact=0.97, kept=kept, kernels=kernels
        ),
        "finetune": FineTuning(
            losses=(None, 0.5),
            scores=(0.9, 0.95),
            best=1,
            learning_rate=1e-3,
            steps=20,
            seconds=3.0,
        ),
        "search": search,
        "speedup": report.FASTER,
    }
    manifest = report.made(**changes)
    manifest.write(place)
    manifest.write_layers(place)
    report.OPS.model_copy(update={"memory": report.PLANS}).write(place)
    fronts = {
        "points": report.POINTS,
        "by_latency": [{**point, "latency": point["macs"] / 500} for point in report.POINTS],
        "by_ram": report.BY_RAM,
    }
    (place / "pareto.json").write_text(json.dumps({"schema_version": 1, **fronts}))
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(choices._COLUMNS)
    for row in report.CANDIDATES:
        figures = (
            row.params,
            row.macs,
            row.similarity,
            row.impact,
            row.latency,
            int(row.dominated),
            int(row.chosen),
        )
        writer.writerow((row.layer, row.method or "", row.rank, *figures))
    (place / choices.NAME).write_text(rows.getvalue())
    return place


def looked_at(folder: Path) -> None:
    """All that is made of an output folder."""
    page.render(page.read(folder))
    found = comparison.compare(
        folder, folder, ["latency=5%", "accuracy=1pp", "speedup=5%", "size=3%"]
    )
    out, err = io.StringIO(), io.StringIO()
    shown = terminal.Terminal(out, err)
    shown.json(found.to_json())
    built = Manifest.read(folder)
    for layer in ("conv1", "head"):
        explained = choices.explain(choices.read(folder), layer, built.layers)
        build_view.explanation(shown, explained)
        shown.json(explained.to_json())
    assert "\x1b" not in out.getvalue()
    Locked.read(folder).options({})


@pytest.mark.parametrize(
    ("name", "count"), [("manifest.json", 150), ("pareto.json", 40), ("ops.json", 40)]
)
def test_documents_of_a_build(name: str, count: int, tmp_path: Path) -> None:
    path = folder_of_a_build(tmp_path) / name
    looked_at(tmp_path)
    good = path.read_bytes()
    document = json.loads(good)

    def one(number: int) -> None:
        path.write_bytes(
            hostile.damaged(good, number)
            if number % 4 == 0
            else hostile.as_json(hostile.changed(document, number))
        )
        looked_at(tmp_path)

    tried(count, one, name)


def test_candidates_of_a_build(tmp_path: Path) -> None:
    path = folder_of_a_build(tmp_path) / choices.NAME
    good = path.read_bytes()
    figures = (b"1e999", b"nan", b"-1", b"9" * 400, b"", b"\xc2\xb2", b"1e308")

    def one(number: int) -> None:
        cells = good.split(b",")
        cells[7 + number % (len(cells) - 7)] = figures[number % len(figures)]
        path.write_bytes(b",".join(cells) if number % 2 else hostile.damaged(good, number))
        looked_at(tmp_path)

    tried(60, one, choices.NAME)


# -- options and devices ---------------------------------------------------------------------------

OPTIONS = (
    'target = ["tflite"]\ndata = "digits"\nmax_macs = "50%"\nmax_drop = "1pp"\nepochs = 2\nkeep ='
    ' ["head*"]\ntime_budget = "10m"\nseed = 3\n'
)
PROFILE = (
    'name = "board"\ndescription = "mine"\nformats = ["tflite"]\nprecisions = ["fp32"]\nthreads ='
    ' 2\nflash_bytes = 1000\n[connection]\nkind = "ssh"\nhost = "me@board"\nport = 22\npython ='
    ' "python3"\noptions = ["Compression=yes"]\nconnect_timeout = 5.0\n'
)
VELA = (
    'name = "npu"\ndescription = ""\nprecisions = ["int8"]\n[connection]\nkind = "vela"\n'
    'accelerator = "ethos-u55-128"\nconfig = "vela.ini"\n'
)
TOML = (
    "1e300",
    "-1",
    "nan",
    "inf",
    "[]",
    "{}",
    "[[]]",
    '""',
    "9" * 60,
    "0x" + "f" * 600,
    "true",
    '"\\u001b[31m"',
    '"os:system"',
    '["ProxyCommand=x"]',
    "[" * 3000,
    "{a=" * 3000,
    "1979-05-27T07:32:00Z",
    '"' + "a" * 300 + '"',
    '"/dev/zero"',
    '["x"',
    "'''",
)


def of_toml(text: str, number: int) -> bytes:
    """With another value for one key, or damaged."""
    lines = text.splitlines()
    keys = [i for i, line in enumerate(lines) if " = " in line]
    at = keys[number // len(TOML) % len(keys)]
    lines[at] = f"{lines[at].split(' = ')[0]} = {TOML[number % len(TOML)]}"
    return "\n".join(lines).encode() if number % 5 else hostile.damaged(text.encode(), number)


def test_options_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def one(number: int) -> None:
        Path("lrfc.toml").write_bytes(of_toml(OPTIONS, number))
        settings.build_options(settings.resolve({}, None, {}))

    tried(170, one, "lrfc.toml")


@pytest.mark.parametrize("text", [PROFILE, VELA], ids=["ssh", "vela"])
def test_profiles(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path / "own")

    def one(number: int) -> None:
        place = device.add(written(tmp_path / "x.toml", of_toml(text, number)), force=True)
        json.dumps(device.read(place).model_dump(mode="json"), allow_nan=False)

    tried(120, one, "profile")


def test_a_vela_ini(tmp_path: Path) -> None:
    good = b"[Memory_Mode.Mine]\nconst_mem_area=Axi0\n[System_Config.Mine]\ncore_clock=500e6\n"
    tried(
        30,
        lambda number: modes._sections(
            written(tmp_path / "vela.ini", hostile.damaged(good, number))
        ),
        "vela.ini",
    )


def test_cost_profiles() -> None:
    shipped = device.SHIPPED / "host.cost.json"
    document = json.loads(shipped.read_bytes())
    ops = [
        Workload("conv", ((16, 16, 32),), (8, 8, 64), (3, 3), (2, 2), params=18496, macs=1179648),
        Workload("add", ((8, 8, 4),) * 2, (8, 8, 4)),
    ]

    def one(number: int, folder: Path) -> None:
        for profile in latency.read(
            written(folder / "x.cost.json", hostile.as_json(hostile.changed(document, number)))
        ).profiles:
            profile.predict(ops)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "DOCUMENT_BYTES", 1 << 24)
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            tried(50, lambda number: one(number, Path(folder)), "cost profile")


# -- caches ----------------------------------------------------------------------------------------


def test_stores(tmp_path: Path) -> None:
    """Damaged caches are never in the way: nothing is raised."""
    path = tmp_path / "explored.sqlite"
    one = store.Store(path, "key", lambda line: None)
    one.put("conv", [], {"svd": "no"})
    good = path.read_bytes()
    for number in range(25):
        path.write_bytes(edges(good, number))
        assert hostile.survives(
            lambda: store.Store(path, "key", lambda line: None).get("conv"), f"explored {number}"
        )
    path.write_bytes(good)
    entry = {"candidates": [["svd", [4], 10, 20, 0.5, 0.1]], "refusals": {"cp": "no"}}
    for number in range(40):
        text = hostile.as_json(hostile.changed(entry, number)).decode("utf-8", "replace")
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE layers SET found = ?", (text,))
        assert hostile.survives(
            lambda: store.Store(path, "key", lambda line: None).get("conv"), f"entry {number}"
        )
    place = tmp_path / "measurements.sqlite"
    key = measurements.Key("host", "LiteRT", "2", "tflite", "fp32", 1, "op:x")
    measurements.Store(place).put({key: measurements.Sample(1.0, 1.0, 0.1, 5, "now")})
    for value in (None, "x", b"\xff", 1e308, float("inf"), -1):
        with closing(sqlite3.connect(place)) as database, database:
            database.execute(f'UPDATE {measurements._TABLE} SET "median" = ?', (value,))
        assert measurements.Store(place).get([key]) == {}
        assert measurements.Store(place).history() == []


def test_checkpoints(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "fingerprint", lambda line: None)
    kept.write(Saved({"epoch": 1}, [np.arange(6.0)], [np.arange(3.0)]))
    good = kept.path.read_bytes()
    for number in range(40):
        kept.path.write_bytes(edges(good, number))
        assert hostile.survives(kept.read, f"checkpoint {number}")


# -- what a device answers -------------------------------------------------------------------------

ASKED: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (
        {"facts": "/tmp"},
        {
            "machine": "x",
            "system": "y",
            "python": "3",
            "runtimes": {"tflite": "L 1"},
            "missing": {"onnx": "no"},
            "free_bytes": 5,
        },
    ),
    (
        {"path": "m"},
        {
            "runtime": "L",
            "version": "1",
            "load_ns": 5,
            "first_ns": 6,
            "baseline_rss": None,
            "rss": 7,
            "cores": [0, 1],
        },
    ),
    ({"runs": 3, "inner": 1}, {"ns": [1, 2, 3]}),
    ({"parts": 3, "scratch": "/tmp"}, {"us": {"a": 1.5}}),
    ({"files": ["a", "b"], "turns": 2}, {"ns": [[1, 2.5], [3, 4]]}),
    ({"conditions": True}, {"hz": None, "celsius": 40.5}),
    ({}, {"peak_rss": None}),
)


@pytest.mark.parametrize(("request_", "good"), ASKED, ids=lambda value: next(iter(value), "end"))
def test_answers(request_: dict[str, Any], good: dict[str, Any]) -> None:
    assert answers.answer(request_, json.dumps(good), "measure") == good

    def one(number: int) -> None:
        text = (
            hostile.as_json(hostile.changed(good, number))
            if number % 3
            else hostile.damaged(json.dumps(good).encode(), number)
        )
        found = answers.answer(request_, text.decode("utf-8", "replace"), "measure")
        json.dumps(found, allow_nan=False)

    tried(25, one, str(request_))


def test_the_words_of_benchmark_model() -> None:
    good = (
        "INFO: Inference timings in us: Init: 3012, First inference: 900, Warmup (avg): 700,"
        " Inference (avg): 650.5\nINFO: count=50 first=700 curr=650 min=600 max=900 avg=650.5"
        " std=10 median=648 p5=600 p95=700\n"
    )
    found = benchmark_model.parse(good)
    assert found is not None
    assert (found.inference, found.cold, found.count) == (648.0, 3912.0, 50)
    for number in range(60):
        text = hostile.damaged(good.encode(), number).decode("utf-8", "replace")
        assert hostile.survives(
            lambda text=text: benchmark_model.parse(text), f"benchmark_model {number}"
        )


def test_what_is_tried_is_not_always_refused() -> None:
    """The mutations are near enough to good inputs that some are taken."""
    taken = 0
    for number in range(40):
        try:
            answers.answer(
                {"runs": 3},
                hostile.as_json(
                    hostile.changed({"ns": [1, 2, 3], "more": {"a": 1, "b": 2, "c": 3}}, number)
                ).decode(),
                "x",
            )
            taken += 1
        except (DeviceError, UsageError, UnicodeDecodeError):
            pass
    assert 0 < taken < 40
