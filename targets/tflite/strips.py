"""A region of a .tflite file's operators as a programme that computes it strip by strip.

Patches in the sense of MCUNetV2 (Lin et al. 2021, arXiv 2110.15352), along the rows: the part of
the inputs that a strip of the output depends on is cut out, and runs through all operators of the
region before the next strip does. Neighbouring strips overlap in the inputs, and compute the rows
in the overlap twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

from lrfc.targets.tflite.rows import Rows
from lrfc.targets.tflite.tileable import Network


class Region(NamedTuple):
    """The operators from number ``first`` up to ``end``, exclusive, which compute ``output``.

    ``inputs``: the tensors that they read by rows, and do not compute.
    """

    first: int
    end: int
    inputs: frozenset[int]
    output: int


class Piece(NamedTuple):
    """Some rows of a tensor. ``number``: its own among the pieces; None for the tensor itself."""

    tensor: int
    rows: Rows
    number: int | None = None


class Step(NamedTuple):
    """An operator of the programme.

    ``operator``: the number of the one that it is a copy of; None for one that cuts ``result`` out
    of its only source. ``sources``: a piece for each input that is read by rows; else None.
    """

    operator: int | None
    sources: tuple[Piece | None, ...]
    result: Piece


@dataclass(frozen=True)
class Programme:
    """The steps that compute a region; the last one joins ``parts`` to its output.

    ``tight``: whether rows that the edge of a strip has spoiled are cut off at once; if not, the
    operators behind compute them on, until the end.
    """

    region: Region
    strips: int
    tight: bool
    steps: tuple[Step, ...]
    parts: tuple[Piece, ...]

    def macs(self, network: Network) -> int:
        """The MACs of all strips."""
        return sum(
            network.operators[step.operator].macs
            * step.result.rows.height
            // network.rows(step.result.tensor)
            for step in self.steps
            if step.operator is not None
        )

    def peak(self, network: Network, beside: int, kept: frozenset[int]) -> int:
        """The most bytes alive while the region is computed.

        ``beside``: bytes of the tensors that the region does not read by rows. ``kept``: its inputs
        that are alive to its end.
        """
        last = {part: len(self.steps) for part in self.parts}
        for number, step in enumerate(self.steps):
            last.setdefault(step.result, number)
            for piece in filter(None, step.sources):
                last[piece] = max(number, last.get(piece, 0))
        alive = beside + sum(network.bytes(n, network.rows(n)) for n in self.region.inputs)
        peak = 0
        for number, step in enumerate(self.steps):
            alive += network.bytes(step.result.tensor, step.result.rows.height)
            peak = max(peak, alive)
            for piece in {*filter(None, step.sources), step.result}:
                if last[piece] == number and not (piece.number is None and piece.tensor in kept):
                    alive -= network.bytes(piece.tensor, piece.rows.height)
        output = self.region.output
        return max(peak, alive + network.bytes(output, network.rows(output)))


def programme(network: Network, region: Region, strips: int, *, tight: bool) -> Programme:
    """The programme of a region, in strips of its output that are as even as possible."""
    height = network.rows(region.output)
    edges = [height * number // strips for number in range(strips + 1)]
    writer = _Writer(network, region, tight=tight)
    parts = tuple(writer.strip(Rows(*pair)) for pair in pairwise(edges))
    return Programme(region, strips, tight, tuple(writer.steps), parts)


class _Writer:
    """Writes the steps of one strip after the other."""

    def __init__(self, network: Network, region: Region, *, tight: bool) -> None:
        self._network, self._region, self._tight = network, region, tight
        self._range = range(region.first, region.end)
        self.steps: list[Step] = []

    def strip(self, rows: Rows) -> Piece:
        """Add the steps that compute these rows of the output; the piece that holds them."""
        needed = self._needed(rows)
        held: dict[int, _Held] = {}
        for tensor in sorted(self._region.inputs):
            whole = Piece(tensor, Rows(0, self._network.rows(tensor)))
            held[tensor] = self._cut(_Held(whole, whole.rows), needed[tensor])
        for number in self._range:
            result = self._network.operators[number].result
            held[result] = self._computed(number, held, needed)
        return self._cut(held[self._region.output], rows).piece

    def _needed(self, rows: Rows) -> dict[int, Rows]:
        """The rows of each tensor that these rows of the output depend on."""
        needed = {self._region.output: rows}
        for number in reversed(self._range):
            op = self._network.operators[number]
            assert op.geometry is not None
            read = op.geometry.needed(needed[op.result])
            for tensor in op.by_rows:
                needed[tensor] = read.hull(needed.get(tensor, read))
        return needed

    def _computed(
        self, number: int, held: Mapping[int, _Held], needed: Mapping[int, Rows]
    ) -> _Held:
        """Add an operator; what it holds of its output."""
        op = self._network.operators[number]
        assert op.geometry is not None
        wanted = needed[op.result]
        sources = {tensor: held[tensor] for tensor in op.by_rows}
        common, right = _common(sources.values())
        if not op.geometry.right(common, right).holds(wanted):
            common = op.geometry.needed(wanted)
        sources = {tensor: self._cut(source, common) for tensor, source in sources.items()}
        common, right = _common(sources.values())
        computed = op.geometry.computed(common)
        assert computed is not None
        given = tuple(None if tensor is None else sources[tensor].piece for tensor in op.sources)
        result = self._add(number, given, op.result, computed)
        found = _Held(result, op.geometry.right(common, right))
        spoiled = self._tight and computed != found.right
        outside = not Rows(0, self._network.rows(op.result)).holds(computed)
        return self._cut(found, wanted) if spoiled or outside else found

    def _cut(self, held: _Held, rows: Rows) -> _Held:
        """These rows of a piece, cut out unless it has no others."""
        if held.piece.rows == rows:
            return held
        piece = self._add(None, (held.piece,), held.piece.tensor, rows)
        return _Held(piece, held.right.both(rows))

    def _add(
        self, operator: int | None, sources: tuple[Piece | None, ...], tensor: int, rows: Rows
    ) -> Piece:
        piece = Piece(tensor, rows, len(self.steps))
        self.steps.append(Step(operator, sources, piece))
        return piece


class _Held(NamedTuple):
    """A piece, and those of its rows that are as without strips."""

    piece: Piece
    right: Rows


def _common(sources: Iterable[_Held]) -> tuple[Rows, Rows]:
    """The rows that all pieces hold, and those that are right in all."""
    rows, right = zip(*((source.piece.rows, source.right) for source in sources), strict=True)
    return reduce(Rows.both, rows), reduce(Rows.both, right)
