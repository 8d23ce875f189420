"""Measurements on devices, stored between calibrations and builds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrfc.costs.workload import Workload
from lrfc.metrics.source import COMPILED, MEASURED, Source
from lrfc.system.database import Database, cache_file

_FORMAT = 1
#: The largest figure that a sample may have.
GREATEST = 1e30


@dataclass(frozen=True)
class Key:
    """The subject of a measurement and its conditions.

    ``subject``: 'op:' and the text of a Workload, or 'model:' and the SHA-256 of a file.
    """

    device: str
    runtime: str
    runtime_version: str
    format: str
    precision: str
    threads: int
    subject: str

    @property
    def source(self) -> Source:
        """The source of the figures; for a compiler, ``runtime`` is its name."""
        return COMPILED if self.runtime == "Vela" else MEASURED


@dataclass(frozen=True)
class Sample:
    """The times of one subject, in milliseconds, or in cycles for devices that count them.

    ``n``: number of timings. ``when``: UTC, ISO 8601.
    """

    median: float
    p90: float
    iqr: float
    n: int
    when: str


@dataclass(frozen=True)
class Entry:
    """One measurement of the history."""

    key: Key
    sample: Sample


# These are the only names in the statements below, which is why S608 does not apply to them.
_KEY, _SAMPLE = (", ".join(f'"{field.name}"' for field in fields(kind)) for kind in (Key, Sample))
_TABLE = f"measured_{_FORMAT}"
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {_TABLE} ({_KEY}, {_SAMPLE}, PRIMARY KEY ({_KEY}))"


def of_op(workload: Workload) -> str:
    """The subject of an op's measurements."""
    return f"op:{workload}"


def of_model(sha256: str) -> str:
    """The subject of a file's measurements, by the SHA-256 of the file."""
    return f"model:{sha256}"


def place() -> Path:
    """The path of the cache file."""
    return cache_file("measurements.sqlite")


def _sample(row: Sequence[Any]) -> Sample | None:
    """The sample in a row of the file; None where it is damaged and has to be measured again."""
    *numbers, when = row
    plausible = all(isinstance(n, int | float) and 0 <= n <= GREATEST for n in numbers)
    return Sample(*row) if plausible and isinstance(when, str) else None


class Store:
    """The measurements in the cache file, see ``lrfc.system.database``."""

    def __init__(
        self, path: Path | None = None, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._database = Database(path or place(), _SCHEMA, log)

    def put(self, samples: Mapping[Key, Sample]) -> None:
        """Store samples, all or none; a new sample replaces the one of the same key."""
        marks = ", ".join("?" * (len(fields(Key)) + len(fields(Sample))))
        rows = [(*astuple(key), *astuple(sample)) for key, sample in samples.items()]
        statement = f"INSERT OR REPLACE INTO {_TABLE} VALUES ({marks})"  # noqa: S608
        self._database.write(statement, rows)

    def get(self, keys: Iterable[Key]) -> dict[Key, Sample]:
        """The samples of those keys that have been measured."""
        where = " AND ".join(f"{field.name} = ?" for field in fields(Key))
        query = f"SELECT {_SAMPLE} FROM {_TABLE} WHERE {where}"  # noqa: S608
        listed = list(keys)
        results = self._database.read(query, [astuple(key) for key in listed])
        return {
            key: sample
            for key, rows in zip(listed, results, strict=False)  # no results without a usable file
            if rows and (sample := _sample(rows[0])) is not None
        }

    def history(self, device: str | None = None) -> list[Entry]:
        """All entries, of one device or of all, the oldest first."""
        where, values = ("WHERE device = ?", (device,)) if device is not None else ("", ())
        query = f'SELECT * FROM {_TABLE} {where} ORDER BY "when", rowid'  # noqa: S608
        width = len(fields(Key))
        return [
            Entry(Key(*row[:width]), sample)
            for rows in self._database.read(query, [values])
            for row in rows
            if (sample := _sample(row[width:])) is not None
        ]


def now() -> str:
    """The current time in UTC, as in ``Sample.when``."""
    return datetime.now(UTC).isoformat(timespec="seconds")
