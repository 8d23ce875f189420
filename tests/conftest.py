"""One quiet process without a GPU, reproducible property tests, no trace in the user's folders."""

from __future__ import annotations

import gc
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# As lrfc decides (lrfc/ir/processor.py): tests import Keras by themselves, and TensorFlow's own
# default depends on the processor.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# The suite runs in two processes, and threads of one would wait for the other. What several threads
# could change is tested with two of them (tests/test_threads.py).
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# The same examples in every run, and no limit on the time of one: the first call of a layer traces
# it.
settings.register_profile(
    "lrfc",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep", settings.get_profile("lrfc"), max_examples=500
)  # pytest --hypothesis-profile=deep
settings.load_profile("lrfc")


@pytest.fixture(scope="session")
def lrfc_data() -> Path:
    """The folder of real models and data; the test is skipped without it."""
    folder = os.environ.get("LRFC_DATA")
    if not folder:
        pytest.skip("LRFC_DATA is not set to the folder of real models and data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration and caches of the user are neither read nor written."""
    home = tmp_path_factory.getbasetemp() / "home"
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_searched() -> None:
    """Let garbage collections skip the objects of earlier files.

    TensorFlow's import leaves a million of them, and the TFLite converter collects on each call.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line how many tests were skipped for want of which programs."""
    skipped = Counter(
        missing
        for report in terminalreporter.getreports("skipped")
        if (
            missing := wanted(
                str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
            )
        )
        is not None
    )
    if skipped:
        counts = ", ".join(
            f"{number} for want of {missing}" for missing, number in sorted(skipped.items())
        )
        terminalreporter.write_line(f"skipped, and run after apt-get install: {counts}")


def wanted(reason: str) -> str | None:
    """The packages that a skip asks for; None where none would help."""
    found = re.search(r"apt-get install ([a-z0-9 .+-]*[a-z0-9])", reason)
    return None if found is None else found[1]
