"""Calibration statistics of layers: sampled input patches and their second moments."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from lrfc.factorization import embedding
from lrfc.factorization.base import Statistics
from lrfc.factorization.einsum import Einsum
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import LowRank
from lrfc.factorization.threads import SMALL, one_thread, workers
from lrfc.ir.batch import Batch, batches, head
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Tensor
from lrfc.ir.ops import ConvGeometry, conv_geometry
from lrfc.search.epilogue import Epilogue, epilogue_of
from lrfc.search.heap import lean
from lrfc.state import State
from lrfc.system import memory

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LayerSamples:
    """The calibration statistics of one layer.

    ``chain``: its epilogue. ``patches``: inputs (N, G, D) at sampled positions of images held out
    from the ``statistics``. ``addend``: the residual input (N, T) at the same positions.
    """

    chain: Epilogue
    patches: Array
    addend: Array | None
    statistics: Statistics


@dataclass(frozen=True)
class SampleSize:
    """Numbers of calibration samples.

    ``images`` for the statistics, ``held_out`` images for the error of candidates; ``statistics``
    and ``similarity``: positions in all of the former and of the latter.
    """

    images: int = 768
    held_out: int = 256
    statistics: int = 12_288
    similarity: int = 2_048


#: Bytes that the covariances of one pass may take, and the outputs of one batch.
HELD, DELIVERED = 640 << 20, 256 << 20
#: Bytes of covariances above which the heap gives freed arrays back at once.
LEAN = 128 << 20
#: Inputs above which the covariance of a fully connected layer is stored as its rows.
WIDE = 8192


class _Moments:
    """Streaming mean and second moment of rows (N, G, D); memory does not grow with N.

    The second moments are float64, of large layers (above ``SMALL`` inputs) float32.
    ``wide``: N may be far below D; then the rows are stored as long as they take less memory.
    """

    def __init__(self, groups: int, length: int, *, wide: bool) -> None:
        self.count = 0
        self._sum = np.zeros((groups, length))
        self._rows: list[Array] | None = [] if wide else None
        self._dtype = np.float32 if length > SMALL else np.float64
        self._outer = np.zeros((0 if wide else groups, length, length), self._dtype)

    def add(self, rows: Array) -> None:
        self.count += len(rows)
        self._sum += rows.sum(0, dtype=np.float64)
        if self._rows is not None:
            self._rows.append(rows)
            if 2 * self.count <= rows.shape[-1]:
                return
            rows, self._rows = np.concatenate(self._rows), None
            self._outer = np.zeros((1, *rows.shape[-1:] * 2), self._dtype)
        blocks = np.ascontiguousarray(rows.swapaxes(0, 1))
        self._outer += blocks.mT @ blocks

    def statistics(self, *, centred: bool) -> Statistics:
        """Finalize in place; nothing can be added afterwards."""
        mean, second = self._sum / self.count, self._outer
        if self._rows is not None:
            rows = np.concatenate(self._rows)[:, 0].astype(np.float64)
            low = LowRank((rows - mean if centred else rows) / np.sqrt(self.count))
            return Statistics(low, mean if centred else None, self.count)
        second /= self.count
        if not centred:
            return Statistics(second, None, self.count)
        rank_one = blas.sger if second.dtype == np.float32 else blas.dger
        for group, matrix in enumerate(second):
            rank_one(-1, mean[group], mean[group], a=matrix.T, overwrite_a=1)
        return Statistics(second, mean, self.count)


def collect(
    graph: Graph, layers: Sequence[Op], inputs: Batch, size: SampleSize, seed: int, batch: int = 64
) -> dict[str, LayerSamples]:
    """Collect the samples of each layer in one pass over the inputs, by layer name.

    All calls of a shared layer count together. Each image has the same number of random positions.
    The first ``size.images`` images are for the statistics, the next ``size.held_out`` for the
    errors. Fewer inputs are split in the same proportion; with fewer than 4 both use all.
    """
    from lrfc.ir.keras import io as keras_io

    total = min(len(inputs[0]), size.images + size.held_out)
    collectors = [
        _Collector(graph, layer, size, total, np.random.default_rng((seed, number)))
        for number, layer in enumerate(layers)
    ]
    refs = list(dict.fromkeys(ref for collector in collectors for ref in collector.refs))
    run = keras_io.outputs_at(graph, refs)
    sizes = (4 * prod(n or 1 for n in graph.tensor(ref).shape[1:]) for ref in refs)
    batch = max(1, min(batch, memory.share(DELIVERED) // max(1, sum(sizes))))
    start = 0
    # Two BLAS threads take three times as long for these products as one (two cores, OpenBLAS), so
    # layers run in threads of their own instead.
    with one_thread(), ThreadPoolExecutor(workers()) as pool:
        for part in batches(head(inputs, total), batch):
            values = dict(zip(refs, run(part), strict=True))
            images = np.arange(start, start + len(part[0]))
            start += len(part[0])
            list(pool.map(partial(_Collector.add, values=values, images=images), collectors))
            del values  # before the next batch runs
    del run
    gc.collect()  # Keras models are reference cycles: their weights would stay in memory for long
    return {
        layer.name: collector.samples() for layer, collector in zip(layers, collectors, strict=True)
    }


class _Collector:
    """The samples of one layer while batches of images are added.

    ``total``: number of images of the whole pass.
    """

    def __init__(
        self, graph: Graph, layer: Op, size: SampleSize, total: int, rng: np.random.Generator
    ) -> None:
        self._graph, self._layer, self._calls = graph, layer, graph.calls(layer)
        self._chains = {call.name: epilogue_of(graph, call.name) for call in self._calls}
        self._rng = rng
        fitted = total if total < 4 else round(total * size.images / (size.images + size.held_out))
        self._fitted = range(fitted)
        self._held_out = range(fitted, total) if fitted < total else range(total)
        #: Positions of each image and call.
        self._fitted_positions = -(-size.statistics // (fitted * len(self._calls)))
        self._held_out_positions = -(-size.similarity // (len(self._held_out) * len(self._calls)))
        self._moments: _Moments | None = None
        self._patches: dict[str, list[Array]] = {call.name: [] for call in self._calls}
        self._addends: dict[str, list[Array]] = {call.name: [] for call in self._calls}

    @property
    def refs(self) -> Iterator[Ref]:
        """The tensors that ``add`` reads."""
        for call in self._calls:
            yield self._graph.operands(call.name)[0]
            addend = self._chains[call.name].addend
            if addend is not None:
                yield addend

    def add(self, values: Mapping[Ref, Array], images: NDArray[np.intp]) -> None:
        """Add a batch: the values of ``refs``, and the numbers of its images."""
        for call in self._calls:
            source = values[self._graph.operands(call.name)[0]]
            tensor = self._graph.input_tensors(call.name)[0]
            chosen = _within(images, self._fitted)
            if len(chosen):
                rows, _ = draw(call, tensor, source, chosen, self._fitted_positions, self._rng)
                if self._moments is None:
                    wide = _wide(self._layer, rows.shape[-1])
                    self._moments = _Moments(*rows.shape[1:], wide=wide)
                self._moments.add(rows)
            chosen = _within(images, self._held_out)
            if not len(chosen):
                continue
            rows, at = draw(call, tensor, source, chosen, self._held_out_positions, self._rng)
            self._patches[call.name].append(rows)
            addend = self._chains[call.name].addend
            if addend is not None:
                self._addends[call.name].append(values[addend][at])

    def samples(self) -> LayerSamples:
        """The samples of all batches."""
        assert self._moments is not None
        first = self._calls[0].name
        # Calls of a shared layer may have different epilogues: then bare responses are compared.
        chain = self._chains[first] if len(self._calls) == 1 else Epilogue(end=first)
        centred = chain.batchnorm is not None or "bias" in self._layer.weights
        return LayerSamples(
            chain,
            np.concatenate([rows for call in self._calls for rows in self._patches[call.name]]),
            np.concatenate(self._addends[first]) if chain.addend is not None else None,
            self._moments.statistics(centred=centred),
        )


def _within(images: NDArray[np.intp], chosen: range) -> NDArray[np.intp]:
    """The places in the batch of the images whose number is in the range."""
    return np.flatnonzero((images >= chosen.start) & (images < chosen.stop))


class Sampler:
    """The samples of layers by name, collected at first use.

    One pass collects all of them. Where their covariances together take too much memory, groups of
    layers have a pass each, and only the samples of the last pass are in memory.
    """

    def __init__(
        self, graph: Graph, layers: Sequence[Op], inputs: Batch, size: SampleSize, seed: int
    ) -> None:
        self._collect = partial(collect, graph, inputs=inputs, size=size, seed=seed)
        self._groups: list[list[Op]] = [[]]
        group_bytes = largest = 0
        for op in layers:
            need = _covariance_bytes(
                op, graph.input_tensors(op.name)[0], min(len(inputs[0]), size.images)
            )
            if group_bytes + need > memory.share(HELD) and self._groups[-1]:
                self._groups.append([])
                group_bytes = 0
            self._groups[-1].append(op)
            group_bytes += need
            largest = max(largest, group_bytes)
        if largest > LEAN:
            lean()
        self._current, self._samples = -1, dict[str, LayerSamples]()

    def groups(self, layers: Sequence[Op]) -> list[list[Op]]:
        """These layers, grouped by the pass that collects their samples."""
        selected = {op.name for op in layers}
        groups = ([op for op in group if op.name in selected] for group in self._groups)
        return [group for group in groups if group]

    @property
    def lasting(self) -> frozenset[str]:
        """The layers whose samples stay in memory: all or none."""
        return (
            frozenset(op.name for op in self._groups[0]) if len(self._groups) == 1 else frozenset()
        )

    def __getitem__(self, layer: str) -> LayerSamples:
        """The samples of a layer."""
        number = next(
            i for i, group in enumerate(self._groups) if any(op.name == layer for op in group)
        )
        if number != self._current:
            self._samples = {}
            self._samples = self._collect(layers=self._groups[number])
            self._current = number
        return self._samples[layer]


def _covariance_bytes(op: Op, tensor: Tensor, images: int) -> int:
    layout = Layout.of(op, tensor)
    rows = images if _wide(op, layout.patch) and len(tensor.shape) == 2 else layout.patch
    item = 4 if layout.patch > SMALL else 8
    return item * layout.groups * layout.patch * min(layout.patch, 2 * rows)


def _wide(op: Op, length: int) -> bool:
    """Whether the covariance may be stored as rows: that of a matrix product, above 0.5 GB."""
    return op.info.family == "dense" and length > WIDE


def draw(
    op: Op,
    tensor: Tensor,
    source: Array,
    images: NDArray[np.intp],
    count: int,
    rng: np.random.Generator,
) -> tuple[Array, tuple[Any, ...]]:
    """Input patches (N, G, D) at random output positions, and the index of these in the output.

    ``count``: positions per image; an image with no more positions than that gives all of them.
    """
    if op.info.family == "embedding":
        where = _positions(source.shape[1:], images, count, rng)
        return embedding.rows(op, source[where])[:, None, :], where
    if not op.info.is_convolution:
        if op.info.family == "einsum":
            source = _summed_last(op, tensor, source)
        where = _positions(source.shape[1:-1], images, count, rng)
        return source[where][:, None, :], where
    geometry = conv_geometry(op, Tensor(source.shape, tensor.dtype))
    if geometry.channels_first:
        source = np.moveaxis(source, 1, -1)
    if geometry.transposed:
        where = _positions(source.shape[1:-1], images, count, rng)
        return source[where][:, None, :], where
    lengths = tuple(int(n) for n in geometry.out_shape if n is not None)
    at, *spots = _positions(lengths, images, count, rng)
    window = _windows(source, geometry, lengths, at, spots)
    grouped = window.reshape(*window.shape[:-1], geometry.groups, -1)
    rows = np.moveaxis(grouped, -2, 1).reshape(len(at), geometry.groups, -1)
    return rows, (at, slice(None), *spots) if geometry.channels_first else (at, *spots)


def _windows(
    source: Array,
    geometry: ConvGeometry,
    lengths: Sequence[int],
    images: NDArray[np.intp],
    spots: Sequence[NDArray[np.intp]],
) -> Array:
    """The windows (N, k..., S) of a convolution at output positions ``spots`` of ``images``.

    ``source``: channels last. ``lengths``: of the output's spatial axes.
    """
    pads = padding(
        geometry.padding,
        source.shape[1:-1],
        lengths,
        geometry.kernel,
        geometry.strides,
        geometry.dilation,
    )
    padded = np.pad(source, [(0, 0), *pads, (0, 0)])
    index: list[NDArray[np.intp]] = [images.reshape(-1, *(1,) * geometry.rank)]
    for axis in range(geometry.rank):
        taps = (
            spots[axis][:, None] * geometry.strides[axis]
            + np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
        )
        shape = [1] * geometry.rank
        shape[axis] = geometry.kernel[axis]
        index.append(taps.reshape(-1, *shape))
    return padded[tuple(index)]


def _positions(
    lengths: Sequence[int], images: NDArray[np.intp], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], ...]:
    """Index arrays (images, axes...) of ``count`` positions per image."""
    total = int(np.prod(lengths, dtype=int))
    flat = (
        np.tile(np.arange(total), len(images))
        if count >= total
        else rng.integers(0, total, count * len(images))
    )
    return (
        np.repeat(images, min(count, total)),
        *(np.unravel_index(flat, lengths) if lengths else ()),
    )


def _summed_last(op: Op, tensor: Tensor, source: Array) -> Array:
    """The input of an EinsumDense with the summed axes flattened into the last, in kernel order."""
    einsum = Einsum.of(op, tensor)
    letters = einsum.source.removeprefix("...")
    summed = [source.ndim - len(letters) + letters.index(letter) for letter in einsum.summed]
    others = [axis for axis in range(source.ndim) if axis not in summed]
    moved = source.transpose(*others, *summed)
    return moved.reshape(*moved.shape[: len(others)], -1)


def padding(
    mode: str,
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """The zeros before and after each spatial axis, as TensorFlow pads.

    'same' puts an odd one behind, 'causal' all before.
    """
    if mode == "valid":
        return [(0, 0)] * len(kernel)
    if mode == "causal":
        return [(dilation[0] * (kernel[0] - 1), 0)]
    pads = []
    for length, out, taps, stride, spread in zip(
        in_shape, out_shape, kernel, strides, dilation, strict=True
    ):
        missing = max((out - 1) * stride + spread * (taps - 1) + 1 - length, 0)
        pads.append((missing // 2, missing - missing // 2))
    return pads


#: Training samples below which nothing is fitted.
FEWEST = 16


def repairable(state: State) -> bool:
    """Whether layers can be fitted to the training samples.

    There have to be enough, and synthetic ones have to match BatchNorm statistics.
    """
    matched = any(op.kind == "BatchNormalization" for op in state.original)
    return (matched or not state.data.synthetic) and len(state.data.train) >= FEWEST
