"""The nearest of the known words to one that is not among them, for the line that refuses it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def like(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """': did you mean '…'?' with the nearest of the words; nothing where none is near.

    Case, and '-' in the place of '_', do not count. ``cutoff``: how alike they have to be, see
    ``difflib.get_close_matches``.
    """
    known = {_plain(each): each for each in words}
    close = difflib.get_close_matches(_plain(word), known, 1, cutoff)
    return f": did you mean '{known[close[0]]}'?" if close else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
