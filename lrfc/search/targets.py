"""The targets of a refit: the original's values at the positions where layers are fitted."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.batch import Batch, batches, head
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.ir.op import Op, Ref
from lrfc.search.batchnorm import Moments
from lrfc.search.epilogue import epilogue_of
from lrfc.search.statistics import draw
from lrfc.system import memory, scratch

Array = NDArray[np.float32]

#: The most samples of a part, and the bytes that the original delivers for one.
PART, DELIVERED = 250, 256 << 20
#: Bytes of targets that stay in memory; further ones are mapped from a temporary file.
HELD = 256 << 20


@dataclass(frozen=True)
class Drawing:
    """The samples and the positions at which layers are fitted, the same for every plan.

    ``count``: training inputs. ``patches``: positions of each layer in all of them together.
    """

    count: int
    patches: int
    seed: int

    def parts(self, graph: Graph) -> list[range]:
        """The samples in parts, of a size at which the original's outputs fit into memory."""
        tensors = (graph.tensor(ref) for ref in _read(graph))
        sample = 4 * sum(prod(n or 1 for n in tensor.shape[1:]) for tensor in tensors)
        size = max(1, min(PART, memory.share(DELIVERED) // max(1, sample)))
        return [range(i, min(i + size, self.count)) for i in range(0, self.count, size)]

    def draw(
        self, graph: Graph, op: Op, source: Array, part: range
    ) -> tuple[Array, tuple[Any, ...]]:
        """Input patches of a layer in a part, and their index in its output; see ``draw``."""
        rng = np.random.default_rng((self.seed, zlib.crc32(op.name.encode()), part.start))
        images, per_image = np.arange(len(part)), -(-self.patches // self.count)
        return draw(op, graph.input_tensors(op.name)[0], source, images, per_image, rng)


@dataclass
class Targets:
    """The original's values to which a plan is refitted, by layer or tensor.

    ``outputs`` (N, T): of a layer at the drawn positions; ``addends`` (N, T): there, the other
    operand of the residual addition behind it; ``moments``: of the input of a BatchNorm.
    """

    outputs: dict[str, Array] = field(default_factory=dict)
    addends: dict[str, Array] = field(default_factory=dict)
    moments: dict[Ref, Moments] = field(default_factory=dict)


class Summed:
    """The mean and the variance of each channel, summed part by part.

    Samples are summed one by one, because one sample fits into the cache of the processor.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._centre: Any = None
        self._total: Any = 0.0
        self._square: Any = 0.0
        self._count = 0

    def add(self, values: Array) -> None:
        """Add a part, with the samples along axis 0."""
        samples = np.moveaxis(values, self._axis, -1)
        channels = samples.shape[-1]
        if self._centre is None:
            self._centre = samples[0].reshape(-1, channels).mean(0)
        for sample in samples:
            rows = sample.reshape(-1, channels) - self._centre
            self._total = self._total + rows.sum(0, dtype=np.float64)
            self._square = self._square + np.einsum("nc,nc->c", rows, rows)
        self._count += values.size // channels

    def moments(self) -> Moments:
        """The result."""
        mean = self._total / self._count
        return self._centre + mean, np.maximum(self._square / self._count - mean**2, 0)


def fittable(graph: Graph, op: Op) -> bool:
    """Whether the output of a layer at a position is the product of one patch with its kernel.

    A layer with several calls has several inputs for one kernel, and does not count.
    """
    plain = op.info.family in ("dense", "conv", "depthwise")
    return (
        plain
        and op.origin is None
        and "kernel" in op.weights
        and len(graph.calls(op)) == 1
        and op["activation"] in (None, "linear")
    )


def followed(graph: Graph, op: Op) -> bool:
    """Whether the statistics of a BatchNorm follow the change of its one input."""
    return op.kind == "BatchNormalization" and len(graph.calls(op)) == 1


def targets(
    graph: Graph, inputs: Batch, drawing: Drawing, step: Callable[[int], Callable[[int], None]]
) -> Targets:
    """The targets from the original's training inputs; it runs once for all plans of a build.

    ``step``: given the number of parts, returns the function that reports progress.
    """
    return _TARGETS.get(graph, inputs, drawing, lambda: _collected(graph, inputs, drawing, step))


_TARGETS: GraphCache[Targets] = GraphCache()


def _collected(
    graph: Graph, inputs: Batch, drawing: Drawing, step: Callable[[int], Callable[[int], None]]
) -> Targets:
    from lrfc.ir.keras import io as keras_io

    refs = _read(graph)
    if not refs:
        return Targets()
    run, parts = keras_io.outputs_at(graph, refs), drawing.parts(graph)
    report = step(len(parts))
    sums = {graph.operands(op.name)[0]: Summed(op["axis"]) for op in graph if followed(graph, op)}
    outputs, addends = _Rows(drawing.count), _Rows(drawing.count)
    for part, batch in zip(parts, batches(head(inputs, drawing.count), len(parts[0])), strict=True):
        values = dict(zip(refs, run(batch), strict=True))
        for ref, summed in sums.items():
            summed.add(values[ref])
        for op in filter(lambda op: fittable(graph, op), graph):
            _, where = drawing.draw(graph, op, values[graph.operands(op.name)[0]], part)
            outputs.add(op.name, values[Ref(op.name)][where], part)
            addend = epilogue_of(graph, op.name).addend
            if addend is not None:
                addends.add(op.name, values[addend][where], part)
        report(1)
    moments = {ref: summed.moments() for ref, summed in sums.items()}
    return Targets(outputs.arrays, addends.arrays, moments)


def _read(graph: Graph) -> list[Ref]:
    """The tensors of the original that the targets come from."""

    def refs() -> Iterator[Ref]:
        for op in graph:
            if fittable(graph, op):
                yield from (graph.operands(op.name)[0], Ref(op.name))
                addend = epilogue_of(graph, op.name).addend
                if addend is not None:
                    yield addend
            elif followed(graph, op):
                yield graph.operands(op.name)[0]

    return list(dict.fromkeys(refs()))


class _Rows:
    """The rows of every layer, part after part, in arrays for all samples."""

    def __init__(self, samples: int) -> None:
        self._samples, self._filled, self._bytes = samples, Counter[str](), 0
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, rows: Array, part: range) -> None:
        if name not in self.arrays:
            shape = (len(rows) // len(part) * self._samples, *rows.shape[1:])
            self.arrays[name] = self._room(shape)
        start = self._filled[name]
        self.arrays[name][start : start + len(rows)] = rows
        self._filled[name] += len(rows)

    def _room(self, shape: Sequence[int]) -> Array:
        """An array in memory, or in a temporary file, which vanishes with it."""
        self._bytes += 4 * prod(shape)
        if self._bytes <= memory.share(HELD):
            return np.empty(shape, np.float32)
        with scratch.unnamed() as file:
            mapped: Any = np.memmap(file, np.float32, "w+", shape=tuple(shape))
        return mapped  # type: ignore[no-any-return]


def left(
    channels: Mapping[Ref, tuple[int, NDArray[np.intp]]], ref: Ref, rows: NDArray[Any]
) -> NDArray[Any]:
    """The columns of the channels of a tensor that pruning leaves."""
    return rows[..., channels[ref][1]] if ref in channels else rows
