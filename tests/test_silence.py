"""Overlapping silent blocks in threads leave stdout, stderr, warnings and logging unchanged."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from lrfc.cli.console import quiet as whole
from lrfc.ir import backend
from lrfc.system import silence
from lrfc.targets.quiet import quiet

LIBC = ctypes.CDLL(None)


def state() -> dict[str, Any]:
    """What belongs to the program that uses lrfc."""
    files = {
        number: (found.st_dev, found.st_ino) for number in (1, 2) for found in [os.fstat(number)]
    }
    root = logging.root
    logs = (root.level, tuple(root.handlers), tuple(root.filters), root.manager.disable)
    shown = (id(warnings.filters), tuple(warnings.filters), warnings.showwarning)
    return {"files": files, "streams": (sys.stdout, sys.stderr), "logging": logs, "warnings": shown}


@pytest.fixture
def unchanged() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


def threads(*jobs: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    running = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert not errors, errors


@pytest.mark.parametrize(
    "block",
    [quiet, backend.quiet, whole, silence.root_logger],
    ids=lambda each: f"{each.__module__}.{each.__name__}",
)
def test_two_threads_that_overlap(
    block: Callable[[], AbstractContextManager[Any]], unchanged: None
) -> None:
    """The block that begins first ends first.

    If each block restored the state from its own beginning, the first redirection would remain.
    """
    begun, ended = threading.Event(), threading.Event()
    inside = threading.Event()

    def first() -> None:
        with block():
            begun.set()
            assert inside.wait(30)
        ended.set()

    def second() -> None:
        assert begun.wait(30)
        with block():
            inside.set()
            assert ended.wait(30)
            sys.stdout.write("hidden")
            os.write(1, b"")

    threads(first, second)


def test_many_threads_nested_and_failing(unchanged: None) -> None:
    start = threading.Barrier(6)

    def job(seed: int) -> Callable[[], None]:
        def run() -> None:
            draw = random.Random(seed)
            start.wait(30)
            for _ in range(25):
                try:
                    with ExitStack() as stack:
                        others = draw.choices(
                            [quiet, backend.quiet, silence.root_logger], k=draw.randrange(4)
                        )
                        for block in (draw.choice([quiet, backend.quiet]), *others):
                            stack.enter_context(block())
                            sys.stdout.write(f"noise {seed}")
                            warnings.warn(f"noise {seed}", stacklevel=1)
                        if draw.random() < 0.5:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    continue

        return run

    threads(*(job(seed) for seed in range(6)))


def test_each_thread_has_its_own_text_and_warnings(unchanged: None) -> None:
    taken: dict[int, list[str]] = {number: [] for number in range(4)}
    start = threading.Barrier(4)

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            with silence.thread(taken[number].append, taken[number].append):
                for turn in range(50):
                    start.wait(30)
                    sys.stdout.write(f"out {turn} of {number};")
                    sys.stderr.write(f"err {turn} of {number};")
                    warnings.warn(f"warning {turn} of {number};", stacklevel=1)

        return run

    threads(*(job(number) for number in range(4)))
    for number, texts in taken.items():
        assert texts == [
            f"{kind} {turn} of {number};"
            for turn in range(50)
            for kind in ("out", "err", "warning")
        ]


CODE = """
import ctypes, os, sys, threading, logging, warnings
from lrfc.targets.quiet import quiet
host = threading.Event(), threading.Event()
def converts():
    with quiet() as noise:
        host[0].set()
        assert host[1].wait(30)
        os.write(1, b"from C++")
        ctypes.CDLL(None).puts(b"held back by C")
        print("from the converter")
        warnings.warn("of the converter")
        logging.getLogger("library").addHandler(logging.StreamHandler())
thread = threading.Thread(target=converts)
thread.start()
assert host[0].wait(30)
print("the program's own line")
warnings.warn("the program's own warning")
host[1].set()
thread.join()
print("afterwards")
logging.getLogger("library").warning("logged afterwards")
os.write(1, b"to the descriptor\\n")
"""


def test_what_the_program_prints_meanwhile_arrives() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert run.stdout == "the program's own line\nafterwards\nto the descriptor\n"
    assert "the program's own warning" in run.stderr
    assert run.stderr.endswith("logged afterwards\n")
    assert "converter" not in run.stderr


def test_what_is_written_can_be_read(unchanged: None) -> None:
    with quiet() as noise:
        os.write(2, b"descriptor, ")
        sys.stdout.write("Python, ")
        LIBC.printf(b"C")
        assert noise() == "descriptor, Python, C"
        sys.stderr.write("more\n")
        assert noise().endswith("more\n")


def test_the_root_logger_gets_no_handler(unchanged: None, caplog: pytest.LogCaptureFixture) -> None:
    with silence.root_logger():
        logging.warning("advice")  # noqa: LOG015 - what onnxruntime's tools do
        logging.error("a failure")  # noqa: LOG015
        threads(lambda: logging.warning("another thread's"))  # noqa: LOG015
    assert [record.message for record in caplog.records] == ["a failure", "another thread's"]
