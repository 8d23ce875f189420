"""Fit the factors anew, layer after layer, to what the original delivers, on what the compressed network delivers."""

from __future__ import annotations

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
from lrfc.ir.batch import head
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.pruning.facts import Pruned, Selection
from lrfc.search.batchnorm import Moments, moved
from lrfc.search.candidates import Candidate
from lrfc.search.epilogue import Epilogue, epilogue_of
from lrfc.search.sensitivity import divergence
from lrfc.search.statistics import FEWEST, draw, repairable
from lrfc.state import Fact, State

Array = NDArray[np.float32]

#: Bytes that the activations of both networks may take.
MEMORY = 2 << 30
#: Validation inputs that the whole is judged on.
JUDGED = 1_000
#: Divergence that the rounding of float32 alone makes, on every processor: less is no gain.
ROUNDING = 1e-7


@dataclass(frozen=True)
class Refit:
    """Solve every factorized layer again in closed form, with its method and ranks as they are: no gradients, no labels.

    Both networks are passed once, op by op. At each layer the kernel is regressed (ridge, towards
    the kernel that it has) from what the compressed network delivers onto what the original
    delivers, and decomposed again in the norm of those inputs: the asymmetric reconstruction of
    Zhang et al. 2016 (arXiv 1505.06798, 3.3), so that the errors of the layers before are repaired
    instead of handed on. In front of a residual addition the target includes what the other branch
    has lost (He et al. 2017, arXiv 1707.06168, 3.3). Layers that are not factorized are regressed
    too, BatchNorm statistics follow. A regression that does not fit held-out inputs better than the
    kernel does is not taken, and neither is the whole when the network's outputs on validation
    inputs do not come nearer to the original's.

    Where filters were pruned, what is left is regressed onto what the original delivers there,
    which makes up for what is gone. Transposed convolutions, EinsumDense and layers that are called
    more than once keep their factors. With fewer than 16 inputs, or on synthetic ones that no
    BatchNorm's statistics could be matched for, the graph is not changed.

    Given and result: the graph keeps its ops and shapes; weights change.
    """

    samples: int = 1_000
    patches: int = 24_576
    ridge: float = 1e-2

    needs: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the new weights."""
        inputs = state.data.train.inputs
        count = min(
            self.samples,
            len(inputs[0]),
            max(FEWEST, MEMORY // (2 * max(1, arena(state.original, 4).peak_bytes))),
        )
        graph = state.original
        if not repairable(state):
            return state
        chosen = {candidate.layer: candidate for candidate in state.fact(Selection).chosen}
        pruned = state.known(Pruned)
        slim = (
            graph if pruned is None else pruned.slim
        )  # the original without the filters that are gone, whose shapes the compressed network has
        chains = {op.name: epilogue_of(slim, op.name) for op in slim if _fittable(slim, op)}
        step = state.progress.stage("refit", len(graph))
        updated: dict[str, dict[str, NDArray[np.float32]]] = {}
        values = _Values(graph, head(inputs, count), {} if pruned is None else pruned.left)
        rng = np.random.default_rng(state.seed)
        for op in _order(graph, chains, values):
            operands = graph.operands(op.name)
            given = [values.compressed[ref] for ref in operands]
            delivered = keras_io.single(op)([values.original[ref] for ref in operands])
            stages = _compressed(state.graph, graph, op.name)
            if op.name in chains:
                target = values.left(Ref(op.name), delivered[0])
                stages = (
                    self._fitted(
                        slim,
                        slim.op(op.name),
                        chosen.get(op.name),
                        chains[op.name],
                        values,
                        target,
                        rng,
                    )
                    or stages
                )
            elif op.kind == "BatchNormalization" and len(graph.calls(op)) == 1:
                seen = (
                    _moments(x, op["axis"])
                    for x in (values.left(operands[0], values.original[operands[0]]), given[0])
                )
                norm = slim.op(op.name)
                mean, variance = moved(norm, *seen)
                stages = [
                    replace(
                        norm,
                        weights={
                            **norm.weights,
                            "moving_mean": mean.astype(np.float32),
                            "moving_variance": variance.astype(np.float32),
                        },
                    )
                ]
            results: Sequence[Array] = given
            for stage in stages:
                results = keras_io.single(stage)(results)
                if stage.weights:
                    updated[stage.name] = dict(stage.weights)
            values.put(op.name, delivered, results)
            step(1)
        refitted = state.graph.with_weights(updated)
        judged = state.data.validation.head(JUDGED).inputs
        reference = keras_io.predict(state.original, judged)
        before, after = (
            divergence(reference, keras_io.predict(graph, judged))
            for graph in (state.graph, refitted)
        )
        if not before - after > ROUNDING + 1e-3 * before:
            state.progress.log(
                f"  not taken: the outputs' divergence would go from {before:.4g} to {after:.4g}"
            )
            return state
        return state.with_graph(refitted)

    def _fitted(
        self,
        graph: Graph,
        op: Op,
        candidate: Candidate | None,
        chain: Epilogue,
        values: _Values,
        delivered: Array,
        rng: np.random.Generator,
    ) -> list[Op] | None:
        """The layer's stages after regression; None where it keeps those that it has."""
        source = graph.input_tensors(op.name)[0]
        drifted = values.compressed[graph.operands(op.name)[0]]
        images, layout = np.arange(len(drifted)), Layout.of(op, source)
        rows, where = draw(op, source, drifted, images, -(-self.patches // len(images)), rng)
        target = _rows(delivered, where)
        if chain.addend in values.compressed:
            lost = _rows(
                values.left(chain.addend, values.original[chain.addend])
                - values.compressed[chain.addend],
                where,
            )
            target = target + (lost if chain.scale is None else _divided(lost, chain.scale))
        centred = chain.batchnorm is not None or "bias" in op.weights
        fitted, statistics = _regress(layout, rows, target, self.ridge, centred=centred)
        if candidate is None or candidate.method is None:
            return None if fitted is None else [fitted]
        if any(
            rank > full
            for rank, full in zip(
                candidate.ranks, METHODS[candidate.method].full(op, source), strict=True
            )
        ):
            return None  # pruning has left the layer fewer channels than its factors have
        factors = METHODS[candidate.method].decompose(
            fitted or op, source, scale=chain.scale, statistics=statistics
        )
        return factors.stages(candidate.ranks)


class _Values:
    """What both networks deliver, kept as long as an op still reads it."""

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

    def hold(self, ref: Ref) -> None:
        """Count one more reader."""
        self._readers[ref] += 1

    def left(self, ref: Ref, value: Array) -> Array:
        """What the original delivers on the channels that the compressed network has, too."""
        cut = self._left.get(ref)
        return value if cut is None else np.take(value, cut[1], axis=cut[0])

    def put(self, name: str, original: Sequence[Array], compressed: Sequence[Array]) -> None:
        """Store an op's outputs, and forget what it was the last to read."""
        self._store(name, original, compressed)
        for ref in self._graph.operands(name):
            self.release(ref)

    def release(self, ref: Ref) -> None:
        """Count one reader less."""
        self._readers[ref] -= 1
        if not self._readers[ref]:
            self.original.pop(ref), self.compressed.pop(ref)

    def _store(self, name: str, original: Sequence[Array], compressed: Sequence[Array]) -> None:
        for output, (old, new) in enumerate(zip(original, compressed, strict=True)):
            if self._readers[Ref(name, output)]:
                self.original[Ref(name, output)], self.compressed[Ref(name, output)] = old, new


def _fittable(graph: Graph, op: Op) -> bool:
    """Whether the layer's output at a position is a product of one patch with its kernel, and of no other call's."""
    plain = op.info.family in ("dense", "conv", "depthwise")
    return (
        plain
        and op.origin is None
        and "kernel" in op.weights
        and len(graph.calls(op)) == 1
        and op["activation"] in (None, "linear")
    )


def _order(graph: Graph, chains: dict[str, Epilogue], values: _Values) -> Iterator[Op]:
    """Execution order in which, where possible, the other branch of a residual addition comes before the layer that can repair it."""
    ordered = nx.DiGraph()
    rank = {op.name: number for number, op in enumerate(graph)}
    ordered.add_nodes_from(rank)
    ordered.add_edges_from((ref.op, op.name) for op in graph for ref in graph.operands(op.name))
    held: dict[str, Ref] = {}
    for name, chain in chains.items():
        if chain.addend is not None and not nx.has_path(ordered, name, chain.addend.op):
            ordered.add_edge(chain.addend.op, name)
            held[name] = chain.addend
            values.hold(chain.addend)
    for name in nx.lexicographical_topological_sort(ordered, key=rank.__getitem__):
        if graph.op(name).kind != "InputLayer":
            yield graph.op(name)
            if name in held:
                values.release(held[name])


def _compressed(compressed: Graph, original: Graph, name: str) -> list[Op]:
    """The chain of ops in the compressed graph that stands for an op of the original."""
    wanted = set(original.operands(name))
    chain = [compressed.op(name)]
    while wanted and not wanted & set(operands := compressed.operands(chain[0].name)):
        chain.insert(0, compressed.op(operands[0].op))
    return chain


def _moments(values: Array, axis: int) -> Moments:
    """Mean and variance of each channel; one sample at a time is small enough for the processor's cache."""
    moved = np.moveaxis(values, axis, -1)
    total, square = np.zeros(moved.shape[-1]), np.zeros(moved.shape[-1])
    centre = moved[0].reshape(-1, moved.shape[-1]).mean(0)
    for sample in moved:
        rows = sample.reshape(-1, moved.shape[-1]) - centre
        total += rows.sum(0)
        square += np.einsum("nc,nc->c", rows, rows)
    count = values.size / moved.shape[-1]
    mean = total / count
    return centre + mean, np.maximum(square / count - mean**2, 0)


def _rows(values: Array, where: tuple[object, ...]) -> NDArray[np.float64]:
    return np.asarray(values[where], np.float64)  # type: ignore[index]


def _divided(lost: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a channel must give so that ``lost`` is made good behind the BatchNorm; nothing where it hardly lets anything through."""
    open_ = np.abs(scale) > 1e-2 * np.abs(scale).max()
    return np.where(open_, lost / np.where(open_, scale, 1), 0)


def _regress(
    layout: Layout, rows: Array, target: NDArray[np.float64], ridge: float, *, centred: bool
) -> tuple[Op | None, Statistics]:
    """The op with the kernel (and bias) that best gives ``target`` (N, G·T) from patches (N, G, D), or None; and the patches' statistics.

    It is None when rows of held-out images are not fitted better than by the kernel that the op
    has.
    """
    op = layout.op
    kernel = layout.matrix(layout.tensor())
    bias = np.zeros(target.shape[1]) if layout.bias is None else layout.bias.copy()
    fold = len(rows) - len(rows) // 8  # rows are in the order of the images
    means = rows[:fold].mean(0) if centred else np.zeros(rows.shape[1:], np.float32)
    moments = np.empty((layout.groups, layout.patch, layout.patch))
    before = after = 0.0
    for group in range(layout.groups):
        part = slice(group * layout.outputs, (group + 1) * layout.outputs)
        missing = target[:, part].astype(np.float32) - rows[:, group] @ kernel[group].astype(
            np.float32
        )
        shift = missing[:fold].mean(0) if centred else bias[part].astype(np.float32)
        inner = rows[:, group] - means[group]
        moments[group] = inner[:fold].T @ inner[:fold] / np.float32(fold)
        cross = inner[:fold].T @ (missing[:fold] - shift) / np.float32(fold)
        weight = ridge * max(float(np.trace(moments[group])) / layout.patch, 1e-12)
        with threads(layout):
            change = solve_positive(
                moments[group] + weight * np.eye(layout.patch), cross.astype(np.float64)
            )
        before += float(np.sum(np.square(missing[fold:] - (shift if centred else bias[part]))))
        after += float(np.sum(np.square(missing[fold:] - shift - inner[fold:] @ change)))
        kernel[group] += change
        bias[part] = shift - means[group] @ change
    statistics = Statistics(moments, means.astype(np.float64) if centred else None, fold)
    if not after < before:
        return None, statistics
    weights = {**op.weights, "kernel": layout.layer_kernel(kernel.reshape(layout.tensor().shape))}
    if "bias" in op.weights:
        weights["bias"] = bias.astype(np.float32)
    return replace(op, weights=weights), statistics
