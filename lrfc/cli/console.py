"""The streams of the command line.

Tables and JSON go to stdout, progress and errors to stderr. Libraries are silent.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lrfc.system import scratch, silence

if TYPE_CHECKING:
    from lrfc.state import Progress


@contextmanager
def quiet() -> Iterator[tuple[TextIO, TextIO, Callable[[BaseException], Path]]]:
    """Context manager: redirect file descriptors 1 and 2 into an unnamed temporary file.

    Yield the real stdout and stderr, and a function that saves the redirected output and the
    traceback of an exception in a file and returns its path.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    codecs.register_error(_REPLACE, _replaced)
    encodings = [
        getattr(stream, "encoding", None) or "utf-8" for stream in (sys.stdout, sys.stderr)
    ]
    with (
        scratch.unnamed() as noise,
        silence.descriptors(noise.fileno(), whole=True) as real,
        os.fdopen(_opened(real[0]), "w", encoding=encodings[0], errors=_REPLACE) as out,
        os.fdopen(_opened(real[1]), "w", encoding=encodings[1], errors=_REPLACE) as err,
    ):

        def save(error: BaseException) -> Path:
            silence.flush()
            with scratch.kept("failure-", ".log") as log:
                log.write(silence.written(noise.fileno()))
                traceback.print_exception(error, file=log)
            return Path(log.name)

        yield out, err, save


def _opened(descriptor: int | None) -> int:
    """Return a new descriptor for a stream; for a closed stream, one of the null device."""
    return os.open(os.devnull, os.O_WRONLY) if descriptor is None else os.dup(descriptor)


#: Replacements for characters that the user's encoding does not have.
_PLAIN = {
    "×": "x",
    "→": "->",
    "—": "-",
    "–": "-",
    "−": "-",
    "─": "-",
    "█": "#",
    "…": "...",
    "µ": "u",
}
_REPLACE = "lrfc.replace"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error of the streams: replace the characters by plain ones."""
    assert isinstance(error, UnicodeEncodeError)
    return (
        "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]),
        error.end,
    )


class Terminal:
    """The two streams of one command."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        from rich.console import Console

        # Without a terminal the width is unknown, unless COLUMNS is set.
        self._out = Console(
            file=stdout,
            width=None if stdout.isatty() or "COLUMNS" in os.environ else 80,
            highlight=False,
            soft_wrap=False,
        )
        self._err = Console(file=stderr, highlight=False, soft_wrap=True)
        self._bars: Any = None

    def fail(self, message: str, code: int) -> NoReturn:
        """Print one line on stderr and exit."""
        self._stop()
        self._err.print(f"lrfc: {' '.join(message.split())}", markup=False)
        raise SystemExit(code)

    def abandon(self) -> None:
        """Discard what is left for stdout: its reader has gone."""
        self._stop()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._out.file.fileno())
        os.close(null)

    def json(self, value: Any) -> None:
        """Print a JSON value on stdout."""
        self._stop()
        self._out.file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        self._out.file.flush()

    def progress(self) -> Progress:
        """Return the progress display: bars with the time left on a terminal, else plain lines."""
        from lrfc.state import Progress

        if not self._err.is_terminal:
            return Progress(stage=self._plain, log=lambda line: self._err.print(line, markup=False))
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )
        self._bars.start()
        return Progress(
            stage=self._bar, log=lambda line: self._bars.console.print(line, markup=False)
        )

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

    def texts(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with text in all columns."""
        self.table(title, columns, rows, figures=False)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        figures: bool = True,
    ) -> None:
        """Print a table. ``figures``: all columns but the first are numbers, aligned right."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        self._stop()
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(
                column, justify="left" if number == 0 or not figures else "right", overflow="fold"
            )
        for row in rows:
            table.add_row(*row)
        self._out.print(table)

    def line(self, text: str) -> None:
        """Print one line of text on stdout."""
        self._stop()
        self._out.print(text, markup=False, soft_wrap=True)
