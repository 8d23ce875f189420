"""Layer-wise reconstruction: refit each layer so that its output approximates the original's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from lrfc.costs.arena import arena
from lrfc.factorization import METHODS
from lrfc.factorization.base import Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import solve_positive
from lrfc.factorization.threads import threads
from lrfc.factorization.warm import SWEEPS, warm
from lrfc.ir.backend import keras
from lrfc.ir.batch import head
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.pruning.facts import Pruned, Selection
from lrfc.search.batchnorm import moved
from lrfc.search.epilogue import Epilogue, epilogue_of
from lrfc.search.sensitivity import divergence
from lrfc.search.statistics import FEWEST, repairable
from lrfc.search.targets import Drawing, Summed, fittable, followed, left, targets
from lrfc.state import Fact, State
from lrfc.system import memory
from lrfc.system.spans import layers

Array = NDArray[np.float32]

#: Twice the bytes that the activations of the compressed network may take.
MEMORY = 2 << 30
#: Divergence that rounding in float32 causes on any processor; a smaller gain is no gain.
ROUNDING = 1e-7

#: Rows of a regression for each input of the widest layer, and the rows that suffice for a network
#: without wide ones. On ResNet-20, twice as many lower the divergence by 5 % on validation inputs
#: and by 1 % on test inputs.
ROWS, FEW_PATCHES = 16, 12_288

#: Weights by name, by layer.
_Weights = dict[str, dict[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class Refit:
    """Solve the weights of every layer again, in closed form, to reconstruct the original's output.

    The compressed network runs once, op by op, on samples that the original ran on, once for all
    plans of a build (``lrfc.search.targets``). At each layer the kernel is regressed from the input
    in the compressed network onto the output in the original (ridge regression towards the present
    kernel). A factorized layer is then decomposed again in the norm of those inputs, with its
    method and ranks. This is the asymmetric reconstruction of Zhang et al. 2016 (arXiv 1505.06798,
    3.3): each layer corrects the errors of the layers before it. In front of a residual addition,
    the target includes the error of the other branch (He et al. 2017, arXiv 1707.06168, 3.3).
    Layers that are not factorized are regressed, too, and BatchNorm statistics are updated. There
    are no gradients and no labels.

    A regression that does not fit held-out inputs better than the present kernel is discarded. So
    is the whole result if the outputs on validation inputs do not come nearer to the original's.

    In a pruned network, the targets are the channels that it still has, and the remaining inputs
    compensate for the removed ones. Transposed convolutions, EinsumDense and layers with
    several calls keep their factors. The graph is not changed with fewer than 16 inputs, or with
    synthetic inputs that were not matched to BatchNorm statistics.

    ``samples``: the most inputs. ``patches``: the most rows of a regression; half of them do where
    no layer has many inputs. ``ridge``: the weight of the present kernel, relative to the mean
    energy of an input. ``judged``: validation samples on which the refitted network is compared
    with the one before. ``sweeps``: the most of a fit that starts from the candidate's factors, for
    methods without a closed form.

    Given and result: the graph keeps its ops and shapes; weights change.
    """

    samples: int = 1_000
    patches: int = 24_576
    ridge: float = 1e-2
    judged: int = 500
    sweeps: int = SWEEPS

    needs: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the new weights; the same state if they are not better."""
        if not repairable(state):
            return state
        refitted = state.graph.with_weights(_Reconstruction(self, state).weights())
        inputs = state.data.validation.inputs
        reference = keras_io.first_outputs(state.original, inputs, self.judged)
        before, after = (
            divergence(reference, keras_io.predict(graph, head(inputs, self.judged)))
            for graph in (state.graph, refitted)
        )
        if not before - after > ROUNDING + 1e-3 * before:
            state.progress.log(
                f"  discarded: the outputs' divergence would go from {before:.4g} to {after:.4g}"
            )
            return state
        return state.with_graph(refitted)


class _Reconstruction:
    """One run of the compressed network, op by op, with a fit at each layer to the targets."""

    def __init__(self, options: Refit, state: State) -> None:
        self._options, self._state = options, state
        self._graph = graph = state.original
        pruned = state.known(Pruned)
        #: The original without the removed filters: it has the shapes of the compressed network.
        self._slim = graph if pruned is None else pruned.slim
        self._left = {} if pruned is None else pruned.left
        self._epilogues = {
            op.name: epilogue_of(self._slim, op.name) for op in graph if fittable(graph, op)
        }
        self._selection = state.fact(Selection)
        self._chosen = {candidate.layer: candidate for candidate in self._selection.chosen}
        inputs = state.data.train.inputs
        count = min(
            options.samples,
            len(inputs[0]),
            max(FEWEST, memory.share(MEMORY) // (2 * max(1, arena(graph, 4).peak_bytes))),
        )
        widest = max(
            (
                Layout.of(op, graph.input_tensors(op.name)[0]).patch
                for op in graph
                if op.name in self._epilogues
            ),
            default=0,
        )
        patches = min(options.patches, max(FEW_PATCHES, ROWS * widest))
        self._drawing = Drawing(count, patches, state.seed)
        self._targets = targets(
            graph, inputs, self._drawing, partial(state.progress.stage, "targets of the original")
        )
        self._parts = self._drawing.parts(graph)
        self._values = _Values(graph, head(inputs, count), len(self._parts[0]))

    def weights(self) -> _Weights:
        """The weights of the layers of the compressed network after the fit."""
        step = self._state.progress.stage("refit", len(self._graph))
        updated: _Weights = {}
        for op in layers(_order(self._graph, self._epilogues, self._values)):
            operands = [self._values[ref] for ref in self._graph.operands(op.name)]
            parts = [list(part) for part in zip(*operands, strict=True)]
            for layer in self._layers(op):
                compute = keras_io.eager(layer)
                parts = [compute(part) for part in parts]
                if layer.weights:
                    updated[layer.name] = dict(layer.weights)
            self._values.put(op.name, parts)
            step(1)
        return updated

    def _layers(self, op: Op) -> list[Op]:
        """The ops that replace an op of the original."""
        layers = _compressed(self._state.graph, self._graph, op.name)
        if op.name in self._epilogues:
            return self._fitted(self._slim.op(op.name)) or layers
        if followed(self._graph, op):
            return [self._batchnorm(op)]
        return layers

    def _batchnorm(self, op: Op) -> Op:
        """The BatchNorm with statistics that follow the change of its input."""
        operand = self._graph.operands(op.name)[0]
        mean, variance = (
            left(self._left, operand, moment) for moment in self._targets.moments[operand]
        )
        norm, summed = self._slim.op(op.name), Summed(op["axis"])
        for part in self._values[operand]:
            summed.add(np.asarray(part))
        mean, variance = moved(norm, (mean, variance), summed.moments())
        statistics = {
            "moving_mean": mean.astype(np.float32),
            "moving_variance": variance.astype(np.float32),
        }
        return replace(norm, weights={**norm.weights, **statistics})

    def _fitted(self, op: Op) -> list[Op] | None:
        """The layer or its factor layers after regression; None if the present ones stay."""
        epilogue, candidate = self._epilogues[op.name], self._chosen.get(op.name)
        source = self._slim.input_tensors(op.name)[0]
        drawn = [
            self._drawing.draw(self._slim, op, np.asarray(values), part)
            for values, part in zip(
                self._values[self._slim.operands(op.name)[0]], self._parts, strict=True
            )
        ]
        rows = np.concatenate([rows for rows, _ in drawn])
        target = self._target(op.name, epilogue, [where for _, where in drawn])
        centred = epilogue.batchnorm is not None or "bias" in op.weights
        layout = Layout.of(op, source)
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
        start = self._selection.factors[op.name]
        return warm(factors, start, self._options.sweeps).stages(candidate.ranks)

    def _target(
        self, name: str, epilogue: Epilogue, where: Sequence[tuple[object, ...]]
    ) -> NDArray[np.float64]:
        """The target of a layer at the drawn positions; with the error of the other branch."""
        target = left(self._left, Ref(name), self._targets.outputs[name]).astype(np.float64)
        addend = epilogue.addend
        if addend is None or addend not in self._values:
            return target
        present = [
            _rows(np.asarray(values), at)
            for values, at in zip(self._values[addend], where, strict=True)
        ]
        error = left(self._left, addend, self._targets.addends[name]) - np.concatenate(present)
        return target + (error if epilogue.scale is None else _divided(error, epilogue.scale))


class _Values:
    """The tensors of the compressed network in parts, stored until their last reader has run."""

    def __init__(self, graph: Graph, inputs: Sequence[NDArray[np.generic]], part: int) -> None:
        self._graph = graph
        self._readers = Counter(ref for op in graph for ref in graph.operands(op.name))
        self._stored: dict[Ref, list[Any]] = {}
        for name, x in zip(graph.inputs, inputs, strict=True):
            dtype = graph.tensor(Ref(name)).dtype
            starts = range(0, len(x), part)
            parts = [keras().ops.convert_to_tensor(x[i : i + part], dtype) for i in starts]
            self._store(name, [[values] for values in parts])

    def __getitem__(self, ref: Ref) -> list[Any]:
        return self._stored[ref]

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._stored

    def add_reader(self, ref: Ref) -> None:
        """Count one more reader of a tensor."""
        self._readers[ref] += 1

    def remove_reader(self, ref: Ref) -> None:
        """Count one reader less, and free the tensor after the last one."""
        self._readers[ref] -= 1
        if not self._readers[ref]:
            self._stored.pop(ref)

    def put(self, name: str, parts: Sequence[Sequence[Any]]) -> None:
        """Store the outputs of an op, and free the operands that it was the last to read."""
        self._store(name, parts)
        for ref in self._graph.operands(name):
            self.remove_reader(ref)

    def _store(self, name: str, parts: Sequence[Sequence[Any]]) -> None:
        for output, values in enumerate(zip(*parts, strict=True)):
            if self._readers[Ref(name, output)]:
                self._stored[Ref(name, output)] = list(values)


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
