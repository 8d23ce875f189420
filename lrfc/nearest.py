"""Suggest the nearest known word for an unknown one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def like(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ": did you mean '…'?" with the nearest of the words; "" where none is near.

    Case is ignored, and '-' equals '_'. ``cutoff``: the least similarity, as in
    ``difflib.get_close_matches``.
    """
    known = {_plain(candidate): candidate for candidate in words}
    close = difflib.get_close_matches(_plain(word), known, 1, cutoff)
    return f": did you mean '{known[close[0]]}'?" if close else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
