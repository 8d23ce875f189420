"""The cache of explored layers: candidates and refusals, stored between builds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from lrfc.errors import UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.fingerprint import digest
from lrfc.ir.graph import Graph
from lrfc.search.candidates import Candidate
from lrfc.system import reader
from lrfc.system.database import Database, cache_file

#: Largest number of entries; the oldest are deleted.
KEPT = 20_000
#: Raised whenever entries, fingerprints or what is explored change: older entries never match then.
_FORMAT = 5
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS layers (key TEXT, layer TEXT, found TEXT, PRIMARY KEY (key, layer))"
)


def place() -> Path:
    """The path of the cache file."""
    return cache_file("explored.sqlite")


def fingerprint(graph: Graph, inputs: Batch, options: Any) -> str:
    """The digest of all that exploration depends on: graph, calibration inputs and options."""
    from lrfc.version import __version__

    return digest(__version__, _FORMAT, options, graph, *inputs)


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Entry(BaseModel):
    """The exploration of one layer.

    ``candidates``: rows of (method, ranks, params, macs, error, divergence). ``refusals``: by
    method, the reason why it has no candidates.
    """

    candidates: list[tuple[str | None, tuple[_Count, ...], _Count, _Count, _Figure, _Figure]]
    refusals: dict[str, str]


class Store:
    """Candidates and refusals of layers, by fingerprint and layer name.

    A layer is written as soon as it is explored, so that a build resumes after a kill. Without a
    usable file (see ``lrfc.system.database``) every layer is explored again.
    """

    def __init__(self, path: Path, key: str, log: Callable[[str], None]) -> None:
        self._database, self._key = Database(path, _SCHEMA, log), key

    def get(self, layer: str) -> tuple[tuple[Candidate, ...], dict[str, str]] | None:
        """The candidates and refusals of a layer; None where there is no intact entry."""
        query = "SELECT found FROM layers WHERE key = ? AND layer = ?"
        rows = [row for rows in self._database.read(query, [(self._key, layer)]) for row in rows]
        if not rows:
            return None
        try:
            entry = _Entry.model_validate(reader.json_object(rows[0][0], "the entry"))
        except (TypeError, ValidationError, UsageError):
            return None  # damaged: the layer is explored again and the entry replaced
        return tuple(Candidate(layer, *row) for row in entry.candidates), entry.refusals

    def put(self, layer: str, candidates: Sequence[Candidate], refusals: Mapping[str, str]) -> None:
        """Store the candidates and refusals of a layer."""
        rows = [(c.method, c.ranks, c.params, c.macs, c.error, c.divergence) for c in candidates]
        entry = json.dumps({"candidates": rows, "refusals": dict(refusals)})
        self._database.write(
            "INSERT OR REPLACE INTO layers VALUES (?, ?, ?)", [(self._key, layer, entry)]
        )
        self._database.write(
            "DELETE FROM layers WHERE rowid <= (SELECT MAX(rowid) FROM layers) - ?", [(KEPT,)]
        )
