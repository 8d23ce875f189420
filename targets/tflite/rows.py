"""Which rows of its input an operator needs for some rows of its output, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple


class Rows(NamedTuple):
    """The rows from ``first`` up to ``end``, exclusive."""

    first: int
    end: int

    @property
    def height(self) -> int:
        """The number of rows."""
        return self.end - self.first

    def holds(self, other: Rows) -> bool:
        """Whether all rows of the other are among these."""
        return self.first <= other.first and other.end <= self.end

    def hull(self, other: Rows) -> Rows:
        """The smallest range that holds both."""
        return Rows(min(self.first, other.first), max(self.end, other.end))

    def both(self, other: Rows) -> Rows:
        """The rows of both ranges; they have some in common."""
        return Rows(max(self.first, other.first), min(self.end, other.end))


class Geometry(ABC):
    """How an operator reads rows."""

    @abstractmethod
    def needed(self, rows: Rows) -> Rows:
        """The rows of the input from which the operator computes these rows of its output."""

    @abstractmethod
    def computed(self, held: Rows) -> Rows | None:
        """The rows of the output that the operator computes from these rows of its input alone.

        Some may be spoiled by the padding at the edge of the strip, and some may be outside the
        output. None where the operator would not meet the output's rows.
        """

    @abstractmethod
    def right(self, held: Rows, right: Rows) -> Rows:
        """Those among the rows ``computed`` that are as without strips.

        ``right``: those of the input that are. ``height`` is not positive where there are none.
        """


class Same(Geometry):
    """An operator whose output has the rows of its input: an addition, an activation."""

    def needed(self, rows: Rows) -> Rows:
        """The same rows."""
        return rows

    def computed(self, held: Rows) -> Rows:
        """The same rows."""
        return held

    def right(self, held: Rows, right: Rows) -> Rows:
        """The same rows."""
        return right


@dataclass(frozen=True)
class Padded(Geometry):
    """An operator that adds ``top`` rows in front of ``height`` rows, and ``bottom`` behind."""

    height: int
    top: int
    bottom: int

    def needed(self, rows: Rows) -> Rows:
        """At least one row, also for rows that are all padding."""
        first = min(max(rows.first - self.top, 0), self.height - 1)
        return Rows(first, max(min(rows.end - self.top, self.height), first + 1))

    def computed(self, held: Rows) -> Rows:
        """The rows, with the padding where they reach an edge of the input."""
        return self.right(held, held)

    def right(self, held: Rows, right: Rows) -> Rows:
        """The rows, with the padding where they reach an edge of the input."""
        first = 0 if right.first == 0 else right.first + self.top
        bottom = self.bottom if right.end == self.height else 0
        return Rows(first, right.end + self.top + bottom)

    def padding(self, held: Rows) -> tuple[int, int]:
        """The rows to add to the strip."""
        result = self.computed(held)
        return held.first + self.top - result.first, result.end - held.end - self.top


@dataclass(frozen=True)
class Window(Geometry):
    """A convolution or pooling of ``height`` rows.

    ``size``: of the window in rows, dilation included. ``same``: whether it pads, as TensorFlow's
    SAME does; the padding of a strip is then that of its own number of rows.
    """

    height: int
    size: int
    stride: int
    same: bool

    def needed(self, rows: Rows) -> Rows:
        """The fewest rows of which a strip can consist."""
        return _fewest(self, rows)

    def computed(self, held: Rows) -> Rows | None:
        """The rows; None where the strip's windows do not start where those of the input do."""
        start = held.first - self._top(held.height) + self.top
        count = self._outputs(held.height)
        if start % self.stride or count < 1:
            return None
        return Rows(start // self.stride, start // self.stride + count)

    def right(self, held: Rows, right: Rows) -> Rows:
        """The rows whose windows read nothing but right rows, and the padding of the input."""
        result = self.computed(held)
        if result is None:
            return Rows(0, 0)
        first, end = max(result.first, 0), min(result.end, self._outputs(self.height))
        if right.first > 0:
            first = max(first, -(-(right.first + self.top) // self.stride))
        if right.end < self.height:
            end = min(end, (right.end + self.top - self.size) // self.stride + 1)
        return Rows(first, end)

    @property
    def top(self) -> int:
        """The rows of padding in front of the input."""
        return self._top(self.height)

    def _outputs(self, rows: int) -> int:
        return -(-rows // self.stride) if self.same else (rows - self.size) // self.stride + 1

    def _top(self, rows: int) -> int:
        """The padding in front of that many rows."""
        if not self.same:
            return 0
        total = (self._outputs(rows) - 1) * self.stride + self.size - rows
        return max(total, 0) // 2


@lru_cache(maxsize=4096)
def _fewest(window: Window, rows: Rows) -> Rows:
    """The fewest rows of the input from which a strip computes these rows of the output right."""
    whole = Rows(0, window.height)
    start = rows.first * window.stride - window.top
    end = (rows.end - 1) * window.stride - window.top + window.size
    least = Rows(min(max(start, 0), window.height - 1), min(max(end, 1), window.height))
    for more in range(2 * (window.size + window.stride)):
        for before in range(more + 1):
            strip = Rows(least.first - before, least.end + more - before)
            if whole.holds(strip) and window.right(strip, strip).holds(rows):
                return strip
    return whole
