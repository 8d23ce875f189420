"""Regions of a .tflite file's operators that are computed strip by strip, to save memory.

A search finds the regions and numbers of strips with the fewest MACs whose activations are within a
limit. The outputs of the file stay the same bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lrfc.protocols import Patch
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import Activations, activations, fixed
from lrfc.targets.tflite.order import least_order
from lrfc.targets.tflite.regions import Place, places
from lrfc.targets.tflite.stitching import stitch
from lrfc.targets.tflite.strips import Programme, Region, programme
from lrfc.targets.tflite.tileable import Network, network

#: The most strips of a region.
STRIPS = 8
#: Operators in the programmes that a search looks at before it gives up: some 2 CPU-s.
WORK = 200_000
#: Width of the interval that the least peak is known to, as a share of it.
PRECISION = 0.01


@dataclass(frozen=True)
class Tiling:
    """A file with regions in strips.

    ``peak``: bytes of activations alive at one time, as in TensorFlow Lite Micro; ``macs``: of the
    operators with weights; both before and after. ``content`` is the given file, and ``patches`` is
    empty, where nothing is to be gained.
    """

    content: bytes
    patches: tuple[Patch, ...]
    macs: tuple[int, int]
    peak: tuple[int, int]

    @property
    def added_macs(self) -> int:
        """The MACs that strips compute more than once."""
        return self.macs[1] - self.macs[0]


def tiled(content: bytes | bytearray, limit_bytes: float) -> Tiling:
    """The file with the fewest MACs among those with at most so many bytes alive at one time.

    Where none is found it is the one with the least peak, to 1 %. A file within the limit stays as
    it is, and so does one whose activations are not known in front of a run (see
    ``lrfc.targets.tflite.activations.fixed``); its peak is then given as 0.
    """
    model = flatfile.unpack(content)
    found = fixed(model)
    if found is None:
        return Tiling(bytes(content), (), (0, 0), (0, 0))
    before = found.arena.peak_bytes
    graph = model.subgraphs[0]
    net = network(model)
    macs = net.macs
    if before <= limit_bytes:
        return Tiling(bytes(content), (), (macs, macs), (before, before))
    order = least_order(model, found)
    if order != list(range(len(order))):
        graph.operators = [graph.operators[number] for number in order]
        found, net = activations(model), network(model)
    search = _Search(net, found)
    chosen = search.within(limit_bytes) or search.least()
    labels = list(found.arena.timeline)
    patches = tuple(
        Patch(labels[p.region.first], labels[p.region.end - 1], p.strips) for p in chosen
    )
    stitch(model, net, chosen)
    after = activations(model).arena.peak_bytes
    if after >= before:
        return Tiling(bytes(content), (), (macs, macs), (before, before))
    return Tiling(flatfile.pack(model), patches, (macs, network(model).macs), (before, after))


class _Option(NamedTuple):
    """A programme, its peak, and what it costs: MACs beyond those of the region, and operators."""

    peak: int
    cost: tuple[int, int]
    programme: Programme


class _Search:
    """The search for the regions of one file."""

    def __init__(self, net: Network, found: Activations) -> None:
        self._net, self._live = net, list(found.arena.timeline.values())
        self._places = list(places(net, found))
        self._options: dict[tuple[Region, int], list[_Option]] = {}
        self._work = WORK

    def within(self, limit: float) -> tuple[Programme, ...] | None:
        """The programmes with the fewest MACs with which the peak is within a limit.

        None where there are none.
        """
        count = len(self._live)
        best: list[tuple[tuple[int, int], tuple[Programme, ...]] | None] = [None] * (count + 1)
        best[0] = ((0, 0), ())
        over = [live > limit for live in self._live]
        options = self._fitting(over, limit)
        for first in range(count):
            state = best[first]
            if state is None:
                continue
            (macs, added), chosen = state
            ways = [(first + 1, (macs, added), chosen)] if not over[first] else []
            for option in options.get(first, []):
                cost = (macs + option.cost[0], added + option.cost[1])
                ways.append((option.programme.region.end, cost, (*chosen, option.programme)))
            for end, cost, programmes in ways:
                known = best[end]
                if known is None or cost < known[0]:
                    best[end] = (cost, programmes)
        last = best[count]
        return None if last is None else last[1]

    def least(self) -> tuple[Programme, ...]:
        """The programmes with the least peak that is found."""
        best: tuple[Programme, ...] = ()
        low, high = 0.0, float(max(self._live))
        while high - low > PRECISION * high:
            middle = (low + high) / 2
            found = self.within(middle)
            if found is None:
                low = middle
            else:
                best, high = found, middle
        return best

    def _fitting(self, over: list[bool], limit: float) -> dict[int, list[_Option]]:
        """The cheapest option of each region within the limit, by its first operator.

        Only of regions with an operator that is ``over`` it.
        """
        result: dict[int, list[_Option]] = {}
        for place in self._places:
            region = place.region
            if place.least > limit or not any(over[region.first : region.end]):
                continue
            for strips in range(2, min(STRIPS, self._net.rows(region.output)) + 1):
                fits = [o for o in self._evaluated(place, strips) if o.peak <= limit]
                if fits:
                    option = min(fits, key=lambda option: option.cost)
                    result.setdefault(region.first, []).append(option)
                    break
        return result

    def _evaluated(self, place: Place, strips: int) -> list[_Option]:
        """The options of a region with that number of strips; none once the work is done."""
        key = place.region, strips
        if key not in self._options:
            self._options[key] = list(self._programmes(place, strips)) if self._work > 0 else []
            self._work -= sum(len(option.programme.steps) for option in self._options[key])
        return self._options[key]

    def _programmes(self, place: Place, strips: int) -> Iterator[_Option]:
        region = place.region
        for tight in (False, True):
            made = programme(self._net, region, strips, tight=tight)
            macs = made.macs(self._net) - self._net.macs_of(region.first, region.end)
            added = len(made.steps) - (region.end - region.first)
            peak = made.peak(self._net, place.beside, place.kept)
            yield _Option(peak, (macs, added), made)
