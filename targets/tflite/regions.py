"""The regions of a .tflite file that can be computed in strips of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lrfc.costs.placement import Buffer
from lrfc.targets.tflite.activations import Activations
from lrfc.targets.tflite.strips import Region
from lrfc.targets.tflite.tileable import Network

#: The most operators of a region: MACs grow with every one that the strips overlap in.
LONGEST = 24


class Place(NamedTuple):
    """A region and what is alive beside it.

    ``beside`` and ``kept``: see ``lrfc.targets.tflite.strips.Programme.peak``. ``least``: a lower
    bound of the peak of every programme.
    """

    region: Region
    beside: int
    kept: frozenset[int]
    least: int


def places(network: Network, found: Activations) -> Iterator[Place]:
    """All regions of a file, by their first operator and then by their length.

    A region computes one tensor that is read behind it. ``found``: the file's activations.
    """
    buffers = dict(zip(found.tensors, found.arena.buffers, strict=True))
    for first in range(len(network.operators)):
        for region, computed in _from(network, buffers, first):
            yield _place(network, buffers, region, computed)


def _from(
    network: Network, buffers: Mapping[int, Buffer], first: int
) -> Iterator[tuple[Region, frozenset[int]]]:
    """The regions that start with an operator, and the tensors that they compute."""
    inputs: set[int] = set()
    computed: set[int] = set()
    for number in range(first, min(first + LONGEST, len(network.operators))):
        op = network.operators[number]
        if op.geometry is None or (op.reads - op.by_rows) & computed:
            return
        if op.result not in buffers or not _read_behind(network, buffers, op.result, number):
            return
        inputs |= op.by_rows - computed
        computed.add(op.result)
        leaving = {t for t in computed if _read_behind(network, buffers, t, number)}
        if leaving == {op.result} and network.rows(op.result) > 1:
            region = Region(first, number + 1, frozenset(inputs), op.result)
            yield region, frozenset(computed)


def _read_behind(network: Network, buffers: Mapping[int, Buffer], tensor: int, number: int) -> bool:
    """Whether a tensor is an output of the file, or read behind the operator of that number."""
    return tensor in network.outputs or buffers[tensor].last > number


def _place(
    network: Network, buffers: Mapping[int, Buffer], region: Region, computed: frozenset[int]
) -> Place:
    apart = region.inputs | computed
    beside = sum(
        buffer.size
        for tensor, buffer in buffers.items()
        if buffer.first <= region.first <= buffer.last and tensor not in apart
    )
    kept = frozenset(
        tensor for tensor in region.inputs if _read_behind(network, buffers, tensor, region.end - 1)
    )
    whole = sum(buffers[tensor].size for tensor in region.inputs)
    joined = 2 * buffers[region.output].size + sum(buffers[tensor].size for tensor in kept)
    return Place(region, beside, kept, beside + max(joined, whole))
