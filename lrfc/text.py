"""Text of quantities (counts, bytes, shares, factors, times, ranks), and of near misses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

#: The text of a figure that is not known.
NONE = "—"
_HYPHEN = re.compile("(?<!e)-")
_RANKS = re.compile(r"[0-9]+(?:x[0-9]+)*", re.ASCII)


def count(value: float | None) -> str:
    """A number of things: 12,345."""
    return NONE if value is None else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits, or to the unit: 0.1235, 12,346."""
    if value is None:
        return NONE
    whole = abs(value) >= 10**digits - 0.5
    return minus(f"{value:,.0f}" if whole else f"{value:.{digits}g}")


def size(value: float | None) -> str:
    """A number of bytes with four significant digits: 800 B, 1.5 KiB, 320 KiB."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def exact_size(value: float | None) -> str:
    """A number of bytes to the byte: 800 bytes, 1.5 KiB (1,536 bytes)."""
    if value is None:
        return NONE
    exact = f"{value:,.0f} bytes"
    return exact if value < 1024 else f"{size(value)} ({exact})"


def percent(fraction: float | None, decimals: int = 2) -> str:
    """A fraction of 1 in percent: 41.18 %."""
    if fraction is None:
        return NONE
    return minus(f"{100 * fraction:.{decimals}f} %") if fraction else "0 %"


def confidence(level: float) -> str:
    """A confidence level in percent, without trailing zeros: 95 %, 99.5 %."""
    return f"{100 * level:g} %"


def relative_change(before: float | None, after: float | None) -> str:
    """The relative change of a figure: −60.00 %; empty for no change and for no figure."""
    if before is None or after is None or not before or before == after:
        return ""
    return minus(f"{100 * (after / before - 1):+.2f} %")


def points(drop: float, unit: str | None) -> str:
    """A drop of a score, a fraction of 1, times 100 in its unit: 0.40 pp."""
    return minus(f"{100 * drop:.2f} {unit or 'pp'}")


def score(value: float, *, percent: bool) -> str:
    """A score: a fraction of 1 as 97.50 %, any other with four significant digits."""
    return minus(f"{100 * value:.2f} %") if percent else decimal(value)


def factor(value: float | None) -> str:
    """A ratio of two figures: ×1.80."""
    return NONE if value is None else f"×{value:.2f}"


def milliseconds(value: float | None) -> str:
    """A time in milliseconds with four significant digits: 1.234 ms."""
    return NONE if value is None else f"{decimal(value)} ms"


def ranks(values: Iterable[int] | None) -> str:
    """The ranks of a factorization: 8 for one, 4x8 for two; empty for none."""
    return "x".join(map(str, values or ()))


def parse_ranks(text: str) -> tuple[int, ...]:
    """Return the ranks that ``ranks`` has written; ValueError for any other text."""
    if not text:
        return ()
    if _RANKS.fullmatch(text) is None:
        raise ValueError(f"'{text}' is not a rank: write 8, or 4x8 for two")
    return tuple(map(int, text.split("x")))


def shape(sizes: Sequence[int | None]) -> str:
    """The shape of a tensor: 32×32×3; ? for a size that is not fixed."""
    return "×".join("?" if each is None else str(each) for each in sizes)


def minus(text: str) -> str:
    """The text with minus signs in place of hyphens, but for exponents: −1e-07."""
    return _HYPHEN.sub("−", text)


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
