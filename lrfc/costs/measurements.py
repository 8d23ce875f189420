"""What was measured on devices, kept between calibrations and builds: op or model, device, runtime → samples."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs

from lrfc.costs.workload import Workload
from lrfc.errors import UsageError
from lrfc.metrics.source import COMPILED, MEASURED, Source
from lrfc.system import reader

_FORMAT = 1
#: Seconds to wait for another process that writes.
_BUSY = 30.0
#: What no figure of a sample exceeds.
GREATEST = 1e30


@dataclass(frozen=True)
class Key:
    """What was measured, and how: ``subject`` is 'op:' with the text of a Workload, or 'model:' with the SHA-256 of a file."""

    device: str
    runtime: str
    runtime_version: str
    format: str
    precision: str
    threads: int
    subject: str

    @property
    def source(self) -> Source:
        """Where the figures come from: a compiler has its name in the place of the runtime's."""
        return COMPILED if self.runtime == "Vela" else MEASURED


@dataclass(frozen=True)
class Sample:
    """The times of one subject: milliseconds, or cycles for devices that count them.

    ``n`` timings; ``when``: UTC, ISO 8601.
    """

    median: float
    p90: float
    iqr: float
    n: int
    when: str


@dataclass(frozen=True)
class Entry:
    """One line of the history."""

    key: Key
    sample: Sample


_KEY, _SAMPLE = (", ".join(f'"{field.name}"' for field in fields(kind)) for kind in (Key, Sample))
_TABLE = f"measured_{_FORMAT}"
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {_TABLE} ({_KEY}, {_SAMPLE}, PRIMARY KEY ({_KEY}))"


def of_op(workload: Workload) -> str:
    """The subject that stands for an op."""
    return f"op:{workload}"


def of_model(sha256: str) -> str:
    """The subject that stands for a file."""
    return f"model:{sha256}"


def place() -> Path:
    """The file: in the folder that LRFC_CACHE names, or in the platform's cache folder."""
    return (
        Path(os.environ.get("LRFC_CACHE") or platformdirs.user_cache_dir("lrfc", appauthor=False))
        / "measurements.sqlite"
    )


def _sample(row: Sequence[Any]) -> Sample | None:
    """What a row of the file says; None when it is damaged: it is measured anew, and written over."""
    *numbers, when = row
    if not all(
        isinstance(n, int | float) and 0 <= n <= GREATEST for n in numbers
    ) or not isinstance(when, str):
        return None
    return Sample(*row)


class Store:
    """Measurements in an SQLite file, which several processes may use at once.

    A damaged file is set aside under another name, with one line to ``log``, and a new one begun.
    Where none can be written, that is said once and nothing is kept: measuring anew is always
    right.
    """

    def __init__(
        self, path: Path | None = None, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._path, self._log = path or place(), log
        self._usable = True
        self._do(_SCHEMA, write=True)

    def put(self, samples: Mapping[Key, Sample]) -> None:
        """Keep samples, in one transaction; a subject measured again has its last one."""
        marks = ", ".join("?" * (len(fields(Key)) + len(fields(Sample))))
        rows = [(*astuple(key), *astuple(sample)) for key, sample in samples.items()]
        self._do(f"INSERT OR REPLACE INTO {_TABLE} VALUES ({marks})", rows, write=True)  # noqa: S608 - our own names

    def get(self, keys: Iterable[Key]) -> dict[Key, Sample]:
        """What is known of those."""
        where = " AND ".join(f"{field.name} = ?" for field in fields(Key))
        wanted = f"SELECT {_SAMPLE} FROM {_TABLE} WHERE {where}"  # noqa: S608 - our own names
        asked = list(keys)
        found = zip(asked, self._do(wanted, [astuple(key) for key in asked]), strict=False)
        return {
            key: sample for key, rows in found if rows and (sample := _sample(rows[0])) is not None
        }

    def history(self, device: str | None = None) -> list[Entry]:
        """Everything that is kept, of one device or of all, the oldest first."""
        where, values = ("WHERE device = ?", (device,)) if device is not None else ("", ())
        found = self._do(f'SELECT * FROM {_TABLE} {where} ORDER BY "when", rowid', [values])  # noqa: S608 - our own names
        width = len(fields(Key))
        return [
            Entry(Key(*row[:width]), sample)
            for rows in found
            for row in rows
            if (sample := _sample(row[width:])) is not None
        ]

    def _do(
        self, statement: str, values: Iterable[tuple[Any, ...]] = ((),), *, write: bool = False
    ) -> list[list[tuple[Any, ...]]]:
        """The rows that the statement gives for each tuple of values; nothing when the file cannot be used."""
        if not self._usable:
            return []
        rows = list(values)
        try:
            try:
                return self._run(statement, rows, write=write)
            except (
                sqlite3.OperationalError
            ):  # locked for too long, no room, not allowed: the file itself may be whole
                raise
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return self._run(statement, rows, write=write)
        except (sqlite3.Error, OSError, UsageError) as error:
            self._usable = False
            self._log(
                f"the measurements in {self._path} cannot be used ({error}): measuring without them"
            )
            return []

    def _run(
        self, statement: str, rows: list[tuple[Any, ...]], *, write: bool
    ) -> list[list[tuple[Any, ...]]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if reader.kind(self._path) not in (None, "a file"):  # SQLite would wait for a pipe
            raise OSError(f"it is {reader.kind(self._path)}")
        with closing(sqlite3.connect(self._path, timeout=_BUSY)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            with database:
                if write:
                    database.execute(
                        "BEGIN IMMEDIATE"
                    )  # waits for its turn; a read that turns into a write could not
                return [database.execute(statement, row).fetchall() for row in rows]

    def _set_aside(self, error: sqlite3.Error) -> None:
        damaged = self._path.with_name(
            f"{self._path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        )
        self._path.rename(damaged)
        for extra in ("-wal", "-shm"):
            self._path.with_name(self._path.name + extra).unlink(missing_ok=True)
        self._log(
            f"the measurements in {self._path} cannot be read ({error}); they are now"
            f" {damaged.name}, and a new file is begun"
        )
        self._run(_SCHEMA, [()], write=True)


def now() -> str:
    """The time of a sample."""
    return datetime.now(UTC).isoformat(timespec="seconds")
