"""Measurement in child processes: figures that hang together, errors in one line, and no process left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrfc.errors import DeviceError, UsageError
from lrfc.state import Artifact
from lrfc.targets import measure, worker
from lrfc.targets.catalog import target
from lrfc.targets.measure import Measurement, compare, speedup
from tests import helpers


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A conv net as .tflite and .onnx."""
    graph = helpers.graph_of(helpers.conv_net())
    folder = tmp_path_factory.mktemp("files")
    return [target(name).emit(graph, folder / f"m.{name}") for name in ("tflite", "onnx")]


@pytest.fixture
def started(monkeypatch):
    """The processes that were started; at the end none of them may be left."""
    processes = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(measure.subprocess, "Popen", Popen)
    yield processes
    assert processes
    assert all(process.returncode is not None for process in processes)


def test_figures_hang_together(files, started):
    found = compare([*files, files[0]], runs=41, threads=2)
    assert len(started) == 3
    for measurement, file in zip(found, [*files, files[0]], strict=True):
        assert measurement.path == file.path
        assert 0 < min(measurement.rounds_ms) <= measurement.median_ms <= measurement.p90_ms
        assert measurement.iqr_ms >= 0
        assert len(measurement.rounds_ms) == measure.ROUNDS
        assert measurement.n == 60, "runs are made in whole turns"
        assert measurement.threads == 2
        assert measurement.inner > 1, "so small a model runs several times for each timing"
        assert measurement.cold_start_ms is not None and measurement.cold_start_ms > measurement.median_ms
        assert measurement.runtime_version.count(".") >= 1
        json.dumps(measurement.to_json(), allow_nan=False)
    assert [m.runtime for m in found] == ["LiteRT", "onnxruntime", "LiteRT"]
    if sys.platform == "linux":
        assert all(0 < m.model_rss_bytes < m.peak_rss_bytes and m.baseline_rss_bytes > 2**20 for m in found)


def test_few_runs_and_short_time(files, started):
    (found,) = compare(files[:1], runs=3)
    assert (found.n, len(found.rounds_ms)) == (3, 3)
    (found,) = compare(files[:1], runs=10**9, timeout=8.0)
    assert measure.FEWEST_RUNS <= found.n < 10**9


def test_int8_and_integer_inputs_run(tmp_path, started):
    import keras
    from keras import layers

    inputs = keras.Input((5,), dtype="int32", name="x")
    graph = helpers.graph_of(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Embedding(4, 3)(inputs)))))
    made = [target(name, precision).emit(graph, tmp_path / f"{precision}.{name}", helpers.random_inputs(graph, 4)) for name, precision in
            (("tflite", "fp32"), ("tflite", "int8"), ("onnx", "fp32"))]  # fmt: skip
    assert len(compare(made, runs=2)) == 3


@pytest.mark.parametrize("form", ["tflite", "onnx"])
@pytest.mark.parametrize("content", [b"", b"not a model", None, "truncated"])
def test_a_bad_file_is_one_line(form, content, files, tmp_path, started):
    path = tmp_path / f"bad.{form}"
    if content == "truncated":
        path.write_bytes(next(file for file in files if file.format == form).path.read_bytes()[:600])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DeviceError, match=rf"bad\.{form}") as failure:
        compare([files[0], Artifact(path, form, "fp32")], runs=2)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("form", "package"), [("tflite", "ai_edge_litert"), ("onnx", "onnxruntime")])
def test_a_missing_runtime_is_named(form, package, files, tmp_path, monkeypatch, started):
    (tmp_path / f"{package}.py").write_text("raise ImportError('gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DeviceError, match=rf"the runtime of \.{form} files is not installed there .*pip install {package.replace('_', '-')}"):
        compare([Artifact(files[0].path, form, "fp32")])


def test_a_process_that_dies(files, monkeypatch, started):
    real, asked = measure._Worker.ask, []

    def ask(self, request):
        asked.append(request)
        if len(asked) == 6:
            os.kill(self._process.pid, signal.SIGKILL)
        return real(self, request)

    monkeypatch.setattr(measure._Worker, "ask", ask)
    with pytest.raises(DeviceError, match=r"the process that ran m\.\w+ was killed by SIGKILL"):
        compare(files)


def test_a_process_that_hangs(files, monkeypatch, started):
    real, asked = measure._Worker.ask, []

    def ask(self, request):
        asked.append(request)
        if len(asked) == 6:
            os.kill(self._process.pid, signal.SIGSTOP)
        return real(self, request)

    monkeypatch.setattr(measure._Worker, "ask", ask)
    with pytest.raises(DeviceError, match=r"measuring took more than 4 s, stopped at m\.\w+"):
        compare(files, timeout=4.0)


def test_an_interrupt_leaves_no_process(files, monkeypatch, started):
    real = measure._Worker.ask

    def ask(self, request):
        if "path" in request:
            return real(self, request)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure._Worker, "ask", ask)
    with pytest.raises(KeyboardInterrupt):
        compare(files)
    assert len(started) == 2


def test_no_interpreter_and_no_sense(files, monkeypatch):
    with pytest.raises(UsageError, match=r"runs \(0\) and threads \(1\)"):
        compare(files, runs=0)
    monkeypatch.setattr(measure.sys, "executable", "/nowhere/python")
    with pytest.raises(DeviceError, match="no process can be started"):
        compare(files)


def measurement(rounds):
    return Measurement(Path("m.tflite"), 1.0, 1.0, 0.0, len(rounds), 1, tuple(rounds), 1, 1.0, "LiteRT", "2", None, None)


def test_speedup_pairs_the_turns():
    """A machine that slows down for all files alike does not disturb the ratio."""
    drift = 1 + np.arange(20) / 4
    assert speedup(measurement(3 * drift), measurement(1.5 * drift)) == measure.Ratio(2.0, 2.0, 2.0)
    noisy = drift * np.random.default_rng(1).normal(1, 0.1, 20)
    ratio = speedup(measurement(noisy), measurement(drift))
    assert ratio.low < ratio.median < ratio.high
    assert ratio.low < 1 < ratio.high
    slower = speedup(measurement(drift), measurement(4 * drift))
    assert slower.high < 1
    with pytest.raises(UsageError, match="not measured side by side: 20 and 19 turns"):
        speedup(measurement(drift), measurement(drift[1:]))


def test_memory_that_is_not_told_is_none():
    found = measurement([1.0])
    assert found.model_rss_bytes is None
    assert replace(found, peak_rss_bytes=3, baseline_rss_bytes=1).model_rss_bytes == 2


def test_worker_needs_nothing_but_numpy_and_the_runtime(files):
    """As it would on another machine: alone in a folder, without this package on the path."""
    lines = [
        {"path": str(files[0].path), "format": "tflite", "threads": 1},
        {"runs": 2, "inner": 3},
        {"path": "none", "format": "tflite", "threads": 1},
        {},
    ]
    done = subprocess.run(
        [sys.executable, "-I", worker.__file__], input="".join(json.dumps(line) + "\n" for line in lines), capture_output=True, text=True, check=True
    )
    loaded, timed, missing, end = map(json.loads, done.stdout.splitlines())
    assert loaded["load_ns"] > 0 < loaded["first_ns"]
    assert len(timed["ns"]) == 2
    assert missing["error"]
    assert end["peak_rss"] is None or end["peak_rss"] >= loaded["baseline_rss"]


def test_worker_counts_the_calls():
    calls = []

    def infer():
        time.sleep(1e-4)
        calls.append(1)

    times = worker.timed(infer, 5, 4)
    assert len(times) == 5
    assert min(times) > 4e5, "each is the time of 4 calls, in nanoseconds"
    assert 20 < len(calls) < 40, "20 that are timed, and the warm-up"
    assert worker.random((2, 3), np.int32).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert worker.random((2, 3), "float32").std() > 0


def test_worker_answers_an_error_and_goes_on(monkeypatch, capfd):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO('{"path": "a", "format": "zip", "threads": 1}\n{"path": "none.tflite", "format": "tflite", "threads": 1}\n{}\n')
    )
    saved = os.dup(1)
    try:
        worker.main()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    unknown, missing, end = map(json.loads, capfd.readouterr().out.splitlines())
    assert unknown == {"error": "'zip'"}
    assert "none.tflite" in missing["error"]
    assert set(end) == {"peak_rss"}
