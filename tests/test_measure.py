"""Measurement in child processes: consistent figures, one-line errors, no process left behind."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrfc.errors import DeviceError, UsageError
from lrfc.protocols import Artifact
from lrfc.targets.catalog import target
from lrfc.targets.devices import measure, process, worker
from lrfc.targets.devices.measure import Measurement, compare
from lrfc.targets.devices.process import LocalTransport
from lrfc.targets.devices.speed import Ratio, speedup
from tests import helpers
from tests.fake_runner import before_request


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

    monkeypatch.setattr(process.subprocess, "Popen", Popen)
    yield processes
    assert processes
    assert all(process.returncode is not None for process in processes)


def test_the_figures_are_consistent(files, started, monkeypatch):
    # Far longer than one inference of these files takes, also where the machine is busy.
    monkeypatch.setattr("lrfc.targets.devices.measure.SHORTEST_NS", 5_000_000)
    found = compare([*files, files[0]], runs=41, threads=2)
    assert len(started) == 3 * 3, "several fresh processes of each file"
    for measurement, file in zip(found, [*files, files[0]], strict=True):
        assert measurement.path == file.path
        assert 0 < min(measurement.rounds_ms) <= measurement.median_ms <= measurement.p90_ms
        assert measurement.iqr_ms >= 0
        assert measurement.processes == (6, 6, 6)
        assert len(measurement.rounds_ms) == 18
        assert measurement.n == 54, "runs are made in whole turns"
        assert measurement.threads == 2
        assert measurement.inner > 1, "so small a model runs several times for each timing"
        assert measurement.cold_start_ms is not None
        assert measurement.cold_start_ms > measurement.median_ms
        assert measurement.file_bytes == file.bytes
        assert 0 <= measurement.outliers < 1
        assert measurement.drift is not None
        assert measurement.runtime_version.count(".") >= 1
        json.dumps(measurement.to_json(), allow_nan=False)
    assert [m.runtime for m in found] == ["LiteRT", "onnxruntime", "LiteRT"]
    if sys.platform == "linux":
        assert all(
            0 < m.model_rss_bytes < m.peak_rss_bytes and m.baseline_rss_bytes > 2**20 for m in found
        )


def test_few_runs_and_short_time(files, started):
    (found,) = compare(files[:1], runs=3)
    assert (found.n, len(found.rounds_ms)) == (3, 3)
    (found,) = compare(files[:1], runs=10**6, timeout=8.0)
    assert measure.FEWEST_RUNS <= found.n < 10**6


def test_int8_and_integer_inputs_run(tmp_path, started):
    import keras
    from keras import layers

    inputs = keras.Input((5,), dtype="int32", name="x")
    graph = helpers.graph_of(
        keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Embedding(4, 3)(inputs))))
    )
    made = [
        target(name, precision).emit(
            graph, tmp_path / f"{precision}.{name}", helpers.random_inputs(graph, 4)
        )
        for name, precision in (("tflite", "fp32"), ("tflite", "int8"), ("onnx", "fp32"))
    ]
    assert len(compare(made, runs=2)) == 3


@pytest.mark.parametrize("form", ["tflite", "onnx"])
@pytest.mark.parametrize("content", [b"", b"not a model", None, "truncated"])
def test_a_bad_file_is_one_line(form, content, files, tmp_path, started):
    path = tmp_path / f"bad.{form}"
    if content == "truncated":
        path.write_bytes(
            next(file for file in files if file.format == form).path.read_bytes()[:600]
        )
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DeviceError, match=rf"bad\.{form}") as failure:
        compare([files[0], Artifact(path, form, "fp32")], runs=2)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("form", "package"), [("tflite", "ai_edge_litert"), ("onnx", "onnxruntime")]
)
def test_a_missing_runtime_is_named(form, package, files, tmp_path, monkeypatch, started):
    (tmp_path / f"{package}.py").write_text("raise ImportError('gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        DeviceError,
        match=(
            rf"the runtime of \.{form} files is not installed there .*pip install"
            rf" {package.replace('_', '-')}"
        ),
    ):
        compare([Artifact(files[0].path, form, "fp32")])


def sending(number):
    """An act that sends a signal to the process of a worker."""
    return lambda worker: os.kill(worker._process.pid, number)


def test_a_process_that_dies(files, monkeypatch, started):
    before_request(monkeypatch, 6, sending(signal.SIGKILL))
    with pytest.raises(DeviceError, match=r"the process to measure m\.\w+ was killed by SIGKILL"):
        compare(files)


def test_what_was_measured_before_is_kept(files, monkeypatch, started):
    # In the eighth turn, with one file done.
    before_request(monkeypatch, 2 + 2 * 7 + 2, sending(signal.SIGKILL), "runs")
    with pytest.raises(DeviceError, match="was killed by SIGKILL") as failure:
        compare(files)
    assert [(m.path, len(m.rounds_ms), m.n, m.peak_rss_bytes) for m in failure.value.measured] == [
        (file.path, 7, 70, None) for file in files
    ]
    assert failure.value.measured[0].notes == ("stopped after 7 of 20 turns",)
    speedup(*failure.value.measured)


def test_a_process_that_hangs(files, monkeypatch, started):
    before_request(monkeypatch, 6, sending(signal.SIGSTOP))
    with pytest.raises(
        DeviceError, match=r"it took more than 4 s to measure m\.\w+; allow more time"
    ):
        compare(files, timeout=4.0)


def test_an_interrupt_leaves_no_process(files, monkeypatch, started):
    def interrupt(worker):
        raise KeyboardInterrupt

    before_request(monkeypatch, 1, interrupt, "runs")
    with pytest.raises(KeyboardInterrupt):
        compare(files)
    assert len(started) == 2


def test_no_runs_and_no_interpreter(files):
    with pytest.raises(UsageError, match=r"runs \(0\) and threads \(1\)"):
        compare(files, runs=0)
    with pytest.raises(DeviceError, match="no process can be started"):
        compare(files, transport=LocalTransport("/nowhere/python"))


def measurement(rounds):
    return Measurement(
        Path("m.tflite"),
        1.0,
        1.0,
        0.0,
        len(rounds),
        1,
        tuple(rounds),
        1,
        1.0,
        "LiteRT",
        "2",
        None,
        None,
    )


def test_speedup_pairs_the_turns():
    """A machine that slows down for all files alike does not disturb the ratio."""
    drift = 1 + np.arange(20) / 4
    assert speedup(measurement(3 * drift), measurement(1.5 * drift)) == Ratio(2.0, 2.0, 2.0)
    noisy = drift * np.random.default_rng(1).normal(1, 0.1, 20)
    ratio = speedup(measurement(noisy), measurement(drift))
    assert ratio.low < ratio.median < ratio.high
    assert ratio.low < 1 < ratio.high
    slower = speedup(measurement(drift), measurement(4 * drift))
    assert slower.high < 1
    with pytest.raises(UsageError, match="not measured side by side: 20 and 19 turns"):
        speedup(measurement(drift), measurement(drift[1:]))


def test_the_interval_covers_differences_between_processes():
    """Turns of one process are alike; taken as independent they give too small an interval."""
    rng = np.random.default_rng(2)
    covered = {"processes": 0, "turns": 0}
    for _ in range(400):
        own = np.exp(rng.normal(np.log(2.0), 0.03, 5))
        rounds = (own[:, None] * np.exp(rng.normal(0, 0.01, (5, 4)))).ravel()
        before, after = measurement(rounds), measurement(np.ones(20))
        by_turns = speedup(before, after)
        clustered = speedup(replace(before, processes=(4,) * 5), replace(after, processes=(4,) * 5))
        assert clustered.low <= clustered.median <= clustered.high
        covered["processes"] += clustered.low <= 2.0 <= clustered.high
        covered["turns"] += by_turns.low <= 2.0 <= by_turns.high
    assert 0.92 <= covered["processes"] / 400 <= 0.99
    assert covered["turns"] / 400 < 0.85


def test_estimated_figures_have_no_interval():
    before, after = (replace(measurement([ms]), source="estimated") for ms in (3.0, 2.0))
    assert speedup(before, after) == Ratio(1.5, 1.5, 1.5, "estimated")


def test_unknown_memory_is_none():
    found = measurement([1.0])
    assert found.model_rss_bytes is None
    assert replace(found, peak_rss_bytes=3, baseline_rss_bytes=1).model_rss_bytes == 2


def test_drift_and_outliers():
    assert measure.drift([1.0] * 5) is None
    assert measure.drift([2.0, 2.0, 9.0, 9.0, 1.0, 1.0]) == -0.5
    times = np.array([*np.linspace(1.0, 2.0, 97), 100.0, 101.0, 102.0])
    median, p90, iqr, outliers = measure.statistics(times)
    assert outliers == 0.03
    assert 1.5 < median < p90 < 2
    assert iqr < 0.6


def conditions(hz, celsius):
    return {"hz": hz, "celsius": celsius}


def test_drift_is_noted_with_clock_and_temperature():
    slow = replace(measurement([1.0, 1.0, 1.0, 1.0, 1.2, 1.2]), path=Path("m.tflite"))
    found = measure._with_conditions(slow, conditions(1.5e9, 50.0), conditions(1.2e9, 80.5))
    assert found.notes == (
        (
            "the device became 20 % slower during the measurement, clock from 1.5 to 1.2 GHz,"
            " temperature from 50 to 80.5 °C: compare files measured together only"
        ),
    )
    assert (found.drift, found.hz, found.celsius) == (
        pytest.approx(0.2),
        (1.5e9, 1.2e9),
        (50.0, 80.5),
    )
    steady = measure._with_conditions(
        measurement([1.0] * 6), conditions(None, 40.0), conditions(None, None)
    )
    assert (steady.notes, steady.drift, steady.hz, steady.celsius) == ((), 0.0, None, None)


def test_onnx_profile_names_the_nodes_that_run(files):
    import onnx

    found = measure.onnx_profile(files[1].path, runs=20)
    nodes = {node.name for node in onnx.load(files[1].path).graph.node}
    assert len(found) >= 3
    assert len([name for name in found if any(node in name for node in nodes)]) >= 2, (
        "onnxruntime fuses some, and names what it made after them"
    )
    assert all(value >= 0 for value in found.values())
    assert sum(found.values()) > 0


def test_signatures_are_timed_by_name(tmp_path, started):
    import tensorflow as tf

    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 8))])
        def small(self, x):
            return {"y": tf.nn.relu(x)}

        @tf.function(input_signature=[tf.TensorSpec((1, 400)), tf.TensorSpec((400, 400))])
        def large(self, x, w):
            return {"y": tf.matmul(x, tf.matmul(w, w))}

    two = Two()
    tf.saved_model.save(two, tmp_path / "two", signatures={"small": two.small, "large": two.large})
    path = tmp_path / "two.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "two")).convert())
    found = measure.profile(Artifact(path, "tflite", "fp32"), runs=20)
    assert set(found) == {"small", "large"}
    assert found["large"] > 10 * found["small"] > 0, "128 million operations against eight"
    with pytest.raises(
        DeviceError,
        match=r"cannot profile none\.tflite|cannot measure .*none\.tflite: No such file",
    ):
        measure.profile(Artifact(tmp_path / "none.tflite", "tflite", "fp32"))


def test_kernels_of_a_profile():
    events = [
        {"cat": "Session", "name": "model_run", "dur": 9},
        *(
            {"cat": "Node", "name": f"a_{what}", "dur": us}
            for us in [900] * worker.WARM_RUNS + [4, 5, 6]
            for what in ("fence_before", "kernel_time")
        ),
    ]
    assert worker.kernels(events) == {"a": 5.0}


@pytest.fixture
def alone(tmp_path):
    """The worker as on another machine: alone in a folder, without this package on the path."""
    script = tmp_path / "worker.py"
    script.write_bytes(Path(worker.__file__).read_bytes())
    process = subprocess.Popen(
        [sys.executable, "-I", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def ask(**request):
        process.stdin.write(json.dumps(request) + "\n")
        return json.loads(process.stdout.readline())

    ask.process = process
    yield ask
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def load(file, sha256=None):
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest() if sha256 is None else sha256
    return {
        "path": str(file.path),
        "format": file.format,
        "threads": 1,
        "cores": None,
        "sha256": digest,
    }


def test_worker_needs_nothing_but_numpy_and_the_runtime(files, alone, tmp_path):
    facts = alone(facts=str(tmp_path))
    assert facts["machine"]
    assert set(facts["runtimes"]) == {"tflite", "onnx"}
    assert facts["free_bytes"] > 0
    loaded = alone(**load(files[0]))
    assert loaded["load_ns"] > 0 < loaded["first_ns"]
    assert len(alone(runs=2, inner=3)["ns"]) == 2
    assert alone(path="none", format="tflite", threads=1, cores=None, sha256="")["error"]
    assert (
        alone(**load(files[0], "0" * 64))["error"]
        == "the file that arrived there is not the one that was sent"
    )
    assert set(alone(conditions=True)) == {"hz", "celsius"}
    end = alone()
    assert end["peak_rss"] is None or end["peak_rss"] >= loaded["baseline_rss"]


def test_worker_ends_with_its_stdin_also_in_the_middle_of_a_run(files, alone):
    alone(**load(files[0]))
    alone.process.stdin.write(json.dumps({"runs": 10**9, "inner": 1}) + "\n")
    time.sleep(0.2)
    assert alone.process.poll() is None
    alone.process.stdin.close()
    assert alone.process.wait(timeout=20) == 0


def test_worker_is_python_3_8():
    """Older devices have no newer one.

    What the parser takes, and where there is one, that it runs.
    """
    source = Path(worker.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    python = shutil.which("python3.8")
    if (
        python is not None
        and subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0
    ):
        code = f"import runpy; print(runpy.run_path({worker.__file__!r})['facts']('/')['python'])"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("3.8"), done.stderr


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core"
)
def test_worker_is_bound_to_as_many_cores_as_threads(files, alone):
    allowed = sorted(os.sched_getaffinity(0))
    cores = alone(**load(files[0]))["cores"]
    assert len(cores) == 1
    assert cores[0] in allowed
    assert os.sched_getaffinity(alone.process.pid) == set(cores)
    assert alone(**load(files[0]) | {"cores": allowed[:1]})["cores"] == allowed[:1]
    assert worker.pin(len(allowed) + 1, None) is None
    assert sorted(os.sched_getaffinity(0)) == allowed


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


def test_worker_answers_an_error_and_goes_on():
    answers = io.StringIO()
    worker.serve(
        [
            {"path": "a", "format": "zip", "threads": 1, "cores": None, "sha256": ""},
            {"runs": 1, "inner": 1},
            {"facts": "/nowhere"},
            {},
        ],
        answers,
    )
    unknown, end, nowhere, again = map(json.loads, answers.getvalue().splitlines())
    assert unknown["error"]
    assert "/nowhere" in nowhere["error"]
    assert set(end) == set(again) == {"peak_rss"}
