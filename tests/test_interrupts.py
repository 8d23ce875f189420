"""Ctrl-C and SIGTERM: none is lost, and none is raised inside a library."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from lrfc.cli.signals import Terminated, unwinding

ENDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
#: Python drops every exception of a weak reference's callback, as h5py does in its own.
LIBRARY = """
import signal, weakref

class Handle:
    pass

def work(times):
    for _ in range(times):
        handle = Handle()
        reference = weakref.ref(handle, lambda reference: signal.raise_signal(signum))
        del handle
    done.append("library")
"""
LRFC = """
def work(times):
    library(times)
    done.append("lrfc")
    len(done)
    done.append("lrfc goes on")
"""


@pytest.fixture(autouse=True)
def ctrl_c_counts() -> Iterator[None]:
    """Handle SIGINT as usual; in the background of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def as_package(name: str, source: str, **names: Any) -> Callable[[int], None]:
    """The function ``work`` of a module of this package."""
    code: CodeType = compile(source, name, "exec")
    namespace = {"__name__": f"{name}.module", **names}
    exec(code, namespace)
    work: Callable[[int], None] = namespace["work"]
    return work


@pytest.mark.parametrize(("signum", "error"), ENDS)
def test_inside_a_library_it_waits_for_lrfc(
    signum: signal.Signals, error: type[BaseException]
) -> None:
    done: list[str] = []
    work = as_package(
        "lrfc", LRFC, library=as_package("library", LIBRARY, signum=signum, done=done), done=done
    )
    before = signal.getsignal(signum)
    with pytest.raises(error), unwinding():
        work(1)
    assert done[0] == "library"
    assert "lrfc goes on" not in done
    assert sys.getprofile() is None
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize(("signum", "error"), ENDS)
def test_the_second_one_does_not_wait(signum: signal.Signals, error: type[BaseException]) -> None:
    done: list[str] = []
    twice = (
        "def work(times):\n    for _ in range(times):\n        signal.raise_signal(signum)\n       "
        " done.append('library')\n"
    )
    work = as_package(
        "lrfc",
        LRFC,
        library=as_package("library", twice, signal=signal, signum=signum, done=done),
        done=done,
    )
    with pytest.raises(error), unwinding():
        work(3)
    assert done == ["library"]
    assert sys.getprofile() is None


@pytest.mark.parametrize(("signum", "error"), ENDS)
def test_outside_of_libraries_it_is_raised_at_once(
    signum: signal.Signals, error: type[BaseException]
) -> None:
    code = f"""
import signal
from lrfc.cli.signals import unwinding
signal.signal(signal.SIGINT, signal.default_int_handler)
done = []
try:
    with unwinding():
        done.append("before")
        signal.raise_signal({int(signum)})
        done.append("after")
except BaseException as error:
    print(type(error).__name__, done)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"{error.__name__} ['before']\n"


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with unwinding():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
