"""The store of measurements: by key, shared between processes, robust against damaged files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrfc.costs import measurements
from lrfc.costs.measurements import Entry, Key, Sample, Store, of_model, of_op
from lrfc.costs.workload import Workload

KEY = Key("host", "LiteRT", "2.1", "tflite", "fp32", 1, of_op(Workload("add", ((4,), (4,)), (4,))))
SAMPLE = Sample(1.5, 1.75, 0.25, 60, "2026-01-02T03:04:05+00:00")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    return measurements.place()


def test_samples_are_returned_for_their_own_key_only(path) -> None:
    store = Store()
    other = replace(KEY, subject=of_model("abc"))
    store.put({KEY: SAMPLE, other: replace(SAMPLE, median=2.0)})
    changes = [
        replace(KEY, **{field: value})
        for field, value in (
            ("device", "pi"),
            ("runtime_version", "2.2"),
            ("threads", 2),
            ("precision", "int8"),
        )
    ]
    assert Store().get([KEY, *changes, other]) == {KEY: SAMPLE, other: replace(SAMPLE, median=2.0)}
    assert KEY.subject == "op:add 4+4 -> 4 params=0 macs=0"
    assert path.is_file()


def test_a_new_sample_replaces_the_old_one(path) -> None:
    store = Store()
    store.put({KEY: SAMPLE})
    store.put({KEY: replace(SAMPLE, median=9.0)})
    assert store.get([KEY])[KEY].median == 9.0
    assert len(store.history()) == 1


def test_the_history_of_a_device(path) -> None:
    store = Store()
    pi = replace(KEY, device="pi")
    store.put({KEY: replace(SAMPLE, when="2026-02-01T00:00:00+00:00"), pi: SAMPLE})
    assert [entry.key.device for entry in store.history()] == ["pi", "host"]
    assert store.history("pi") == [Entry(pi, SAMPLE)]
    assert store.history("android") == []


def test_a_damaged_file_is_set_aside_and_a_new_one_begun(path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("this is no database, " * 100)
    lines: list[str] = []
    store = Store(log=lines.append)
    store.put({KEY: SAMPLE})
    assert store.get([KEY]) == {KEY: SAMPLE}
    assert len(lines) == 1
    assert str(path) in lines[0]
    aside = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    assert len(aside) == 1
    assert aside[0].read_text().startswith("this is no database")


def test_a_file_damaged_later_is_set_aside_too(path) -> None:
    lines: list[str] = []
    store = Store(log=lines.append)
    store.put({KEY: SAMPLE})
    path.write_bytes(b"garbage" * 1000)
    for extra in ("-wal", "-shm"):
        path.with_name(path.name + extra).unlink(missing_ok=True)
    assert store.get([KEY]) == {}
    store.put({KEY: SAMPLE})
    assert store.get([KEY]) == {KEY: SAMPLE}
    assert len(lines) == 1


def test_a_folder_that_cannot_be_written_is_logged_once(tmp_path) -> None:
    (tmp_path / "file").touch()
    lines: list[str] = []
    store = Store(tmp_path / "file" / "x.sqlite", lines.append)
    store.put({KEY: SAMPLE})
    assert store.get([KEY]) == {}
    assert store.history() == []
    assert len(lines) == 1
    assert "continuing without it" in lines[0]


def test_two_processes_write_at_once(path) -> None:
    code = (
        "import sys\nfrom dataclasses import replace\nfrom tests.test_measurements import KEY,"
        " SAMPLE\nfrom lrfc.costs.measurements import Store\nstore = Store(log=lambda line:"
        " sys.exit(line))\nfor number in range(40):\n    store.put({replace(KEY,"
        " device=sys.argv[1], subject=f'op:{number}-{i}'): SAMPLE for i in range(5)})\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, name], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    assert [len(Store().history(name)) for name in ("a", "b")] == [200, 200]
