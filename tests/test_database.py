"""The SQLite files of caches: paths, damage, and files that cannot be used."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lrfc.system.database import Database, cache_file

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (value)"
INSERT, QUERY = "INSERT INTO numbers VALUES (?)", "SELECT value FROM numbers ORDER BY value"


def test_the_environment_names_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    assert cache_file("x.sqlite") == tmp_path / "cache" / "x.sqlite"
    monkeypatch.delenv("LRFC_CACHE")
    assert cache_file("x.sqlite").parent.name == "lrfc"


def test_rows_are_read_by_another_instance(tmp_path) -> None:
    path, lines = tmp_path / "new" / "x.sqlite", []
    Database(path, SCHEMA, lines.append).write(INSERT, [(1,), (2,)])
    other = Database(path, SCHEMA, lines.append)
    assert other.read(QUERY) == [[(1,), (2,)]]
    assert other.read("SELECT ? + 1", [(1,), (5,)]) == [[(2,)], [(6,)]]
    assert lines == []


def test_a_failed_write_leaves_no_rows_and_the_file(tmp_path) -> None:
    path, lines = tmp_path / "x.sqlite", []
    unique = "CREATE TABLE IF NOT EXISTS numbers (value UNIQUE)"
    Database(path, unique, lines.append).write(INSERT, [(1,), (1,)])
    assert len(lines) == 1
    assert Database(path, unique, lines.append).read(QUERY) == [[]]
    assert list(tmp_path.glob("*.damaged-*")) == []


def test_damage_is_set_aside_once(tmp_path) -> None:
    path, lines = tmp_path / "x.sqlite", []
    path.write_bytes(b"no database " * 500)
    database = Database(path, SCHEMA, lines.append)
    database.write(INSERT, [(1,)])
    assert database.read(QUERY) == [[(1,)]]
    (aside,) = tmp_path.glob("x.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"no database")
    assert len(lines) == 1
    assert aside.name in lines[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused(tmp_path) -> None:
    path, lines = tmp_path / "pipe", []
    os.mkfifo(path)
    database = Database(path, SCHEMA, lines.append)
    database.write(INSERT, [(1,)])
    assert database.read(QUERY) == []
    assert len(lines) == 1
    assert "it is a pipe" in lines[0]


def test_a_locked_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrfc.system.database._BUSY", 0.01)
    path, lines = tmp_path / "x.sqlite", []
    database = Database(path, SCHEMA, lines.append)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        database.write(INSERT, [(1,)])
    assert len(lines) == 1
    assert "locked" in lines[0]
    assert list(tmp_path.glob("*.damaged-*")) == []
