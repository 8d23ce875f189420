"""The TFLite converter in a process of its own: the same bytes, failures, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lrfc.errors import ModelError, UsageError
from lrfc.system import scratch
from lrfc.targets import trace
from lrfc.targets.quiet import quiet
from lrfc.targets.samples import checked
from lrfc.targets.tflite import conversion, converter
from lrfc.targets.tflite.conversion import Conversion, started
from lrfc.targets.tflite.target import TFLite, _save
from tests import helpers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def apart(monkeypatch):
    """Every model with weights is converted in a process of its own."""
    monkeypatch.setattr("lrfc.targets.tflite.target.LARGE", 0)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Returns a function that replaces the script of the process."""

    def replace(text: str) -> None:
        (tmp_path / "scripts").mkdir()
        path = tmp_path / "scripts" / "converter.py"
        path.write_text(text)
        monkeypatch.setattr(converter, "__file__", str(path))

    return replace


def emitted(tmp_path: Path, precision: str = "fp32") -> Path:
    """The path of an emitted file, in a folder of its own."""
    graph = helpers.graph_of(helpers.conv_net())
    folder = tmp_path / "out"
    folder.mkdir()
    return TFLite(precision).emit(graph, folder / "m.tflite", helpers.random_inputs(graph, 4)).path


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "dynamic", "int8"])
def test_the_same_bytes_in_both_processes(precision, tmp_path):
    graph = helpers.graph_of(helpers.branches())
    traced = trace.trace(graph)
    _save(traced, tmp_path)
    samples = checked(helpers.random_inputs(graph, 8), traced.inputs, "the model")
    one = Conversion(
        traced.name,
        precision,
        tuple(spec.name for spec in traced.inputs),
        samples if precision == "int8" else None,
        int8_io=False,
    )
    with started(tmp_path) as process:
        other = one.run(tmp_path, process)
    assert len(other) > 1000
    with quiet():
        assert one.run(tmp_path, None) == other


def test_only_large_models_have_a_process(tmp_path, script):
    script("raise SystemExit('no process is needed')")
    assert emitted(tmp_path).stat().st_size > 1000


def test_a_failure_has_the_converters_words(tmp_path, apart):
    import keras

    inputs = keras.Input((4, 4), name="x")
    outputs = keras.ops.inv(keras.layers.Dense(4)(inputs))
    graph = helpers.graph_of(keras.Model(inputs, outputs, name="inverse"))
    with pytest.raises(ModelError) as failure:
        TFLite().emit(graph, tmp_path / "m.tflite")
    assert (
        str(failure.value)
        == "'inverse' cannot be converted to TFLite: it has no operator for TensorFlow's"
        " MatrixInverse (in 'MatrixInverse')"
    )
    assert "MatrixInverse" in failure.value.__notes__[0]
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory(tmp_path, apart, script):
    script(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('converter', {converter.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "def convert(**task): raise MemoryError\n"
        "module.convert = convert\n"
        "raise SystemExit(module._main())\n"
    )
    with pytest.raises(ModelError) as failure:
        emitted(tmp_path)
    assert str(failure.value).endswith("converted to TFLite fp32: there is too little memory")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            "was killed by SIGKILL, as systems do when memory runs out",
        ),
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("raise SystemExit('a last word')", "ended with exit code 1"),
    ],
)
def test_a_process_that_dies(text, end, tmp_path, apart, script):
    script(text)
    with pytest.raises(ModelError) as failure:
        emitted(tmp_path)
    assert str(failure.value).endswith(f"cannot be converted to TFLite: the converter {end}")
    assert ("a last word" in failure.value.__notes__[0]) == ("word" in text)
    assert list((tmp_path / "out").iterdir()) == []


def test_no_process_can_be_started(tmp_path, apart, monkeypatch):
    monkeypatch.setattr(conversion.sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="its process cannot be started: No such file"):
        emitted(tmp_path)


def test_samples_that_do_not_fit_start_no_process(tmp_path, apart, script):
    script("raise SystemExit('no process is needed')")
    graph = helpers.graph_of(helpers.conv_net())
    for bad in ((np.zeros((4, 3)),), (np.full((4, 12, 12, 3), "a"),)):
        with pytest.raises(UsageError, match="the data have"):
            TFLite("int8").emit(graph, tmp_path / "m.tflite", bad)


def test_ctrl_c_ends_the_process(tmp_path, apart, script):
    note = tmp_path / "pid"
    script(
        "import os, pathlib, time\n"
        f"path = pathlib.Path({str(note)!r})\n"
        "path.with_suffix('.part').write_text(str(os.getpid()))\n"
        "path.with_suffix('.part').replace(path)\n"
        "time.sleep(600)\n"
    )

    def interrupt() -> None:
        while not note.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # Whatever handler another test has left.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            emitted(tmp_path)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_alive(int(note.read_text()))
    assert list((tmp_path / "out").iterdir()) == []
    with scratch.folder() as folder:
        assert list(folder.parent.glob("*/saved_model.pb")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from lrfc.targets.tflite.conversion import started
with started(Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_it_ends_with_a_build_that_is_killed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while is_alive(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
