"""The environment of a command: silent libraries, failures as one line and an exit code."""

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
from lrfc.system import collector, scratch
from lrfc.system.reader import shown

#: Upper bound for the columns of a terminal; a larger COLUMNS is ignored.
WIDEST = 10_000


@contextmanager
def session() -> Iterator[Terminal]:
    """Context manager: run a command with silent libraries and a terminal for its output.

    Every expected failure ends as one line on stderr and an exit code.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(scratch.for_all())
            stdout, stderr, save = stack.enter_context(quiet())
        except LrfcError as error:  # no room for the output of the libraries
            Terminal(sys.stdout, sys.stderr).fail(str(error), error.exit_code)
        terminal = Terminal(stdout, stderr)
        try:
            with interrupts.unwinding():
                yield terminal
            stdout.flush()  # reports a full disk now, not when the stream is closed
        except LrfcError as error:
            terminal.fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            terminal.fail("interrupted; nothing was left half-written", 130)
        except interrupts.Terminated:
            terminal.fail("terminated; nothing was left half-written", 128 + signal.SIGTERM)
        except BrokenPipeError:  # lrfc ... | head: the reader has all that it wants
            terminal.abandon()
            raise SystemExit(128 + signal.SIGPIPE) from None
        except MemoryError:
            terminal.fail(
                "this machine has too little memory; give a smaller model or less data",
                UsageError.exit_code,
            )
        except OSError as error:
            if error.filename is None:
                terminal.abandon()  # a second attempt at the exit would fail, too
            terminal.fail(_refused(error), UsageError.exit_code)
        except Exception as error:  # noqa: BLE001  a bug in lrfc: one line, its traceback in a file
            terminal.fail(
                f"unexpected {type(error).__name__}: {error} (please report this; details:"
                f" {save(error)})",
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
    """Run the command line as the only task of this process, in any environment."""
    for number in range(3):  # a closed stream is replaced by the null device
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # uses the lowest free number
    sys.stdout, sys.stderr = (
        stream or os.fdopen(number, "w", closefd=False)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    if not 0 < _number(os.environ.get("COLUMNS", "80")) < WIDEST:
        del os.environ["COLUMNS"]
    # Warnings of libraries are for developers, whatever PYTHONWARNINGS says.
    warnings.simplefilter("ignore")
    collector.process_is_ours()
    try:
        command()
    except KeyboardInterrupt:  # before or after a session
        raise SystemExit(130) from None
    except MemoryError:
        raise SystemExit(UsageError.exit_code) from None
    except OSError as error:
        _last_line(f"lrfc: {_refused(error)}\n")
        raise SystemExit(UsageError.exit_code) from None


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _last_line(line: str) -> None:
    """Write to stderr where that is possible, and discard the rest of stdout."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:
        os.dup2(null, 2)
    os.dup2(null, 1)
    os.close(null)
