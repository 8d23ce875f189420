"""candidates.csv: the candidates of every layer, and the reasons for the chosen one."""

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
from lrfc.text import minus, parse_ranks, ranks

if TYPE_CHECKING:
    from lrfc.search.candidates import LayerSpace

NAME = "candidates.csv"
#: The label of a layer that is not factorized.
UNCHANGED = "unchanged"
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

    ``method``: None for the unchanged layer. ``impact``: the predicted divergence of the network's
    outputs. ``similarity``: 1 − the relative L2 error. ``latency``: predicted, in the unit of the
    device's cost profile; None without a device.
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
        """Method and rank, as text."""
        return f"{self.method} {self.rank}" if self.method else UNCHANGED


def write(
    folder: Path,
    spaces: Sequence[LayerSpace],
    chosen: Mapping[str, tuple[str | None, tuple[int, ...]]],
) -> Path:
    """Write the file.

    ``chosen``: layer → (method, ranks) of the chosen candidate; empty for an exploration.
    """
    from lrfc.search.candidates import pareto

    path = folder / NAME
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for space in spaces:
            undominated = {id(c) for c in pareto(space.candidates)}
            for c in space.candidates:
                latency = f"{c.latency:.6g}" if space.whole.latency else ""
                numbers = (
                    c.params,
                    c.macs,
                    f"{1 - c.error:.6g}",
                    f"{c.divergence:.6g}",
                    latency,
                    int(id(c) not in undominated),
                    int(chosen.get(c.layer) == (c.method, c.ranks)),
                )
                writer.writerow((c.layer, c.method or "", ranks(c.ranks), *numbers))
    return path


def read(folder: Path) -> tuple[Row, ...]:
    """Read the rows; UsageError when the folder has no such file or it is damaged."""
    path = folder / NAME
    if reader.kind(path) is None:
        raise UsageError(
            f"'{folder}' holds no exploration: it has no readable {NAME}; create one with lrfc"
            " build or lrfc explore"
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


# -- reasons ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """The choice for one layer, with its reasons.

    ``rows``: all candidates. ``chosen``: None in an exploration. ``sentences``: one for each
    neighbour of the chosen candidate. ``built``: the layer in the build's manifest; it costs less
    than the chosen candidate where pruning removed filters of it or channels that it reads.
    """

    layer: str
    rows: tuple[Row, ...]
    chosen: Row | None
    sentences: tuple[str, ...]
    built: Layer | None = None

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain values."""
        return asdict(self) | {
            "built": None if self.built is None else self.built.model_dump(mode="json")
        }


def explain(rows: Sequence[Row], layer: str, built: Sequence[Layer] = ()) -> Explanation:
    """Return why a layer's candidate was chosen and its neighbours were not.

    ``built``: the layers of the build's manifest. UsageError, with the names of the layers, when
    none has that name.
    """
    from lrfc.pruning.selection import LEFT_ASIDE

    candidates = tuple(row for row in rows if row.layer == layer)
    record = next((record for record in built if record.name == layer), None)
    if not candidates and record is None:
        names = dict.fromkeys([*(row.layer for row in rows), *(record.name for record in built)])
        raise UsageError(f"no layer '{layer}' was explored; the layers are {', '.join(names)}")

    chosen = next((row for row in candidates if row.chosen), None)
    if chosen is None or (record is not None and record.reason == LEFT_ASIDE):
        return Explanation(layer, candidates, chosen, (), record)
    sentences = tuple(
        f"{relation}, {_difference(row, chosen)}{_reason(row, chosen, rows)}"
        for relation, row in _neighbours(candidates, chosen)
    )
    return Explanation(layer, candidates, chosen, sentences, record)


def _difference(row: Row, chosen: Row) -> str:
    """The costs and the divergence of a candidate relative to the chosen one."""
    costs = minus(f"{row.macs - chosen.macs:+,} MACs, {row.params - chosen.params:+,} parameters")
    divergence = minus(f"{row.impact - chosen.impact:+.3g}")
    return f"{row.label}: {costs}, predicted divergence {divergence}"


def _reason(row: Row, chosen: Row, rows: Sequence[Row]) -> str:
    """Why a candidate was not chosen; empty where the figures do not say it."""
    macs, gain = row.macs - chosen.macs, chosen.impact - row.impact
    if macs > 0 and gain > 0:
        other = _best_elsewhere(rows, row.layer, macs)
        if other is None or other[1] < gain:
            return "; it does not fit the budget"
        better, divergence = other[0], minus(f"{-other[1]:+.3g}")
        return (
            f"; the same MACs are worth more in layer {better.layer} ({better.label}: {divergence})"
        )
    if macs >= 0 and gain <= 0:
        if row.params >= chosen.params:
            return "; it is worse and saves nothing"
        return "; it saves parameters only"
    if macs < 0 and gain < 0:
        return "; it saves MACs, but saving them in other layers costs less divergence"
    return ""


def _neighbours(candidates: Sequence[Row], chosen: Row) -> list[tuple[str, Row]]:
    """The candidates to compare the chosen one with, each with its relation to it.

    The next smaller and larger rank of the same method; of every other method, the best candidate
    within the same MACs or, where there is none, the one with the fewest MACs.
    """
    neighbours = []
    same = sorted(
        (row for row in candidates if row.method == chosen.method and row is not chosen),
        key=lambda row: row.macs,
    )
    smaller = [row for row in same if row.macs < chosen.macs]
    larger = [row for row in same if row.macs > chosen.macs]
    if smaller:
        neighbours.append(("smaller rank", smaller[-1]))
    if larger:
        neighbours.append(("larger rank", larger[0]))
    for method in dict.fromkeys(row.method for row in candidates if row.method != chosen.method):
        others = [row for row in candidates if row.method == method]
        within = [row for row in others if row.macs <= chosen.macs]
        if within:
            best = min(within, key=lambda row: row.impact)
        else:
            best = min(others, key=lambda row: row.macs)
        neighbours.append(("other method" if method else "without a method", best))
    return neighbours


def _best_elsewhere(rows: Sequence[Row], layer: str, macs: int) -> tuple[Row, float] | None:
    """The change of one other layer, within so many additional MACs, that gains most.

    Return its candidate and the predicted divergence that it saves; None where there is none.
    """
    chosen = {row.layer: row for row in rows if row.chosen}
    changes = [
        (row, chosen[row.layer].impact - row.impact)
        for row in rows
        if row.layer != layer
        and row.layer in chosen
        and 0 < row.macs - chosen[row.layer].macs <= macs
    ]
    return max(changes, key=lambda change: change[1]) if changes else None
