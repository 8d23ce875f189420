"""candidates.csv: every choice that was weighed for every layer, and what it says about the one that was taken."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfc.errors import UsageError
from lrfc.metrics.outcome import GREATEST, MOST
from lrfc.results.manifest import Layer
from lrfc.system import reader
from lrfc.text import parse_ranks, ranks

if TYPE_CHECKING:
    from lrfc.search.candidates import LayerSpace

NAME = "candidates.csv"
_COLUMNS = (
    "layer",
    "method",
    "rank",
    "params",
    "macs",
    "similarity",
    "impact",
    "latency",
    "dominated",
    "chosen",
)


@dataclass(frozen=True)
class Row:
    """One candidate.

    ``method`` is None for the layer as it is; ``impact`` the predicted divergence of the network's
    outputs; ``similarity`` 1 − relative L2; ``latency`` the predicted one, in the unit of the
    device's cost profile, None where no device was known.
    """

    layer: str
    method: str | None
    rank: str
    params: int
    macs: int
    similarity: float
    impact: float
    latency: float | None
    dominated: bool
    chosen: bool

    @property
    def label(self) -> str:
        """Method and rank, as people say it."""
        return f"{self.method} {self.rank}" if self.method else "as it is"


def write(
    folder: Path,
    spaces: Sequence[LayerSpace],
    chosen: Mapping[str, tuple[str | None, tuple[int, ...]]],
) -> Path:
    """Write the file.

    ``chosen``: layer → (method, ranks) of the candidate taken; empty when nothing was.
    """
    from lrfc.search.candidates import pareto

    path = folder / NAME
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for space in spaces:
            kept = {id(c) for c in pareto(space.candidates)}
            for c in space.candidates:
                taken = chosen.get(c.layer) == (c.method, c.ranks)
                latency = f"{c.latency:.6g}" if space.whole.latency else ""
                numbers = (
                    c.params,
                    c.macs,
                    f"{1 - c.error:.6g}",
                    f"{c.divergence:.6g}",
                    latency,
                    int(id(c) not in kept),
                    int(taken),
                )
                writer.writerow((c.layer, c.method or "", ranks(c.ranks), *numbers))
    return path


def read(folder: Path) -> tuple[Row, ...]:
    """The rows; UsageError when the folder has no such file or it is damaged."""
    path = folder / NAME
    if reader.kind(path) is None:
        raise UsageError(
            f"'{folder}' holds no exploration: it has no readable {NAME}; make one with lrfc build"
            " or lrfc explore"
        )
    try:
        table = csv.DictReader(io.StringIO(reader.contents(path).decode(), newline=""), strict=True)
        return tuple(_row(reader.plain(record)) for record in table)
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"'{path}' is damaged: {reader.shown(error)}") from error


def _row(record: Mapping[str, str]) -> Row:
    return Row(
        layer=record["layer"],
        method=record["method"] or None,
        rank=ranks(parse_ranks(record["rank"])),
        params=_count(record["params"]),
        macs=_count(record["macs"]),
        similarity=_number(record["similarity"]),
        impact=_number(record["impact"]),
        latency=_number(record["latency"]) if record["latency"] else None,
        dominated=record["dominated"] == "1",
        chosen=record["chosen"] == "1",
    )


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) <= GREATEST:
        raise ValueError(f"{text} is no figure of a layer")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MOST:
        raise ValueError(f"{text} is no count")
    return value


# -- why this one ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """One layer: its candidates, the one taken (None in an exploration), and one sentence for each neighbour that was not.

    ``built``: what a build made of it, whose costs are less than those of the candidate taken where
    filters of it, or of what it reads, are gone.
    """

    layer: str
    rows: tuple[Row, ...]
    chosen: Row | None
    sentences: tuple[str, ...]
    built: Layer | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {
            "built": None if self.built is None else self.built.model_dump(mode="json")
        }


def explain(rows: Sequence[Row], layer: str, built: Sequence[Layer] = ()) -> Explanation:
    """Why a layer's candidate was taken and its neighbours were not.

    ``built``: the layers of the build's manifest.

    UsageError, with the layers there are, when none has that name.
    """
    from lrfc.pruning.selection import LEFT_ASIDE

    own = tuple(row for row in rows if row.layer == layer)
    made = next((each for each in built if each.name == layer), None)
    if not own and made is None:
        names = dict.fromkeys([*(row.layer for row in rows), *(each.name for each in built)])
        raise UsageError(f"no layer '{layer}' was explored; the layers are {', '.join(names)}")

    chosen = next((row for row in own if row.chosen), None)
    if chosen is None or (made is not None and made.reason == LEFT_ASIDE):
        return Explanation(layer, own, chosen, (), made)
    sentences = []
    for name, row in _neighbours(own, chosen):
        more, less = row.macs - chosen.macs, chosen.impact - row.impact
        told = (
            f"{name}, {row.label}: {more:+,} MACs, {row.params - chosen.params:+,} parameters,"
            f" predicted divergence {-less:+.3g}"
        )
        if more > 0 and less > 0:
            other = _best_elsewhere(rows, layer, more)
            if other is not None and other[1] >= less:
                told += (
                    f"; the same MACs do more at {other[0].layer} ({other[0].label}:"
                    f" {-other[1]:+.3g})"
                )
            else:
                told += "; the budget has no room for it"
        elif more <= 0 and less < 0:
            told += (
                "; it saves MACs, but its effect on the output is larger than what the MACs are"
                " worth elsewhere"
            )
        elif more >= 0 and less <= 0:
            told += (
                "; it is worse and saves nothing"
                if row.params >= chosen.params
                else "; it saves parameters only"
            )
        sentences.append(told)
    return Explanation(layer, own, chosen, tuple(sentences), made)


def _neighbours(own: Sequence[Row], chosen: Row) -> list[tuple[str, Row]]:
    """The next smaller and larger rank of the same method, and of each other method what is nearest in MACs."""
    found = []
    same = sorted(
        (r for r in own if r.method == chosen.method and r is not chosen), key=lambda r: r.macs
    )
    smaller, larger = (
        [r for r in same if r.macs < chosen.macs],
        [r for r in same if r.macs > chosen.macs],
    )
    if smaller:
        found.append(("smaller", smaller[-1]))
    if larger:
        found.append(("larger", larger[0]))
    for method in dict.fromkeys(r.method for r in own if r.method != chosen.method):
        others = [r for r in own if r.method == method]
        below = [r for r in others if r.macs <= chosen.macs]
        best = min(below, key=lambda r: r.impact) if below else min(others, key=lambda r: r.macs)
        found.append(("instead", best))
    return found


def _best_elsewhere(rows: Sequence[Row], layer: str, macs: int) -> tuple[Row, float] | None:
    """Of all single changes at other layers that cost at most so many MACs more, the one that lowers the divergence most, and by how much."""
    taken = {row.layer: row for row in rows if row.chosen}
    moves = [
        (row, taken[row.layer].impact - row.impact)
        for row in rows
        if row.layer != layer
        and row.layer in taken
        and 0 < row.macs - taken[row.layer].macs <= macs
    ]
    return max(moves, key=lambda move: move[1]) if moves else None
