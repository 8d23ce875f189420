"""Results that have to be reproducible are so with several threads of TensorFlow, too.

Each process of the suite has one thread of it (tests/conftest.py); a user's has one for each core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TWICE = (
    "tests/test_api.py::test_the_same_seed_gives_the_same_file",
    "tests/test_replay.py::test_the_same_plan_and_the_same_bytes",
    "tests/test_finetune.py::test_the_seed_decides",
    "tests/test_finetune.py::test_a_killed_training_goes_on_and_ends_the_same",
)


def test_two_threads_compute_the_same_twice() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TWICE],
        cwd=ROOT,
        env=os.environ | {"TF_NUM_INTRAOP_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-1000:]}"
    assert "skipped" not in done.stdout
