"""How files are written: in the same bytes every time, and within a few times their size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrfc.targets.catalog import target
from tests import helpers

EMIT = """
import hashlib, sys
from pathlib import Path
from lrfc.targets.catalog import target
from tests import helpers
graph = helpers.graph_of(helpers.branches())
for name, precision in (("tflite", "fp32"), ("tflite", "int8"), ("onnx", "fp32")):
    path = Path(sys.argv[1]) / f"{precision}.{name}"
    target(name, precision).emit(graph, path, helpers.random_inputs(graph, 8))
"""


def test_the_same_bytes_every_time_and_not_a_word(tmp_path):
    """Twice in this process, and once in one with another hash seed, which prints nothing."""
    graph = helpers.graph_of(helpers.branches())
    inputs = helpers.random_inputs(graph, 8)
    kinds = (("tflite", "fp32"), ("tflite", "int8"), ("onnx", "fp32"))

    def digests(folder):
        return [
            hashlib.sha256((folder / f"{precision}.{name}").read_bytes()).hexdigest()
            for name, precision in kinds
        ]

    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        for name, precision in kinds:
            target(name, precision).emit(graph, tmp_path / folder / f"{precision}.{name}", inputs)
    (tmp_path / "third").mkdir()
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", EMIT, str(tmp_path / "third")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (
        digests(tmp_path / "first") == digests(tmp_path / "second") == digests(tmp_path / "third")
    )


WEIGHED = """
import re, resource, sys
from pathlib import Path
from lrfc.targets.tflite.target import TFLite
from tests import helpers
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
warm = helpers.graph_of(helpers.dense_net())
TFLite().emit(warm, Path(sys.argv[1]))
graph = helpers.graph_of(helpers.dense_net(2048, (2048,) * 6))
before = peak()
size = TFLite().emit(graph, Path(sys.argv[1])).bytes
children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print((peak() - before) / size, (children - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_writing_a_file_takes_a_few_times_its_size(tmp_path):
    """With weights as constants of the converted function it would be more than twenty times."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WEIGHED, str(tmp_path / "m.tflite")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here, apart = map(float, done.stdout.split())
    assert here < 4, "the converter's memory is that of another process"
    assert 1 < apart < 10
