"""The places of buffers in an arena: offsets at which no two that are alive together overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import NamedTuple

import numpy as np

#: Work of a search before it gives up, in comparisons of two buffers: some 0.1 to 0.2 CPU-s.
WORK = 300_000
#: Changes without success after which a search starts over from another order.
PATIENCE = 40


@dataclass(frozen=True)
class Buffer:
    """A piece of the arena: ``size`` bytes, alive from step ``first`` to ``last`` inclusive."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether the two are alive at the same time."""
        return self.first <= other.last and other.first <= self.last


def plan(buffers: Sequence[Buffer], alignment: int = 16) -> dict[str, int]:
    """The offset of each buffer; buffers that are alive at the same time do not overlap.

    Each buffer in turn gets the smallest sufficient gap, or the lowest, between those already
    placed. The first order is by size, as in TFLite (Pisarchyk & Lee 2020, arXiv 2001.03288,
    algorithm 3); equal sizes are ordered by start and name. Where that takes more bytes than are
    ever alive at one time, other orders follow, and hill climbs from these: a topmost buffer, or
    one alive with it, moves to another turn. The search ends at that lower bound or after WORK, and
    gives the same plan in every run. ``alignment``: of every offset.
    """
    search = _Search(buffers, alignment)
    return dict(zip((b.name for b in buffers), search.best(), strict=True)) if buffers else {}


def micro(buffers: Sequence[Buffer]) -> dict[str, int]:
    """The offset that TensorFlow Lite Micro gives each buffer of a file without a plan.

    ``buffers``: in the order of the file's tensors. The largest come first, of equal ones the last;
    each gets the lowest sufficient gap (its GreedyMemoryPlanner, and its alignment of 16 bytes).
    """
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, -i))
    offsets = _Search(buffers, 16).placed(order, lowest=True)
    return dict(zip((b.name for b in buffers), offsets, strict=True))


def litert(buffers: Sequence[Buffer]) -> dict[str, int]:
    """The offset that LiteRT gives each buffer, and XNNPACK, its library of kernels, nearly.

    The largest come first, of equal ones the earliest; each gets the smallest sufficient gap
    (Pisarchyk & Lee 2020, algorithm 3; its ArenaPlanner aligns to 64 bytes). What both keep longer
    than needed is not counted: LiteRT keeps the inputs of a file to the end.
    """
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, buffers[i].first))
    offsets = _Search(buffers, 64).placed(order, lowest=False)
    return dict(zip((b.name for b in buffers), offsets, strict=True))


class _Plan(NamedTuple):
    """The bytes that a plan takes, the order of its buffers, and the offset of each."""

    height: int
    order: list[int]
    offsets: list[int]


class _Search:
    """The search for one plan. A buffer is named by its number; sizes are rounded up."""

    def __init__(self, buffers: Sequence[Buffer], alignment: int) -> None:
        self._buffers = buffers
        self._sizes = [-(-buffer.size // alignment) * alignment for buffer in buffers]
        self._alive = self._bytes_alive()
        self._others = self._alive_together()
        #: No plan takes fewer bytes.
        self._bound = max(self._alive, default=0)

    def best(self) -> list[int]:
        """The offset of each buffer in the lowest plan that is found."""
        found: list[_Plan] = []
        for order, lowest in self._orders():
            found.append(self._plan(order, lowest=lowest))
            if found[-1].height == self._bound:
                return found[-1].offsets
        return self._climbed(sorted(found, key=lambda plan: plan.height)).offsets

    def _climbed(self, starts: Sequence[_Plan]) -> _Plan:
        """The lowest of the plans that changes to the orders of ``starts`` lead to."""
        random, following = np.random.default_rng(0), cycle(starts)
        current = best = next(following)
        failures = 0
        for _ in range(WORK // (len(self._sizes) + sum(map(len, self._others)))):
            moved = self._near_the_top(current, random)
            order = [i for i in current.order if i != moved]
            order.insert(int(random.integers(len(self._sizes))), moved)
            changed = self._plan(order, lowest=True)
            failures = 0 if changed.height < current.height else failures + 1
            if changed.height <= current.height:
                current = changed
            best = min(best, current, key=lambda plan: plan.height)
            if best.height == self._bound:
                break
            if failures == PATIENCE:
                current, failures = next(following), 0
        return best

    def _near_the_top(self, plan: _Plan, random: np.random.Generator) -> int:
        """A topmost buffer, or one that a few steps to a buffer alive with the last lead to."""
        tops = [i for i in plan.order if plan.offsets[i] + self._sizes[i] == plan.height]
        found = tops[random.integers(len(tops))]
        while self._others[found] and random.integers(2):
            found = self._others[found][random.integers(len(self._others[found]))]
        return found

    def _plan(self, order: list[int], *, lowest: bool) -> _Plan:
        """The plan of an order; see ``placed``."""
        offsets = self.placed(order, lowest=lowest)
        return _Plan(max(map(int.__add__, offsets, self._sizes)), order, offsets)

    def _orders(self) -> Iterator[tuple[list[int], bool]]:
        """Orders to start from, each with whether it takes the lowest gap or the smallest."""
        numbers, sizes, buffers = range(len(self._buffers)), self._sizes, self._buffers
        lengths = [buffer.last - buffer.first + 1 for buffer in buffers]
        crowds = [max(self._alive[buffer.first : buffer.last + 1]) for buffer in buffers]
        first = sorted(numbers, key=lambda i: (-buffers[i].size, buffers[i].first, buffers[i].name))
        yield first, False
        yield first, True
        yield sorted(first, key=lambda i: (-crowds[i], -sizes[i])), True
        yield sorted(first, key=lambda i: -lengths[i] * sizes[i]), True
        yield sorted(first, key=lambda i: -lengths[i]), True
        yield sorted(first, key=lambda i: buffers[i].first), True

    def placed(self, order: Sequence[int], *, lowest: bool) -> list[int]:
        """The offsets when the buffers are placed in this order.

        ``lowest``: each into the lowest gap that is large enough, not into the smallest.
        """
        sizes = self._sizes
        offsets = [-1] * len(order)
        for i in order:
            end, place, smallest = 0, -1, 0
            for offset, j in sorted((offsets[j], j) for j in self._others[i] if offsets[j] >= 0):
                gap = offset - end
                if sizes[i] <= gap and (place < 0 or gap < smallest):
                    place, smallest = end, gap
                    if lowest:
                        break
                end = max(end, offset + sizes[j])
            offsets[i] = end if place < 0 else place
        return offsets

    def _bytes_alive(self) -> list[int]:
        """The bytes alive at each step."""
        changes = [0] * (2 + max((buffer.last for buffer in self._buffers), default=0))
        for buffer, size in zip(self._buffers, self._sizes, strict=True):
            changes[buffer.first] += size
            changes[buffer.last + 1] -= size
        return list(accumulate(changes))

    def _alive_together(self) -> list[list[int]]:
        """For each buffer the others that are alive at some time when it is."""
        others: list[list[int]] = [[] for _ in self._buffers]
        alive: list[int] = []
        for i in sorted(range(len(others)), key=lambda i: self._buffers[i].first):
            alive = [j for j in alive if self._buffers[j].last >= self._buffers[i].first]
            for j in alive:
                others[i].append(j)
                others[j].append(i)
            alive.append(i)
        return others
