"""What the command line shows: tables and JSON on stdout, progress and errors on stderr, and silence from the libraries."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from lrfc.compiler import Result
    from lrfc.diagnosis import Check
    from lrfc.passes.profile import Profile
    from lrfc.state import Progress
    from lrfc.targets.measure import Measurement


@contextmanager
def quiet() -> Iterator[tuple[TextIO, TextIO, Callable[[BaseException], Path]]]:
    """Send what libraries write on file descriptors 1 and 2 to a temporary file; give the real stdout and stderr.

    The third value writes a traceback into that file and names it; otherwise the file is deleted at the end.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    handle, name = tempfile.mkstemp(prefix="lrfc-", suffix=".log")
    keep = False

    def details(error: BaseException) -> Path:
        nonlocal keep
        keep = True
        with Path(name).open("a") as log:
            traceback.print_exception(error, file=log)
        return Path(name)

    try:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        with (
            os.fdopen(os.dup(saved[0]), "w", encoding="utf-8", errors="replace") as out,
            os.fdopen(os.dup(saved[1]), "w", encoding="utf-8", errors="replace") as err,
        ):
            yield out, err, details
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in enumerate(saved, start=1):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(handle)
        if not keep:
            Path(name).unlink(missing_ok=True)


class Terminal:
    """The two streams of one command."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        from rich.console import Console

        self._out = Console(file=stdout, width=None if stdout.isatty() else 100, highlight=False, soft_wrap=False)
        self._err = Console(file=stderr, highlight=False, soft_wrap=True)
        self._bars: Any = None

    def fail(self, message: str, code: int) -> NoReturn:
        """One line on stderr, then exit."""
        self._stop()
        self._err.print(f"lrfc: {' '.join(message.split())}", markup=False)
        raise SystemExit(code)

    def json(self, value: Any) -> None:
        """One object on stdout."""
        self._stop()
        self._out.file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        self._out.file.flush()

    def progress(self) -> Progress:
        """Bars with the time left on a terminal, plain lines elsewhere."""
        from lrfc.state import Progress

        if not self._err.is_terminal:
            return Progress(stage=self._plain, log=lambda line: self._err.print(line, markup=False))
        from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TextColumn, TimeRemainingColumn

        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=self._err, transient=True
        )
        self._bars.start()
        return Progress(stage=self._bar, log=lambda line: self._bars.console.print(line, markup=False))

    def _plain(self, title: str, total: int) -> Callable[[int], None]:
        return lambda steps: None

    def _bar(self, title: str, total: int) -> Callable[[int], None]:
        for task in self._bars.tasks:
            if task.finished or task.description == title:
                self._bars.remove_task(task.id)
        task = self._bars.add_task(title, total=total)
        return lambda steps: self._bars.advance(task, steps)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is text, the others are figures."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        self._stop()
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._out.print(table)

    def line(self, text: str) -> None:
        """One line of text on stdout."""
        self._stop()
        self._out.print(text, markup=False, soft_wrap=True)
