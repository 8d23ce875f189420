"""Add the effect of integer rounding to the error and divergence of every candidate."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lrfc.config.precision import PRECISIONS
from lrfc.costs.arena import arena
from lrfc.factorization.base import Ranks
from lrfc.factorization.cp import CPFactors
from lrfc.factorization.layout import Layout
from lrfc.factorization.threads import SMALL, alone
from lrfc.ir.backend import keras, quiet
from lrfc.ir.batch import Batch
from lrfc.ir.equalize import Ranges, equalize, pairs
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref, Tensor
from lrfc.ir.rounding import STEPS, rounded, rounds
from lrfc.search.cache import Store, fingerprint, place
from lrfc.search.candidates import FITTED, PROBES, Candidate, Decomposed, LayerSpace
from lrfc.search.epilogue import epilogue_of, rectifier
from lrfc.search.facts import DesignSpace
from lrfc.state import Fact, State
from lrfc.system import memory

Array = NDArray[np.float32]

#: Most bytes of activations in memory.
MEMORY = 1 << 30
#: Places among a method's candidates, from the smallest to the largest, at which the noise is
#: measured; fewer for methods whose factors are fitted for each rank.
PLACES, PLACES_FITTED = (0.15, 0.5, 0.85), (0.25, 0.75)


@dataclass(frozen=True)
class WeighRounding:
    """Give every candidate the error and divergence that it has in an integer precision.

    Networks with the same float error may differ much as integers, because each factor layer adds
    a tensor that is rounded with one scale for all channels. So the factor layers of a candidate
    run on the layer's input for a few calibration samples: once in float, and once as in the file,
    with the channels equalised as by EqualizeStages, weights rounded per output channel, and
    tensors between factor layers rounded to the bits of the precision. The noise n is the norm of
    the difference over that of the feature map, both behind BatchNorm and activation. The mean of
    the difference does not count, since CorrectBiases removes it. Rounding of the layer's input
    and output does not count, since it is the same for all candidates. The unfactorized layer has
    the noise of its own weights.

    The noise is independent of the truncation error, so the new error is √(error² + n²). The
    divergence is quadratic in small changes: with e the smaller of the two errors at which the
    sensitivity was measured, it grows by divergence(e) · (n / e)².

    The noise is measured at two or three ranks of each method; between them it is a power of the
    product of the ranks. Float precisions change nothing. ``images``: calibration samples.
    ``cached``: reuse the results of earlier runs with the same candidates, model, samples and
    precision. ``steps``: steps from 0 to the largest weight in the format of the file
    (lrfc.ir.rounding).

    Given and result: the graph is not changed.
    """

    precision: str = "int8"
    images: int = 16
    cached: bool = False
    steps: int = STEPS

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with the new errors and divergences in its DesignSpace."""
        if not PRECISIONS[self.precision].integer:
            return state
        graph, design = state.graph, state.fact(DesignSpace)
        bits = 8 * PRECISIONS[self.precision].activation
        count = max(4, min(self.images, memory.share(MEMORY) // max(1, arena(graph, 4).peak_bytes)))
        inputs = state.data.train.head(count).inputs
        spaces = {space.calls[0]: space for space in design.spaces}
        step = state.progress.stage("rounding", len(spaces))
        store, weighed = None, dict[str, LayerSpace]()
        if self.cached:
            store = self._store(state, inputs, bits)
            weighed = _stored(store, spaces)
            step(len(weighed))
        missing = [name for name in spaces if name not in weighed]
        for name, layer_inputs, before in _tensors(graph, missing, inputs) if missing else ():
            rounding = Rounding.of(graph, name, layer_inputs, before, bits, self.steps)
            space = weighed[name] = _with_noise(spaces[name], rounding)
            if store is not None:
                store.put(space.op.name, space.candidates, space.refusals)
            step(1)
        return state.with_fact(replace(design, spaces=tuple(weighed[name] for name in spaces)))

    def _store(self, state: State, inputs: Batch, bits: int) -> Store:
        """The stored results for the same candidates, model, samples and precision."""
        candidates = [
            (c.layer, c.method, c.ranks, c.error, c.divergence)
            for space in state.fact(DesignSpace).spaces
            for c in space.candidates
        ]
        key = fingerprint(state.graph, inputs, ("noise", bits, self.steps, candidates))
        return Store(place(), key, state.progress.log)


def _stored(store: Store, spaces: Mapping[str, LayerSpace]) -> dict[str, LayerSpace]:
    """The spaces with stored candidates, of the layers that the store has."""
    entries = ((name, space, store.get(space.op.name)) for name, space in spaces.items())
    return {
        name: replace(space, candidates=entry[0])
        for name, space, entry in entries
        if entry is not None
    }


@dataclass(frozen=True, eq=False)
class Rounding:
    """The effect of rounding on the feature map of one layer.

    ``inputs``: values of the ``source`` tensor, which the layer reads. ``before``: the output
    behind BatchNorm and addition, which ``activate`` maps to the feature map. ``scale``: that of
    the BatchNorm, in the shape of the output with length 1 on all axes but ``axis``, that of the
    channels. ``bits``: of activations. ``equalised``: whether factor layers will be. ``steps``:
    steps from 0 to the largest weight.
    """

    source: Tensor
    inputs: Array
    before: Array
    scale: Array
    axis: int
    activate: Callable[[Array], Array]
    bits: int = 8
    equalised: bool = True
    steps: int = STEPS

    @classmethod
    def of(
        cls, graph: Graph, name: str, inputs: Array, before: Array, bits: int, steps: int = STEPS
    ) -> Rounding:
        """The rounding of a layer of a graph, with values of its input and behind its addition."""
        epilogue, op = epilogue_of(graph, name), graph.op(name)
        axis = 1 if op.attrs.get("data_format") == "channels_first" else before.ndim - 1
        scale = np.ones([1] * before.ndim, np.float32)
        if epilogue.scale is not None:
            scale = epilogue.scale.astype(np.float32).reshape(
                [-1 if number == axis else 1 for number in range(before.ndim)]
            )
        return cls(
            graph.input_tensors(name)[0],
            inputs,
            before,
            scale,
            axis,
            _activate(epilogue.activation),
            bits,
            len(graph.calls(op)) == 1,
            steps,
        )

    def noise(self, layers: Sequence[Op]) -> float:
        """‖rounded − float‖ / ‖float‖ of the feature map, with these factor layers.

        The norm below the line is that of the original layer's feature map.
        """
        graph = self._chain(layers)
        (ref,) = graph.outputs
        candidates = list(pairs(graph)) if self.equalised else []
        exact = _run(graph, self.inputs)
        ranges = {pair.tensor: Ranges.of(exact[pair.tensor], pair.axis) for pair in candidates}
        equalize(graph, candidates, ranges, self.bits)
        error = _run(graph, self.inputs, self.bits, self.steps)[ref] - exact[ref]
        others = tuple(number for number in range(error.ndim) if number != self.axis)
        error -= error.mean(others, keepdims=True)
        count = error.size // error.shape[self.axis]
        feature_map = self.activate(self.before)
        difference = np.linalg.norm(self.activate(self.before + self.scale * error) - feature_map)
        return float(
            difference
            / max(float(np.linalg.norm(feature_map)), 1e-12)
            * np.sqrt(count / max(count - 1, 1))
        )

    def _chain(self, layers: Sequence[Op]) -> Graph:
        """The factor layers as a graph, without activations inside of them."""
        graph = Graph("stages")
        attrs = {"batch_shape": self.source.shape, "dtype": self.source.dtype}
        graph.outputs = (graph.add(Op("\0", "InputLayer", attrs)),)
        for op in (replace(op, shared=None) for op in layers):
            if "activation" in op.attrs and op.kind != "Activation":
                op = op.with_attrs(activation=None)
            graph.outputs = (graph.add(op, graph.outputs),)
        return graph


def _activate(activation: Op | None) -> Callable[[Array], Array]:
    """The activation as a function, in NumPy if it is a rectifier."""
    if activation is None:
        return lambda x: x
    run = keras_io.single(activation)
    return rectifier(activation) or (lambda x: run([x])[0])


def _run(
    graph: Graph, inputs: Array, bits: int | None = None, steps: int = STEPS
) -> Mapping[Ref, Array]:
    """All tensors of a chain of ops: in float, or rounded to ``bits``.

    Rounded are the weights, and the tensors between linear layers.
    """
    values: dict[Ref, Array] = {}
    current = inputs
    for op in graph:
        if op.kind != "InputLayer":
            current = _apply(rounded(op, steps) if bits is not None and rounds(op) else op, current)
            if bits is not None and op.weights and Ref(op.name) not in graph.outputs:
                current = _quantised(current, bits)
        values[Ref(op.name)] = current
    return values


def _apply(op: Op, x: Array) -> Array:
    """The output of an op for the input x.

    A Keras layer takes ten times as long to build as to run, so common layers are not built.
    """
    plain = (
        op.attrs.get("data_format") in (None, "channels_last")
        and op.attrs.get("groups", 1) == 1
        and op.attrs.get("padding") != "causal"
    )
    functions = {"dense": "matmul", "conv": "conv", "depthwise": "depthwise_conv"}
    function = functions.get(op.info.family)
    if function is None or not plain:
        return keras_io.single(op)([x])[0]
    window = (
        {}
        if op.info.family == "dense"
        else {name: op[name] for name in ("strides", "padding", "dilation_rate")}
    )
    with quiet():
        output = np.asarray(getattr(keras().ops, function)(x, op.weights["kernel"], **window))
    return output + op.weights["bias"] if "bias" in op.weights else output


def _quantised(values: Array, bits: int) -> Array:
    """The values rounded to integers with one scale; their range includes 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = np.float32((high - low) / (2**bits - 1) or 1)
    return np.asarray(np.rint(values / step) * step, np.float32)


def _tensors(
    graph: Graph, layers: Sequence[str], inputs: Sequence[NDArray[np.generic]]
) -> Iterator[tuple[str, Array, Array]]:
    """The input of each layer, and the tensor before the activation behind it.

    The network runs once, op by op; a tensor is freed after its last reader.
    """
    ends: dict[str, list[str]] = defaultdict(list)
    readers = Counter(ref for op in graph for ref in graph.operands(op.name))
    for name in layers:
        epilogue = epilogue_of(graph, name)
        end = epilogue.end
        if epilogue.activation is not None:
            end = graph.operands(epilogue.activation.name)[0].op
        ends[end].append(name)
        readers[graph.operands(name)[0]] += 1
    values: dict[Ref, Array] = {}

    def release(ref: Ref) -> None:
        readers[ref] -= 1
        if not readers[ref]:
            del values[ref]

    by_name = dict(zip(graph.inputs, inputs, strict=True))
    for op in graph:
        if op.kind == "InputLayer":
            dtype = graph.tensors(op.name)[0].dtype
            results: Sequence[Array] = [np.asarray(by_name[op.name], dtype)]
        else:
            results = keras_io.single(op)([values[ref] for ref in graph.operands(op.name)])
        values |= {
            Ref(op.name, output): value
            for output, value in enumerate(results)
            if readers[Ref(op.name, output)]
        }
        for name in ends.get(op.name, ()):
            source = graph.operands(name)[0]
            yield name, values[source], results[0]
            release(source)
        for ref in graph.operands(op.name):
            release(ref)


def _with_noise(space: LayerSpace, rounding: Rounding) -> LayerSpace:
    """The space with the noise in the error and the divergence of every candidate."""
    unfactorized = rounding.noise([space.op])
    noises: dict[str, Callable[[Ranks], float]] = {}
    for method in dict.fromkeys(c.method for c in space.candidates if c.method is not None):
        noises[method] = _interpolated(_measured(space, method, rounding))
        if (
            isinstance(space.factors, Decomposed)
            and Layout.of(space.op, rounding.source).patch > SMALL
        ):
            space.factors.keep_only(())
    curvature = _divergence(space.candidates, PROBES[0]) / PROBES[0] ** 2

    def with_noise(candidate: Candidate) -> Candidate:
        method = candidate.method
        noise = unfactorized if method is None else noises[method](candidate.ranks)
        return replace(
            candidate,
            error=float(np.hypot(candidate.error, noise)),
            divergence=candidate.divergence + curvature * noise**2,
        )

    return replace(
        space,
        candidates=tuple(map(with_noise, space.candidates)),
        excluded=None if space.excluded is None else with_noise(space.excluded),
    )


def _measured(space: LayerSpace, method: str, rounding: Rounding) -> dict[Ranks, float]:
    """The noise of a method at some of its ranks."""
    ranks = sorted((c.ranks for c in space.candidates if c.method == method), key=prod)
    factors = space.factors[method]
    if isinstance(factors, CPFactors):
        # Exploration has fitted every other rank (see lrfc.search.candidates): reuse these fits.
        factors, ranks = factors.quick, [*ranks[:-1:2], ranks[-1]]
    places = PLACES_FITTED if method in FITTED else PLACES
    chosen = dict.fromkeys(ranks[round(place * (len(ranks) - 1))] for place in places)
    with alone(Layout.of(space.op, rounding.source)):
        return {ranks: rounding.noise(factors.stages(ranks)) for ranks in chosen}


def _interpolated(measured: Mapping[Ranks, float]) -> Callable[[Ranks], float]:
    """The noise at any ranks: a power of their product between measured ones, constant beyond."""
    points = sorted(measured, key=prod)
    sizes = np.log([prod(ranks) for ranks in points])
    noises = np.log([max(measured[ranks], 1e-12) for ranks in points])
    return lambda ranks: float(np.exp(np.interp(np.log(prod(ranks)), sizes, noises)))


def _divergence(candidates: Sequence[Candidate], error: float) -> float:
    """The divergence at an error: a power of it (see lrfc.search.sensitivity).

    The power is that through the candidates of the least and the greatest error.
    """
    points = sorted((c.error, c.divergence) for c in candidates if c.error > 0 and c.divergence > 0)
    if not points:
        return 0.0
    (x, y), (far, top) = np.log(points[0]), np.log(points[-1])
    slope = np.clip((top - y) / (far - x), 1.0, 3.0) if far - x > 1e-6 else 2.0
    return float(np.exp(top + slope * (np.log(error) - far)))
