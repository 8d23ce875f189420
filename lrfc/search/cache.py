"""What exploration found out about each layer, kept between builds and found again by content."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import platformdirs
from pydantic import BaseModel, Field, ValidationError

from lrfc.errors import UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.search.candidates import Candidate
from lrfc.system import reader

#: Entries that are kept; the oldest go first.
KEPT = 20_000
_FORMAT = 2


def place() -> Path:
    """The file: in the folder that LRFC_CACHE names, or in the platform's cache folder."""
    return (
        Path(os.environ.get("LRFC_CACHE") or platformdirs.user_cache_dir("lrfc", appauthor=False))
        / "explored.sqlite"
    )


def fingerprint(graph: Graph, inputs: Batch, options: Any) -> str:
    """A hash of everything that decides what exploration finds: the graph with its weights, the inputs looked at, the options, and the file's format."""
    from lrfc.version import __version__

    digest = hashlib.sha256(repr((__version__, _FORMAT, options)).encode())
    for op in graph:
        digest.update(
            repr(
                (
                    op.name,
                    op.kind,
                    sorted(op.attrs.items(), key=str),
                    op.shared,
                    graph.operands(op.name),
                    list(op.weights),
                )
            ).encode()
        )
        for weight in op.weights.values():
            digest.update(
                repr((weight.shape, weight.dtype)).encode() + np.ascontiguousarray(weight).tobytes()
            )
    for values in inputs:
        digest.update(
            repr((values.shape, values.dtype)).encode() + np.ascontiguousarray(values).tobytes()
        )
    return digest.hexdigest()


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Found(BaseModel):
    """An entry: candidates as (method, ranks, params, macs, error, impact), and why there are no others, by method."""

    candidates: list[tuple[str | None, tuple[_Count, ...], _Count, _Count, _Figure, _Figure]]
    refusals: dict[str, str]


class Store:
    """Candidates and refusals of layers, by fingerprint and layer name.

    A layer is written as soon as it is explored, so that a build that was killed goes on from
    there. A store that cannot be read or written is named once by ``log`` and not used: exploring
    anew is always right.
    """

    def __init__(self, path: Path, key: str, log: Callable[[str], None]) -> None:
        self._path, self._key, self._log = path, key, log
        self._usable = True
        self._do(
            "CREATE TABLE IF NOT EXISTS layers (key TEXT, layer TEXT, found TEXT, PRIMARY KEY (key,"
            " layer))",
            (),
        )

    def get(self, layer: str) -> tuple[tuple[Candidate, ...], dict[str, str]] | None:
        """What is known of a layer; None when nothing is."""
        rows = self._do("SELECT found FROM layers WHERE key = ? AND layer = ?", (self._key, layer))
        if not rows:
            return None
        try:
            found = _Found.model_validate(reader.json_object(rows[0][0], "the entry"))
        except (TypeError, ValidationError, UsageError):
            return None  # damaged: it is explored and written anew
        return tuple(Candidate(layer, *row) for row in found.candidates), found.refusals

    def put(self, layer: str, candidates: Sequence[Candidate], refusals: Mapping[str, str]) -> None:
        """Keep what was found out about a layer."""
        rows = [(c.method, c.ranks, c.params, c.macs, c.error, c.divergence) for c in candidates]
        found = json.dumps({"candidates": rows, "refusals": dict(refusals)})
        self._do("INSERT OR REPLACE INTO layers VALUES (?, ?, ?)", (self._key, layer, found))
        self._do("DELETE FROM layers WHERE rowid <= (SELECT MAX(rowid) FROM layers) - ?", (KEPT,))

    def _do(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        if not self._usable:
            return []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if reader.kind(self._path) not in (None, "a file"):  # SQLite would wait for a pipe
                raise OSError(f"it is {reader.kind(self._path)}")
            with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
                return database.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError, UsageError) as error:
            self._usable = False
            self._log(f"the cache {self._path} cannot be used ({error}): exploring without it")
            return []
