"""One command: libraries are silent, and every expected failure ends as one line and an exit code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lrfc import interrupts
from lrfc.errors import LrfcError, UsageError
from lrfc.terminal import Terminal, quiet


@contextmanager
def session() -> Iterator[Terminal]:
    """A terminal in which libraries are silent and every expected failure ends as one line and an exit code."""
    with quiet() as (stdout, stderr, noise):
        terminal = Terminal(stdout, stderr)
        try:
            with interrupts.unwinding():
                yield terminal
        except LrfcError as error:
            terminal.fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            terminal.fail("interrupted; nothing was left half-written", 130)
        except interrupts.Terminated:
            terminal.fail("terminated; nothing was left half-written", 128 + signal.SIGTERM)
        except BrokenPipeError:  # lrfc ... | head: what was read is enough
            terminal.abandon()
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG):
                terminal.fail(f"unexpected {type(error).__name__}: {error} (please report this; details: {noise(error)})", 1)
            terminal.fail(f"cannot write {error.filename or 'the output'}: {error.strerror}; choose another place with --out", UsageError.exit_code)
        except Exception as error:  # noqa: BLE001  the last line of defence: a bug in lrfc, said in one line with the place of the traceback
            terminal.fail(f"unexpected {type(error).__name__}: {error} (please report this; details: {noise(error)})", 1)
