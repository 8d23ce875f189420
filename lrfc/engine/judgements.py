"""Judgements of plans, stored between builds."""

from __future__ import annotations

import json
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError

from lrfc.engine.judgement import Depth, Judgement
from lrfc.errors import UsageError
from lrfc.ir.fingerprint import digest
from lrfc.pruning.facts import Selection
from lrfc.system import reader
from lrfc.system.database import Database, cache_file

#: Largest number of entries; the oldest are deleted.
KEPT = 20_000
#: Raised whenever plans are judged in another way: older entries never match then.
_FORMAT = 1
_SCHEMA = "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, found TEXT)"


class _Entry(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    divergence: float
    drop: float
    margin: float
    unit: str


class Judgements:
    """Judgements of earlier builds, by all that they depend on.

    ``parts``: the original, the samples and all else that judgements depend on. Without a usable
    file (see ``lrfc.system.database``) every plan is judged again.
    """

    def __init__(self, log: Callable[[str], None], *parts: object) -> None:
        from lrfc.version import __version__

        self._database = Database(cache_file("judged.sqlite"), _SCHEMA, log)
        self._base = digest(__version__, _FORMAT, *parts)

    def get(self, selection: Selection, depth: Depth) -> Judgement | None:
        """The judgement of a plan at that depth; None where there is no intact entry."""
        query = "SELECT found FROM judgements WHERE key = ?"
        key = self._key(selection, depth)
        for rows in self._database.read(query, [(key,)]):
            for (text,) in rows:
                try:
                    entry = _Entry.model_validate(reader.json_object(text, "the entry"))
                except (TypeError, ValidationError, UsageError):
                    continue  # damaged: the plan is judged again and the entry replaced
                return Judgement(**entry.model_dump())
        return None

    def put(self, selection: Selection, depth: Depth, judgement: Judgement) -> None:
        """Store the judgement of a plan at that depth."""
        row = self._key(selection, depth), json.dumps(vars(judgement))
        self._database.write("INSERT OR REPLACE INTO judgements VALUES (?, ?)", [row])
        self._database.write(
            "DELETE FROM judgements WHERE rowid <= (SELECT MAX(rowid) FROM judgements) - ?",
            [(KEPT,)],
        )

    def _key(self, selection: Selection, depth: Depth) -> str:
        # The errors tell apart candidates of one rank that were fitted to other samples.
        errors = [candidate.error for candidate in selection.chosen]
        units = [(name, tuple(keep.units)) for name, keep in selection.keeps.items()]
        return digest(self._base, depth, selection.network, errors, units)
