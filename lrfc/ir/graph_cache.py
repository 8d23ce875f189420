"""Results that are computed from a graph and its inputs, stored for as long as the graph exists."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph

T = TypeVar("T")


class GraphCache(Generic[T]):
    """The last result of a computation for each graph.

    A build computes the same of its original for every plan. The result is used again for the same
    arrays (the very objects) and equal options. Neither graph nor arrays may be changed in place.
    """

    def __init__(self) -> None:
        self._entries: WeakKeyDictionary[Graph, tuple[Batch, Hashable, T]] = WeakKeyDictionary()

    def get(self, graph: Graph, inputs: Batch, options: Hashable, compute: Callable[[], T]) -> T:
        """The result; ``compute`` is called where it is not stored."""
        entry = self._entries.get(graph)
        if entry is not None:
            arrays, known, result = entry
            same = len(arrays) == len(inputs) and all(map(operator.is_, arrays, inputs))
            if same and known == options:
                return result
        result = compute()
        self._entries[graph] = inputs, options, result
        return result
