"""Layer-wise reconstruction: refit each layer so that its output approximates the original's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from lrfc.costs.arena import arena
from lrfc.factorization import METHODS
from lrfc.factorization.base import Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import solve_positive
from lrfc.factorization.threads import threads
from lrfc.ir.batch import Batch, head
from lrfc.ir.graph import Graph
from lrfc.ir.graph_cache import GraphCache
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.pruning.facts import Pruned, Selection
from lrfc.search.batchnorm import Moments, moved
from lrfc.search.epilogue import Epilogue, epilogue_of
from lrfc.search.sensitivity import divergence
from lrfc.search.statistics import FEWEST, draw, repairable
from lrfc.state import Fact, State
from lrfc.system import memory

Array = NDArray[np.float32]

#: Bytes that the activations of both networks may take.
MEMORY = 2 << 30
#: Bytes that the activations of an original may take from one plan to the next.
RETAINED = 256 << 20
#: Validation samples on which the refitted network is compared with the one before.
JUDGED = 1_000
#: Divergence that rounding in float32 causes on any processor; a smaller gain is no gain.
ROUNDING = 1e-7

#: Weights by name, by layer.
_Weights = dict[str, dict[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class Refit:
    """Solve the weights of every layer again, in closed form, to reconstruct the original's output.

    The original and the compressed network run once on the same samples, op by op. At each layer
    the kernel is regressed from the input in the compressed network onto the output in the
    original (ridge regression towards the present kernel). A factorized layer is then decomposed
    again in the norm of those inputs, with its method and ranks. This is the asymmetric
    reconstruction of Zhang et al. 2016 (arXiv 1505.06798, 3.3): each layer corrects the errors of
    the layers before it. In front of a residual addition, the target includes the error of the
    other branch (He et al. 2017, arXiv 1707.06168, 3.3). Layers that are not factorized are
    regressed, too, and BatchNorm statistics are updated. There are no gradients and no labels.

    A regression that does not fit held-out inputs better than the present kernel is discarded. So
    is the whole result if the outputs on validation inputs do not come nearer to the original's.

    In a pruned network, the targets are the channels that it still has, and the remaining inputs
    compensate for the removed ones. Transposed convolutions, EinsumDense and layers with
    several calls keep their factors. The graph is not changed with fewer than 16 inputs, or with
    synthetic inputs that were not matched to BatchNorm statistics.

    ``samples``: the most inputs. ``patches``: rows of a regression. ``ridge``: the weight of the
    present kernel, relative to the mean energy of an input.

    Given and result: the graph keeps its ops and shapes; weights change.
    """

    samples: int = 1_000
    patches: int = 24_576
    ridge: float = 1e-2

    needs: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the new weights; the same state if they are not better."""
        if not repairable(state):
            return state
        refitted = state.graph.with_weights(_Reconstruction(self, state).weights())
        inputs = state.data.validation.head(JUDGED).inputs
        reference = _OUTPUTS.get(
            state.original,
            state.data.validation.inputs,
            len(inputs[0]),
            lambda: keras_io.predict(state.original, inputs),
        )
        before, after = (
            divergence(reference, keras_io.predict(graph, inputs))
            for graph in (state.graph, refitted)
        )
        if not before - after > ROUNDING + 1e-3 * before:
            state.progress.log(
                f"  discarded: the outputs' divergence would go from {before:.4g} to {after:.4g}"
            )
            return state
        return state.with_graph(refitted)


#: The outputs of each original on validation inputs: every plan of a build is compared with them.
_OUTPUTS: GraphCache[Batch] = GraphCache()
#: The outputs of each op of an original on training inputs, where they fit into RETAINED bytes.
_ACTIVATIONS: GraphCache[dict[str, Sequence[Array]]] = GraphCache()


class _Reconstruction:
    """One run of the original and the compressed network, op by op, with a fit at each layer."""

    def __init__(self, options: Refit, state: State) -> None:
        self._options, self._state = options, state
        self._graph = graph = state.original
        pruned = state.known(Pruned)
        #: The original without the removed filters: it has the shapes of the compressed network.
        self._slim = graph if pruned is None else pruned.slim
        self._epilogues = {
            op.name: epilogue_of(self._slim, op.name)
            for op in self._slim
            if _fittable(self._slim, op)
        }
        self._chosen = {candidate.layer: candidate for candidate in state.fact(Selection).chosen}
        inputs = state.data.train.inputs
        count = min(
            options.samples,
            len(inputs[0]),
            max(FEWEST, memory.share(MEMORY) // (2 * max(1, arena(graph, 4).peak_bytes))),
        )
        self._values = _Values(graph, head(inputs, count), {} if pruned is None else pruned.left)
        self._known = self._activations(inputs, count)
        self._rng = np.random.default_rng(state.seed)

    def weights(self) -> _Weights:
        """The weights of the layers of the compressed network after the fit."""
        step = self._state.progress.stage("refit", len(self._graph))
        updated: _Weights = {}
        for op in _order(self._graph, self._epilogues, self._values):
            operands = self._graph.operands(op.name)
            original = self._original(op, [self._values.original[ref] for ref in operands])
            compressed: Sequence[Array] = [self._values.compressed[ref] for ref in operands]
            for layer in self._layers(op, original[0]):
                compressed = keras_io.single(layer)(compressed)
                if layer.weights:
                    updated[layer.name] = dict(layer.weights)
            self._values.put(op.name, original, compressed)
            step(1)
        return updated

    def _activations(self, inputs: Batch, count: int) -> dict[str, Sequence[Array]] | None:
        """The stored outputs of the original's ops by name, none at first; None if too large."""
        tensors = [tensor for op in self._graph for tensor in self._graph.tensors(op.name)]
        sizes = [[n for n in tensor.shape[1:] if n is not None] for tensor in tensors]
        fixed = all(len(n) == len(t.shape) - 1 for n, t in zip(sizes, tensors, strict=True))
        if not fixed or 4 * count * sum(map(math.prod, sizes)) > memory.share(RETAINED):
            return None
        return _ACTIVATIONS.get(self._graph, inputs, count, dict)

    def _original(self, op: Op, operands: Sequence[Array]) -> Sequence[Array]:
        """The outputs of an op of the original, computed once for all plans of a build."""
        if self._known is None:
            return keras_io.single(op)(operands)
        if op.name not in self._known:
            self._known[op.name] = keras_io.single(op)(operands)
        return self._known[op.name]

    def _layers(self, op: Op, output: Array) -> list[Op]:
        """The ops that replace an op of the original, which has this output."""
        layers = _compressed(self._state.graph, self._graph, op.name)
        if op.name in self._epilogues:
            target = self._values.left(Ref(op.name), output)
            return self._fitted(self._slim.op(op.name), target) or layers
        if op.kind == "BatchNormalization" and len(self._graph.calls(op)) == 1:
            return [self._batchnorm(op)]
        return layers

    def _batchnorm(self, op: Op) -> Op:
        """The BatchNorm with statistics that follow the change of its input."""
        operand = self._graph.operands(op.name)[0]
        original = self._values.left(operand, self._values.original[operand])
        norm = self._slim.op(op.name)
        mean, variance = moved(
            norm,
            _moments(original, op["axis"]),
            _moments(self._values.compressed[operand], op["axis"]),
        )
        statistics = {
            "moving_mean": mean.astype(np.float32),
            "moving_variance": variance.astype(np.float32),
        }
        return replace(norm, weights={**norm.weights, **statistics})

    def _fitted(self, op: Op, output: Array) -> list[Op] | None:
        """The layer or its factor layers after regression; None if the present ones stay."""
        epilogue, candidate = self._epilogues[op.name], self._chosen.get(op.name)
        source = self._slim.input_tensors(op.name)[0]
        values = self._values.compressed[self._slim.operands(op.name)[0]]
        images, layout = np.arange(len(values)), Layout.of(op, source)
        per_image = -(-self._options.patches // len(images))
        rows, where = draw(op, source, values, images, per_image, self._rng)
        target = self._target(epilogue, output, where)
        centred = epilogue.batchnorm is not None or "bias" in op.weights
        fitted, statistics = _regress(layout, rows, target, self._options.ridge, centred=centred)
        if candidate is None or candidate.method is None:
            return None if fitted is None else [fitted]
        method = METHODS[candidate.method]
        if any(
            rank > full for rank, full in zip(candidate.ranks, method.full(op, source), strict=True)
        ):
            return None  # after pruning, the layer has fewer channels than ranks
        factors = method.decompose(
            fitted or op, source, scale=epilogue.scale, statistics=statistics
        )
        return factors.stages(candidate.ranks)

    def _target(
        self, epilogue: Epilogue, output: Array, where: tuple[object, ...]
    ) -> NDArray[np.float64]:
        """The target of a layer at the drawn positions; with the error of the other branch."""
        target = _rows(output, where)
        addend = epilogue.addend
        if addend is None or addend not in self._values.compressed:
            return target
        error = _rows(
            self._values.left(addend, self._values.original[addend])
            - self._values.compressed[addend],
            where,
        )
        return target + (error if epilogue.scale is None else _divided(error, epilogue.scale))


class _Values:
    """The tensors of both networks, stored until their last reader has run."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[NDArray[np.generic]],
        left: Mapping[Ref, tuple[int, NDArray[np.intp]]],
    ) -> None:
        self._graph, self._left = graph, left
        self._readers = Counter(ref for op in graph for ref in graph.operands(op.name))
        self.original: dict[Ref, Array] = {}
        self.compressed: dict[Ref, Array] = {}
        for name, x in zip(graph.inputs, inputs, strict=True):
            value = (np.asarray(x, graph.tensor(Ref(name)).dtype),)
            self._store(name, value, value)

    def add_reader(self, ref: Ref) -> None:
        """Count one more reader of a tensor."""
        self._readers[ref] += 1

    def remove_reader(self, ref: Ref) -> None:
        """Count one reader less, and free the tensor after the last one."""
        self._readers[ref] -= 1
        if not self._readers[ref]:
            self.original.pop(ref), self.compressed.pop(ref)

    def left(self, ref: Ref, value: Array) -> Array:
        """The channels of an original's tensor that the compressed network still has."""
        if ref not in self._left:
            return value
        axis, channels = self._left[ref]
        return np.take(value, channels, axis=axis)

    def put(self, name: str, original: Sequence[Array], compressed: Sequence[Array]) -> None:
        """Store the outputs of an op, and free the operands that it was the last to read."""
        self._store(name, original, compressed)
        for ref in self._graph.operands(name):
            self.remove_reader(ref)

    def _store(self, name: str, original: Sequence[Array], compressed: Sequence[Array]) -> None:
        for output, (old, new) in enumerate(zip(original, compressed, strict=True)):
            if self._readers[Ref(name, output)]:
                self.original[Ref(name, output)], self.compressed[Ref(name, output)] = old, new


def _fittable(graph: Graph, op: Op) -> bool:
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


def _order(graph: Graph, epilogues: dict[str, Epilogue], values: _Values) -> Iterator[Op]:
    """The ops in execution order, without the inputs of the model.

    Where possible, the other branch of a residual addition comes before the layer that can correct
    its error. Its output then stays in ``values`` until that layer is done.
    """
    ordered = nx.DiGraph()
    rank = {op.name: number for number, op in enumerate(graph)}
    ordered.add_nodes_from(rank)
    ordered.add_edges_from((ref.op, op.name) for op in graph for ref in graph.operands(op.name))
    addends: dict[str, Ref] = {}
    for name, epilogue in epilogues.items():
        addend = epilogue.addend
        if addend is not None and not nx.has_path(ordered, name, addend.op):
            ordered.add_edge(addend.op, name)
            addends[name] = addend
            values.add_reader(addend)
    for name in nx.lexicographical_topological_sort(ordered, key=rank.__getitem__):
        if graph.op(name).kind != "InputLayer":
            yield graph.op(name)
            if name in addends:
                values.remove_reader(addends[name])


def _compressed(compressed: Graph, original: Graph, name: str) -> list[Op]:
    """The chain of ops in the compressed graph that replaces an op of the original."""
    sources = set(original.operands(name))
    chain = [compressed.op(name)]
    while sources and not sources & set(operands := compressed.operands(chain[0].name)):
        chain.insert(0, compressed.op(operands[0].op))
    return chain


def _moments(values: Array, axis: int) -> Moments:
    """The mean and variance of each channel.

    They are summed sample by sample, because one sample fits into the cache of the processor.
    """
    samples = np.moveaxis(values, axis, -1)
    channels = samples.shape[-1]
    total, square = np.zeros(channels), np.zeros(channels)
    centre = samples[0].reshape(-1, channels).mean(0)
    for sample in samples:
        rows = sample.reshape(-1, channels) - centre
        total += rows.sum(0)
        square += np.einsum("nc,nc->c", rows, rows)
    count = values.size / channels
    mean = total / count
    return centre + mean, np.maximum(square / count - mean**2, 0)


def _rows(values: Array, where: tuple[object, ...]) -> NDArray[np.float64]:
    return np.asarray(values[where], np.float64)  # type: ignore[index]


def _divided(error: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """An error behind the BatchNorm, divided by its scale; 0 for channels with a tiny scale."""
    open_ = np.abs(scale) > 1e-2 * np.abs(scale).max()
    return np.where(open_, error / np.where(open_, scale, 1), 0)


def _regress(
    layout: Layout, rows: Array, target: NDArray[np.float64], ridge: float, *, centred: bool
) -> tuple[Op | None, Statistics]:
    """The layer with the kernel (and bias) that best maps patches (N, G, D) to a target (N, G·T).

    It is None if the new kernel does not fit the patches of held-out images better than the present
    one. The second value are the statistics of the patches.
    """
    op = layout.op
    kernel = layout.matrix(layout.tensor())
    bias = np.zeros(target.shape[1]) if layout.bias is None else layout.bias.copy()
    fold = len(rows) - len(rows) // 8  # rows are in the order of images
    means = rows[:fold].mean(0) if centred else np.zeros(rows.shape[1:], np.float32)
    moments = np.empty((layout.groups, layout.patch, layout.patch))
    before = after = 0.0
    for group in range(layout.groups):
        columns = slice(group * layout.outputs, (group + 1) * layout.outputs)
        missing = target[:, columns].astype(np.float32) - rows[:, group] @ kernel[group].astype(
            np.float32
        )
        shift = missing[:fold].mean(0) if centred else bias[columns].astype(np.float32)
        inner = rows[:, group] - means[group]
        moments[group] = inner[:fold].T @ inner[:fold] / np.float32(fold)
        cross = inner[:fold].T @ (missing[:fold] - shift) / np.float32(fold)
        weight = ridge * max(float(np.trace(moments[group])) / layout.patch, 1e-12)
        with threads(layout):
            change = solve_positive(
                moments[group] + weight * np.eye(layout.patch), cross.astype(np.float64)
            )
        before += float(np.sum(np.square(missing[fold:] - (shift if centred else bias[columns]))))
        after += float(np.sum(np.square(missing[fold:] - shift - inner[fold:] @ change)))
        kernel[group] += change
        bias[columns] = shift - means[group] @ change
    statistics = Statistics(moments, means.astype(np.float64) if centred else None, fold)
    if not after < before:
        return None, statistics
    weights = {**op.weights, "kernel": layout.layer_kernel(kernel.reshape(layout.tensor().shape))}
    if "bias" in op.weights:
        weights["bias"] = bias.astype(np.float32)
    return replace(op, weights=weights), statistics
