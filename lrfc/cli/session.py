"""One command: libraries are silent, and every expected failure ends as one line and an exit code."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lrfc.cli import signals as interrupts
from lrfc.cli.console import Terminal, quiet
from lrfc.errors import LrfcError, UsageError
from lrfc.system import scratch
from lrfc.system.reader import shown

#: Columns that a terminal has less than.
WIDEST = 10_000


@contextmanager
def session() -> Iterator[Terminal]:
    """A terminal in which libraries are silent and every expected failure ends as one line and an exit code."""
    with ExitStack() as stack:
        try:
            stack.enter_context(scratch.for_all())
            stdout, stderr, noise = stack.enter_context(quiet())
        except LrfcError as error:  # there is no room for what has to be hidden
            Terminal(sys.stdout, sys.stderr).fail(str(error), error.exit_code)
        terminal = Terminal(stdout, stderr)
        try:
            with interrupts.unwinding():
                yield terminal
            stdout.flush()  # a full disk is said now, not when the stream is closed
        except LrfcError as error:
            terminal.fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            terminal.fail("interrupted; nothing was left half-written", 130)
        except interrupts.Terminated:
            terminal.fail("terminated; nothing was left half-written", 128 + signal.SIGTERM)
        except BrokenPipeError:  # lrfc ... | head: what was read is enough
            terminal.abandon()
            raise SystemExit(128 + signal.SIGPIPE) from None
        except MemoryError:
            terminal.fail(
                "the memory of this machine is too small for this; give a smaller model or less"
                " data",
                UsageError.exit_code,
            )
        except OSError as error:
            if error.filename is None:
                terminal.abandon()  # what stdout does not take, it does not take at the end either
            terminal.fail(_refused(error), UsageError.exit_code)
        except Exception as error:  # noqa: BLE001  the last line of defence: a bug in lrfc, said in one line with the place of the traceback
            terminal.fail(
                f"unexpected {type(error).__name__}: {error} (please report this; details:"
                f" {noise(error)})",
                1,
            )


def _refused(error: OSError) -> str:
    reason = shown(error.strerror or type(error).__name__)
    if error.filename is None:
        return f"cannot write the output: {reason}; choose another place with --out, or for stdout"
    return (
        f"cannot use '{shown(error.filename)}': {reason}; choose another place, with --out for the"
        " output"
    )


def run(command: Callable[[], object]) -> None:
    """Run the command line in a process of its own, whatever its environment is."""
    for number in range(
        3
    ):  # a stream that is closed: nothing is read from it, and what is written goes nowhere
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = (
        stream or os.fdopen(number, "w", closefd=False)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    if not 0 < _number(os.environ.get("COLUMNS", "80")) < WIDEST:
        del os.environ["COLUMNS"]
    warnings.simplefilter(
        "ignore"
    )  # those of libraries are for developers, whatever PYTHONWARNINGS says
    try:
        command()
    except KeyboardInterrupt:  # before or after a session
        raise SystemExit(130) from None
    except MemoryError:
        raise SystemExit(UsageError.exit_code) from None
    except OSError as error:
        _last_word(f"lrfc: {_refused(error)}\n")
        raise SystemExit(UsageError.exit_code) from None


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _last_word(line: str) -> None:
    """On stderr, where that is possible; nothing of what stdout did not take is tried again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:
        os.dup2(nowhere, 2)
    os.dup2(nowhere, 1)
    os.close(nowhere)
