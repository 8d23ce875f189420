"""SQLite files of results that can be computed again: shared by processes, never in the way."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs

from lrfc.errors import UsageError
from lrfc.system import reader

#: Seconds to wait for another process that writes.
_BUSY = 30.0

#: The parameters of one execution of a statement.
Parameters = tuple[object, ...]
#: The rows that one execution returns.
Rows = list[tuple[Any, ...]]


def cache_file(name: str) -> Path:
    """The path of a cache file: in the folder LRFC_CACHE, or in the platform's cache folder."""
    folder = os.environ.get("LRFC_CACHE") or platformdirs.user_cache_dir("lrfc", appauthor=False)
    return Path(folder) / name


class Database:
    """An SQLite file, which several processes may use at once.

    Every call opens the file, runs in one transaction and closes it. A damaged file is renamed and
    a new one begun, with one line to ``log``. Where the file cannot be used at all, ``log`` gets
    one line, and from then on reads return nothing and writes do nothing.
    """

    def __init__(self, path: Path, schema: str, log: Callable[[str], None]) -> None:
        self._path, self._schema, self._log = path, schema, log
        self._usable = True
        self.write(schema)

    def read(self, query: str, parameters: Iterable[Parameters] = ((),)) -> list[Rows]:
        """The result of the query for each tuple of parameters; empty without a usable file."""
        return self._execute(query, list(parameters), write=False)

    def write(self, statement: str, parameters: Iterable[Parameters] = ((),)) -> None:
        """Execute the statement for each tuple of parameters, all or none of them."""
        self._execute(statement, list(parameters), write=True)

    def _execute(self, statement: str, parameters: list[Parameters], *, write: bool) -> list[Rows]:
        if not self._usable:
            return []
        try:
            try:
                return self._transaction(statement, parameters, write=write)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise  # locked for too long, no space, no permission: the file may be whole
                self._set_aside(error)
                return self._transaction(statement, parameters, write=write)
        except (sqlite3.Error, OSError, UsageError) as error:
            self._usable = False
            self._log(f"the cache {self._path} cannot be used ({error}): continuing without it")
            return []

    def _transaction(
        self, statement: str, parameters: list[Parameters], *, write: bool
    ) -> list[Rows]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kind = reader.kind(self._path)
        if kind not in (None, "a file"):  # SQLite would wait for the writer of a pipe
            raise OSError(f"it is {kind}")
        with closing(sqlite3.connect(self._path, timeout=_BUSY)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                if write:
                    # Waits for its turn; a read that turns into a write could not.
                    connection.execute("BEGIN IMMEDIATE")
                return [connection.execute(statement, row).fetchall() for row in parameters]

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename the damaged file and begin a new one."""
        damaged = self._path.with_name(
            f"{self._path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        )
        self._path.rename(damaged)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._log(
            f"the cache {self._path} is damaged ({error}): it is renamed to {damaged.name}, and a"
            " new one is begun"
        )
        self._transaction(self._schema, [()], write=True)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
