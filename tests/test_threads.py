"""Two real builds in two threads of one program: both correct, the program's state unchanged."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import lrfc
from lrfc.engine.package import Result
from lrfc.errors import LrfcError, UsageError
from lrfc.results.folder import sha256
from lrfc.state import Progress
from tests import helpers

#: Their times are computed: nothing waits for a machine that is busy.
DEVICES = ("cortex-m7", "cortex-m4")


def state() -> dict[str, Any]:
    """The state of the program that calls lrfc."""
    import tensorflow as tf

    files = {
        number: (found.st_dev, found.st_ino) for number in (1, 2) for found in [os.fstat(number)]
    }
    root = logging.root
    # What Keras has AutoGraph convert is in a file that TensorFlow removes when the program ends.
    left = [
        path.name
        for path in Path(tempfile.gettempdir()).iterdir()
        if not path.name.startswith("__autograph_generated")
    ]
    return {
        "files": files,
        "streams": (sys.stdout, sys.stderr),
        "logging": (root.level, tuple(root.handlers), tuple(root.filters), root.manager.disable),
        "warnings": (id(warnings.filters), tuple(warnings.filters), warnings.showwarning),
        "signals": {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)},
        "profile": sys.getprofile(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "temporary": (tempfile.tempdir, sorted(left)),
        "blas": [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()],
        "eager": tf.config.functions_run_eagerly(),
    }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model and the options of its build."""
    folder = tmp_path_factory.mktemp("case")
    model = helpers.conv_net(filters=(16, 24))
    model.save(folder / "conv.keras")
    x = np.random.default_rng(0).standard_normal((120, 12, 12, 3)).astype(np.float32)
    data = {"x": x, "y": np.argmax(model.predict(x, verbose=0), axis=1)}
    return folder / "conv.keras", {
        "data": data,
        "methods": ("channel_svd",),
        "max_macs": "60%",
        "epochs": 1,
        "resume": False,
    }


def build(
    case: tuple[Path, dict[str, Any]], out: Path, device: str = DEVICES[0], **options: Any
) -> Result:
    path, defaults = case
    result: Result = lrfc.build(path, out=out, device=device, **defaults | options)
    return result


def choices(result: Result) -> list[tuple[str, str | None, tuple[int, ...] | None]]:
    """The chosen plan.

    Bytes may differ: BLAS has one number of threads for the process, and sums in another order with
    another number.
    """
    return [(layer.name, layer.method, layer.rank) for layer in result.manifest.layers]


def is_whole(result: Result) -> bool:
    return all(sha256(result.out / file.path) == file.sha256 for file in result.manifest.artifacts)


@pytest.fixture(autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of temporary files that no other program uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def test_two_builds_at_once(case: Any, tmp_path: Path) -> None:
    alone = build(case, tmp_path / "alone")
    before = state()
    assert before["temporary"][1] == []
    together: dict[str, Result] = {}
    errors: list[BaseException] = []
    printed: list[str] = []

    def work(device: str) -> None:
        progress = Progress(log=printed.append)
        try:
            together[device] = build(case, tmp_path / device, device=device, progress=progress)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(device,)) for device in DEVICES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert errors == []
    assert state() == before
    for result in together.values():
        assert is_whole(result)
        assert result.manifest.after.macs <= 0.6 * result.manifest.before.macs
        assert {file.name for file in result.out.iterdir()} == {
            file.name for file in alone.out.iterdir()
        }
    assert choices(together[DEVICES[0]]) == choices(alone)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", *DEVICES}


def test_one_folder_is_not_written_twice(case: Any, tmp_path: Path) -> None:
    """The second is refused before it begins; the first is not disturbed."""
    before = state()
    begun = threading.Event()
    first: list[Result] = []

    def log(line: str) -> None:
        if not line.startswith("reading model"):  # the folder is reserved after it
            begun.set()

    def builds() -> None:
        first.append(build(case, tmp_path / "out", epochs=0, progress=Progress(log=log)))

    thread = threading.Thread(target=builds)
    thread.start()
    assert begun.wait(120)
    with pytest.raises(UsageError, match=rf"out' is being written by process {os.getpid()} on"):
        build(case, tmp_path / "out")
    thread.join(300)
    assert first[0].artifact.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert state() == before


def test_a_build_that_fails_in_one_thread_leaves_the_other(case: Any, tmp_path: Path) -> None:
    before = state()
    failures: list[str] = []
    results: list[Result] = []

    def fails() -> None:
        for _ in range(3):
            try:
                build(case, tmp_path / "bad", max_macs="1%", epochs=0)
            except LrfcError as error:
                failures.append(type(error).__name__)

    def builds() -> None:
        results.append(build(case, tmp_path / "good", epochs=0))

    threads = [threading.Thread(target=fails), threading.Thread(target=builds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert failures == 3 * ["UnreachableError"]
    assert results[0].artifact.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert state() == before
