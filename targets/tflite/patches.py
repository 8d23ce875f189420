"""Regions of a .tflite file's operators that are computed strip by strip, to save memory.

A search finds the regions and numbers of strips with the fewest MACs whose activations are within a
limit. The outputs of the file stay the same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

from lrfc.protocols import Patch
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import ALIGNMENT, Activations, activations, fixed
from lrfc.targets.tflite.in_place import shared
from lrfc.targets.tflite.order import least_order
from lrfc.targets.tflite.regions import Place, places
from lrfc.targets.tflite.stitching import stitched
from lrfc.targets.tflite.strips import Programme, Region, programme
from lrfc.targets.tflite.tails import file_tail
from lrfc.targets.tflite.tileable import Network, network

#: The most strips of a region.
STRIPS = 8
#: Operators in the programmes that a search looks at before it gives up: some 2 CPU-s.
WORK = 200_000
#: Most files that are written to meet a limit on peak and tail, or to find the least of both.
ROUNDS = 8
#: Width of the interval that the least peak is known to, as a share of it.
PRECISION = 0.01


@dataclass(frozen=True)
class Tiling:
    """A file with regions in strips; all figures are those before and after.

    ``macs``: of the operators with weights. ``peak``: bytes of activations alive at one time, and
    ``tail``: bytes of the structures behind them, as in TensorFlow Lite Micro. ``content`` is the
    given file, and ``patches`` is empty, where nothing is to be gained.
    """

    content: bytes
    patches: tuple[Patch, ...] = ()
    macs: tuple[int, int] = (0, 0)
    peak: tuple[int, int] = (0, 0)
    tail: tuple[int, int] = (0, 0)

    @property
    def added_macs(self) -> int:
        """The MACs that strips compute more than once."""
        return self.macs[1] - self.macs[0]


def tiled(content: bytes | bytearray, limit_bytes: float, *, with_tail: bool = False) -> Tiling:
    """The file with the fewest MACs among those whose planned arena has at most so many bytes.

    Where none is found it is the one with the least, to some percent. A file within the limit stays
    as it is, and so does one whose activations are not known in front of a run (see
    ``lrfc.targets.tflite.activations.fixed``); its figures are then 0. ``with_tail``: the limit is
    on the sum of arena and tail, as every strip adds operators.
    """
    model = flatfile.unpack(content)
    found = fixed(model)
    if found is None:
        return Tiling(bytes(content))
    given = _Made.of(model, network(model), (), with_tail=with_tail)
    kept = Tiling(bytes(content), (), *((x, x) for x in (given.macs, given.peak, given.tail)))
    if given.need <= limit_bytes:
        return kept
    model.subgraphs[0] = copy(model.subgraphs[0])
    operators = model.subgraphs[0].operators
    model.subgraphs[0].operators = [operators[number] for number in least_order(model, found)]
    found, net = activations(model), network(model)
    search = _Search(net, found, shared(model, found).arena.timeline)

    def made(programmes: tuple[Programme, ...]) -> _Made:
        return _Made.of(model, net, programmes, with_tail=with_tail)

    best = _within(search, made, limit_bytes) or _least(search, made)
    if best.need >= given.need:
        return kept
    names = list(found.arena.timeline)
    return Tiling(
        flatfile.pack(best.model),
        tuple(
            Patch(names[p.region.first], names[p.region.end - 1], p.strips) for p in best.programmes
        ),
        (given.macs, best.macs),
        (given.peak, best.peak),
        (given.tail, best.tail),
    )


class _Made(NamedTuple):
    """A ``ModelT`` with programmes. ``need``: the bytes that the limit is on."""

    model: Any
    programmes: tuple[Programme, ...]
    macs: int
    peak: int
    tail: int
    need: int

    @classmethod
    def of(
        cls, model: Any, net: Network, programmes: tuple[Programme, ...], *, with_tail: bool
    ) -> _Made:
        """The model with these programmes written into it."""
        changed = stitched(model, net, programmes)
        arena, tail = shared(changed, activations(changed)).arena, file_tail(changed)
        need = arena.planned_bytes(ALIGNMENT) + (tail if with_tail else 0)
        return cls(changed, programmes, network(changed).macs, arena.peak_bytes, tail, need)


def _within(
    search: _Search, made: Callable[[tuple[Programme, ...]], _Made], limit: float
) -> _Made | None:
    """The file with the fewest MACs within the limit; None where none is found."""
    bound = limit
    for _ in range(ROUNDS):
        programmes = search.within(bound)
        if programmes is None:
            return None
        found = made(programmes)
        if found.need <= limit:
            return found
        bound -= found.need - limit  # the tail, and gaps in the plan, take the rest
    return None


def _least(search: _Search, made: Callable[[tuple[Programme, ...]], _Made]) -> _Made:
    """The file with the least need: patches for a low peak may have a long tail."""
    low, high = search.least(), search.peak
    tried = {low: None}
    least = made(low)
    for number in range(1, ROUNDS):
        share = number / ROUNDS
        programmes = search.within(least.peak + share * (high - least.peak))
        if programmes is not None:
            tried[programmes] = None
    return min(map(made, tried), key=lambda found: (found.need, found.macs))


class _Option(NamedTuple):
    """A programme, its peak, and what it costs: MACs beyond those of the region, and operators."""

    peak: int
    cost: tuple[int, int]
    programme: Programme


class _Search:
    """The search for the regions of one file."""

    def __init__(self, net: Network, found: Activations, timeline: Mapping[str, int]) -> None:
        """``timeline``: bytes alive at each operator, where outputs may be written over inputs."""
        self._net, self._live = net, list(timeline.values())
        self._places = list(places(net, found))
        #: The bytes alive at one time without any programme.
        self.peak = max(self._live)
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
