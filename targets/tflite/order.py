"""The order of a file's operators in which the fewest bytes are alive at one time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import Activations

#: States of a search, sets of operators that have run, before it gives up: some 0.2 CPU-s.
STATES = 20_000


def least_order(model: Any, found: Activations, states: int = STATES) -> list[int]:
    """The operators of a ``ModelT``, by number, in an order of the least peak.

    The given order where no other has a smaller peak, where the search would take more than
    ``states``, and where operators have an effect beside their outputs. ``found``: the activations
    of the model.
    """
    graph = model.subgraphs[0]
    given = list(range(len(graph.operators)))
    outputs = [flatfile.numbers(op.outputs) for op in graph.operators]
    if any(tensor.isVariable for tensor in graph.tensors) or not all(outputs):
        return given
    sizes = {t: b.size for t, b in zip(found.tensors, found.arena.buffers, strict=True)}
    inputs = [flatfile.numbers(op.inputs) for op in graph.operators]
    ops = _operators(
        [{t for t in reads if t in sizes} for reads in inputs],
        [{t for t in writes if t in sizes} for writes in outputs],
    )
    start = {t for t in flatfile.numbers(graph.inputs) if t in sizes}
    search = _Search(ops, sizes, frozenset(flatfile.numbers(graph.outputs)), states)
    return search.below(found.arena.peak_bytes, sum(sizes[t] for t in start)) or given


@dataclass(frozen=True)
class _Operator:
    """The tensors that an operator reads and writes, and the operators that need it."""

    reads: frozenset[int]
    writes: frozenset[int]
    needs: int  #: a set of operators as bits
    followers: list[int] = field(default_factory=list)


def _operators(reads: Sequence[Iterable[int]], writes: Sequence[Iterable[int]]) -> list[_Operator]:
    """The operators in their order, which need those that write what they read."""
    writer = {tensor: number for number, tensors in enumerate(writes) for tensor in tensors}
    ops: list[_Operator] = []
    for number, (sources, results) in enumerate(zip(reads, writes, strict=True)):
        before = {writer[tensor] for tensor in sources if tensor in writer}
        for other in before:
            ops[other].followers.append(number)
        needs = sum(1 << other for other in before)
        ops.append(_Operator(frozenset(sources), frozenset(results), needs))
    return ops


@dataclass(frozen=True, order=True)
class _State:
    """A set of operators that have run. States with a small peak come first, then the largest sets.

    ``live``: bytes alive behind them. ``ready``: operators that can run next. ``path``: the last
    operator and the state before it.
    """

    peak: int
    missing: int
    serial: int
    done: int = field(compare=False)
    live: int = field(compare=False)
    ready: tuple[int, ...] = field(compare=False)
    path: tuple[int, _State] | None = field(compare=False)

    def order(self) -> list[int]:
        """The operators in the order in which they ran."""
        order: list[int] = []
        path = self.path
        while path is not None:
            order.append(path[0])
            path = path[1].path
        return order[::-1]


class _Search:
    """A search by the smallest peak first, so that the first complete order is the best one."""

    def __init__(
        self,
        ops: Sequence[_Operator],
        sizes: dict[int, int],
        kept: frozenset[int],
        states: int,
    ) -> None:
        """``kept``: tensors that stay alive to the end."""
        self._ops, self._sizes, self._kept, self._states = ops, sizes, kept, states
        self._readers = dict.fromkeys(sizes, 0)
        for number, op in enumerate(ops):
            for tensor in op.reads:
                self._readers[tensor] |= 1 << number

    def below(self, limit: int, live: int) -> list[int] | None:
        """The order with the least peak; None where none is known to have less than ``limit``.

        ``live``: bytes alive in front of the first operator.
        """
        ops = self._ops
        ready = tuple(number for number, op in enumerate(ops) if not op.needs)
        queue = [_State(live, len(ops), 0, 0, live, ready, None)]
        reached = {0: live}
        while queue:
            state = heappop(queue)
            if not state.missing:
                return state.order()
            for following in self._following(state, len(reached)):
                known = reached.get(following.done)
                if following.peak >= limit or (known is not None and known <= following.peak):
                    continue
                reached[following.done] = following.peak
                heappush(queue, following)
            if len(reached) > self._states:
                return None
        return None

    def _following(self, state: _State, serial: int) -> list[_State]:
        """The states behind the next operator.

        Only the one behind an operator that raises neither the peak nor the bytes alive, if there
        is one: run at once it costs nothing, and later on it would free no more.
        """
        found = []
        for number in state.ready:
            following = self._run(state, number, serial)
            if following.peak == state.peak and following.live <= state.live:
                return [following]
            found.append(following)
        return found

    def _run(self, state: _State, number: int, serial: int) -> _State:
        op, sizes = self._ops[number], self._sizes
        done = state.done | 1 << number
        during = state.live + sum(sizes[tensor] for tensor in op.writes)
        freed = sum(
            sizes[tensor]
            for tensor in op.reads | op.writes
            if tensor not in self._kept and not self._readers[tensor] & ~done
        )
        ready = [other for other in state.ready if other != number]
        ready += [other for other in op.followers if not self._ops[other].needs & ~done]
        return _State(
            max(state.peak, during),
            state.missing - 1,
            serial,
            done,
            during - freed,
            tuple(sorted(ready)),
            (number, state),
        )
