"""What each layer reads on real data: sampled input patches and their second-order statistics, collected in one forward pass."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from lrfc.factorization.base import Statistics
from lrfc.factorization.einsum import Einsum
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import LowRank
from lrfc.factorization.threads import one_thread, workers
from lrfc.ir.batch import Batch, batches, head
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Tensor
from lrfc.ir.ops import conv_geometry
from lrfc.search.epilogue import Epilogue, epilogue_of
from lrfc.search.heap import lean
from lrfc.state import State

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LayerSamples:
    """One layer's sample: ``patches`` (N, G, D) held out from the ``statistics``, and the residual ``addend`` (N, T) at the same positions."""

    chain: Epilogue
    patches: Array
    addend: Array | None
    statistics: Statistics


@dataclass(frozen=True)
class SampleSize:
    """How much is looked at: images for the statistics, images held out for the similarity, and positions of each."""

    images: int = 768
    held_out: int = 256
    statistics: int = 12_288
    similarity: int = 2_048


#: Bytes of covariances that are held at once, and of tensors that one batch may deliver.
HELD, DELIVERED = 384 << 20, 256 << 20
#: Above this many inputs a fully connected layer's covariance is kept by its rows.
WIDE = 8192


class _Moments:
    """Streaming mean and second moment of rows (N, G, D) in float64; memory does not grow with N.

    ``wide``: there may be far fewer rows than D; then they are kept themselves for as long as that
    takes less.
    """

    def __init__(self, groups: int, length: int, *, wide: bool) -> None:
        self.count = 0
        self._sum = np.zeros((groups, length))
        self._rows: list[Array] | None = [] if wide else None
        self._outer = np.zeros((0 if wide else groups, length, length))

    def add(self, rows: Array) -> None:
        self.count += len(rows)
        self._sum += rows.sum(0, dtype=np.float64)
        if self._rows is not None:
            self._rows.append(rows)
            if 2 * self.count <= rows.shape[-1]:
                return
            rows, self._rows = np.concatenate(self._rows), None
            self._outer = np.zeros((1, *rows.shape[-1:] * 2))
        for group, outer in enumerate(self._outer):
            block = rows[:, group]
            outer += block.T @ block

    def statistics(self, *, centred: bool) -> Statistics:
        """The statistics; they take the sums' memory, so nothing can be added after."""
        mean, second = self._sum / self.count, self._outer
        if self._rows is not None:
            rows = np.concatenate(self._rows)[:, 0].astype(np.float64)
            low = LowRank((rows - mean if centred else rows) / np.sqrt(self.count))
            return Statistics(low, mean if centred else None, self.count)
        second /= self.count
        if not centred:
            return Statistics(second, None, self.count)
        for group, each in enumerate(second):
            blas.dger(-1, mean[group], mean[group], a=each.T, overwrite_a=1)
        return Statistics(second, mean, self.count)


def collect(
    graph: Graph, layers: Sequence[Op], inputs: Batch, size: SampleSize, seed: int, batch: int = 64
) -> dict[str, LayerSamples]:
    """Samples of each layer (by name, all calls of a shared layer together), from one pass over the inputs in batches.

    Positions are drawn evenly over images and at random within each; the first ``size.images``
    images feed the statistics, the next ``size.held_out`` the similarity. Fewer inputs are split in
    the same proportion; with fewer than 4 both use all.
    """
    from lrfc.ir.keras import io as keras_io

    calls = {op.name: graph.calls(op) for op in layers}
    chains = {
        call.name: epilogue_of(graph, call.name) for group in calls.values() for call in group
    }
    wanted: dict[Ref, None] = {}
    for name, chain in chains.items():
        wanted[graph.operands(name)[0]] = None
        if chain.addend is not None:
            wanted[chain.addend] = None
    total = min(len(inputs[0]), size.images + size.held_out)
    fitted = total if total < 4 else round(total * size.images / (size.images + size.held_out))
    held = range(fitted, total) if fitted < total else range(total)
    rngs = {
        layer.name: np.random.default_rng((seed, number)) for number, layer in enumerate(layers)
    }
    moments: dict[str, _Moments] = {}
    patches: dict[str, list[Array]] = {name: [] for name in chains}
    addends: dict[str, list[Array]] = {name: [] for name in chains}

    def look(values: Mapping[Ref, Array], index: NDArray[np.intp], layer: Op) -> None:
        """Add to a layer's sample what these images show."""
        rng, share = rngs[layer.name], len(calls[layer.name])
        for call in calls[layer.name]:
            source, tensor = values[graph.operands(call.name)[0]], graph.input_tensors(call.name)[0]
            chosen = np.flatnonzero(index < fitted)
            if len(chosen):
                rows, _ = draw(
                    call, tensor, source, chosen, -(-size.statistics // (fitted * share)), rng
                )
                if layer.name not in moments:
                    moments[layer.name] = _Moments(
                        *rows.shape[1:], wide=_wide(layer, rows.shape[-1])
                    )
                moments[layer.name].add(rows)
            chosen = np.flatnonzero((index >= held.start) & (index < held.stop))
            if not len(chosen):
                continue
            rows, where = draw(
                call, tensor, source, chosen, -(-size.similarity // (len(held) * share)), rng
            )
            patches[call.name].append(rows)
            addend = chains[call.name].addend
            if addend is not None:
                addends[call.name].append(values[addend][where])

    run = keras_io.outputs_at(graph, wanted)
    batch = max(
        1,
        min(
            batch,
            DELIVERED
            // max(1, sum(4 * prod(n or 1 for n in graph.tensor(ref).shape[1:]) for ref in wanted)),
        ),
    )
    start = 0
    # Two BLAS threads take three times as long for these products as one does (two cores,
    # OpenBLAS): the layers share the cores instead.
    with one_thread(), ThreadPoolExecutor(workers()) as pool:
        for part in batches(head(inputs, total), batch):
            values = dict(zip(wanted, run(part), strict=True))
            index = np.arange(start, start + len(part[0]))
            start += len(part[0])
            list(pool.map(partial(look, values, index), layers))
            del values  # before the next batch runs
    del run
    gc.collect()  # Keras models are cycles: the weights of a large one would stay for long
    return {
        layer.name: _gather(layer, calls[layer.name], chains, moments, patches, addends)
        for layer in layers
    }


class Sampler:
    """Samples of layers by name, collected when the first of them is asked for: from one pass, or from several where all covariances together take too much memory.

    Then only the last pass's samples are kept.
    """

    def __init__(
        self, graph: Graph, layers: Sequence[Op], inputs: Batch, size: SampleSize, seed: int
    ) -> None:
        self._collect = partial(collect, graph, inputs=inputs, size=size, seed=seed)
        self._groups: list[list[Op]] = [[]]
        held = 0
        for op in layers:
            need = _covariance_bytes(
                op, graph.input_tensors(op.name)[0], min(len(inputs[0]), size.images)
            )
            if held + need > HELD and self._groups[-1]:
                self._groups.append([])
                held = 0
            self._groups[-1].append(op)
            held += need
        if len(self._groups) > 1:
            lean()
        self._current, self._samples = -1, dict[str, LayerSamples]()

    def groups(self, layers: Sequence[Op]) -> list[list[Op]]:
        """These layers, those together whose samples one pass collects."""
        wanted = {op.name for op in layers}
        found = ([op for op in group if op.name in wanted] for group in self._groups)
        return [group for group in found if group]

    @property
    def lasting(self) -> frozenset[str]:
        """The layers whose samples stay: all where one pass collects them."""
        return (
            frozenset(op.name for op in self._groups[0]) if len(self._groups) == 1 else frozenset()
        )

    def __getitem__(self, layer: str) -> LayerSamples:
        """The samples of a layer."""
        wanted = next(
            i for i, group in enumerate(self._groups) if any(op.name == layer for op in group)
        )
        if wanted != self._current:
            self._samples = {}
            self._samples = self._collect(layers=self._groups[wanted])
            self._current = wanted
        return self._samples[layer]


def _covariance_bytes(op: Op, tensor: Tensor, images: int) -> int:
    layout = Layout.of(op, tensor)
    rows = images if _wide(op, layout.patch) and len(tensor.shape) == 2 else layout.patch
    return 8 * layout.groups * layout.patch * min(layout.patch, 2 * rows)


def _wide(op: Op, length: int) -> bool:
    """Whether a layer's covariance may be given by its rows: a matrix product whose covariance would take half a gigabyte."""
    return op.info.family == "dense" and length > WIDE


def _gather(
    layer: Op,
    calls: Sequence[Op],
    chains: dict[str, Epilogue],
    moments: dict[str, _Moments],
    patches: dict[str, list[Array]],
    addends: dict[str, list[Array]],
) -> LayerSamples:
    # Calls of a shared layer may be followed by different chains: then the bare response of all
    # calls is compared.
    chain = chains[calls[0].name] if len(calls) == 1 else Epilogue(end=calls[0].name)
    centred = chain.batchnorm is not None or "bias" in layer.weights
    return LayerSamples(
        chain,
        np.concatenate([rows for call in calls for rows in patches[call.name]]),
        np.concatenate(addends[calls[0].name]) if chain.addend is not None else None,
        moments[layer.name].statistics(centred=centred),
    )


def draw(
    op: Op,
    tensor: Tensor,
    source: Array,
    images: NDArray[np.intp],
    each: int,
    rng: np.random.Generator,
) -> tuple[Array, tuple[Any, ...]]:
    """``each`` input patches (N, G, D) at random output positions of each image, and the index of those positions in the output.

    Where an image has no more positions than that, each of them is taken once.
    """
    if not op.info.is_convolution:
        if op.info.family == "einsum":
            source = _summed_last(op, tensor, source)
        where = _positions(source.shape[1:-1], images, each, rng)
        return source[where][:, None, :], where
    geometry = conv_geometry(op, Tensor(source.shape, tensor.dtype))
    if geometry.channels_first:
        source = np.moveaxis(source, 1, -1)
    if geometry.transposed:
        where = _positions(source.shape[1:-1], images, each, rng)
        return source[where][:, None, :], where
    lengths = tuple(int(n) for n in geometry.out_shape if n is not None)
    at, *spots = _positions(lengths, images, each, rng)
    pads = padding(
        geometry.padding,
        source.shape[1:-1],
        lengths,
        geometry.kernel,
        geometry.strides,
        geometry.dilation,
    )
    padded = np.pad(source, [(0, 0), *pads, (0, 0)])
    index: list[NDArray[np.intp]] = [at.reshape(-1, *(1,) * geometry.rank)]
    for axis in range(geometry.rank):
        taps = (
            spots[axis][:, None] * geometry.strides[axis]
            + np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
        )
        shape = [1] * geometry.rank
        shape[axis] = geometry.kernel[axis]
        index.append(taps.reshape(-1, *shape))
    window = padded[tuple(index)]  # (N, k..., S)
    grouped = window.reshape(*window.shape[:-1], geometry.groups, -1)
    rows = np.moveaxis(grouped, -2, 1).reshape(len(at), geometry.groups, -1)
    return rows, (at, slice(None), *spots) if geometry.channels_first else (at, *spots)


def _positions(
    lengths: Sequence[int], images: NDArray[np.intp], each: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], ...]:
    """Index arrays (images, axes...) of ``each`` positions of each image."""
    total = int(np.prod(lengths, dtype=int))
    flat = (
        np.tile(np.arange(total), len(images))
        if each >= total
        else rng.integers(0, total, each * len(images))
    )
    return (
        np.repeat(images, min(each, total)),
        *(np.unravel_index(flat, lengths) if lengths else ()),
    )


def _summed_last(op: Op, tensor: Tensor, source: Array) -> Array:
    """The input of an EinsumDense with the axes that the product sums over flattened to one, the last, in the kernel's order."""
    einsum = Einsum.of(op, tensor)
    letters = einsum.source.removeprefix("...")
    summed = [source.ndim - len(letters) + letters.index(letter) for letter in einsum.summed]
    kept = [axis for axis in range(source.ndim) if axis not in summed]
    moved = source.transpose(*kept, *summed)
    return moved.reshape(*moved.shape[: len(kept)], -1)


def padding(
    mode: str,
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """Zeros before and after each spatial axis, as TensorFlow pads: 'same' puts the odd one behind, 'causal' all before."""
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


#: With fewer inputs than this nothing is fitted.
FEWEST = 16


def repairable(state: State) -> bool:
    """Whether there are samples to fit layers on: enough of them, and if they are made up, such that match BatchNorm statistics."""
    matched = any(op.kind == "BatchNormalization" for op in state.original)
    return (matched or not state.data.synthetic) and len(state.data.train) >= FEWEST
