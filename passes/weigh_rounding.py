"""Add to the error of every choice of a layer what rounding to integers will do to it."""

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
from lrfc.ir.equalize import Ranges, equalize, pairs
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref, Tensor
from lrfc.ir.rounding import STEPS, rounded, rounds
from lrfc.search.cache import Store, fingerprint, place
from lrfc.search.candidates import Candidate, Decomposed, LayerSpace
from lrfc.search.epilogue import epilogue_of, rectifier
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import FITTED, PROBES
from lrfc.state import Fact, State

Array = NDArray[np.float32]

#: Bytes of activations that the pass may hold.
MEMORY = 1 << 30
#: Where among a method's candidates, from the smallest to the largest, the noise is looked at;
#: fitted methods take longer.
LOOKED_AT, FEW = (0.15, 0.5, 0.85), (0.25, 0.75)


@dataclass(frozen=True)
class WeighRounding:
    """Give every candidate the error and the impact that it has in the precision that ships.

    Two networks with the same float error may differ much as integers: each stage adds a tensor
    that is rounded with one scale for all its channels. The stages of a candidate are run on what
    the layer reads for a few calibration images, once in float and once as the file computes them:
    balanced as EqualizeStages will, weights rounded per output channel, what passes between them to
    the bits of the precision. The difference, without its mean (which CorrectBiases takes out),
    behind BatchNorm and activation, over the norm of the feature map, is the noise n. Independent
    of what the ranks lose, it adds up with that to √(error² + n²). To the impact it adds what the
    layer's own curve of impact against error says at the smaller error that was tried, times (n /
    that error)²: a divergence is quadratic in small changes, and the curve is steeper further up.
    The layer as it is has the noise of its own weights. Rounding of what a layer reads and gives is
    the same for all choices, and is left out.

    The noise is measured at two or three ranks of each method; between them it follows a power of
    the product of the ranks. Float precisions change nothing. ``cached``: what an earlier run found
    out about a layer with the same candidates, on the same model, images and precision, is taken
    over. ``steps``: of the weights in the format of the file (lrfc.ir.rounding).
    """

    precision: str = "int8"
    images: int = 16
    cached: bool = False
    steps: int = STEPS

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its DesignSpace weighed anew."""
        if not PRECISIONS[self.precision].integer:
            return state
        graph, design, bits = (
            state.graph,
            state.fact(DesignSpace),
            8 * PRECISIONS[self.precision].activation,
        )
        count = max(4, min(self.images, MEMORY // max(1, arena(graph, 4).peak_bytes)))
        inputs = state.data.train.head(count).inputs
        spaces = {space.calls[0]: space for space in design.spaces}
        step = state.progress.stage("rounding", len(spaces))
        store, found = None, dict[str, LayerSpace]()
        if self.cached:
            given = [
                (c.layer, c.method, c.ranks, c.error, c.divergence)
                for space in design.spaces
                for c in space.candidates
            ]
            store = Store(
                place(),
                fingerprint(graph, inputs, ("noise", bits, self.steps, given)),
                state.progress.log,
            )
            stored = ((name, space, store.get(space.op.name)) for name, space in spaces.items())
            found = {
                name: replace(space, candidates=known[0])
                for name, space, known in stored
                if known is not None
            }
            step(len(found))
        missing = [name for name in spaces if name not in found]
        for name, read, before in _seen(graph, missing, inputs) if missing else ():
            found[name] = _weighed(
                spaces[name], Rounding.of(graph, name, read, before, bits, self.steps)
            )
            if store is not None:
                store.put(spaces[name].op.name, found[name].candidates, found[name].refusals)
            step(1)
        return state.with_fact(replace(design, spaces=tuple(found[name] for name in spaces)))


@dataclass(frozen=True, eq=False)
class Rounding:
    """What rounding does to one layer, whatever stands in its place.

    ``read``: what it reads, of that ``source`` tensor. ``before``: what becomes of its output with
    BatchNorm and addition, and is turned into the feature map by ``activate``. ``scale``: of the
    BatchNorm, along the output's ``axis``. ``balanced``: whether the stages will be.
    """

    source: Tensor
    read: Array
    before: Array
    scale: Array
    axis: int
    activate: Callable[[Array], Array]
    bits: int = 8
    balanced: bool = True
    steps: int = STEPS

    @classmethod
    def of(
        cls, graph: Graph, name: str, read: Array, before: Array, bits: int, steps: int = STEPS
    ) -> Rounding:
        """Of a layer that reads this, and has that in front of the activation behind it."""
        chain, op = epilogue_of(graph, name), graph.op(name)
        axis = 1 if op.attrs.get("data_format") == "channels_first" else before.ndim - 1
        scale = np.ones([1] * before.ndim, np.float32)
        if chain.scale is not None:
            scale = chain.scale.astype(np.float32).reshape(
                [-1 if number == axis else 1 for number in range(before.ndim)]
            )
        activate: Callable[[Array], Array] = lambda x: x  # noqa: E731
        if chain.activation is not None:
            asked = keras_io.single(chain.activation)
            activate = rectifier(chain.activation) or (lambda x: asked([x])[0])
        return cls(
            graph.input_tensors(name)[0],
            read,
            before,
            scale,
            axis,
            activate,
            bits,
            len(graph.calls(op)) == 1,
            steps,
        )

    def noise(self, stages: Sequence[Op]) -> float:
        """‖rounded − float‖ of the feature map behind these stages, over the norm of the layer's."""
        graph = Graph("stages")
        ref = Ref("")
        graph.outputs = (
            graph.add(
                Op(
                    "\0",
                    "InputLayer",
                    {"batch_shape": self.source.shape, "dtype": self.source.dtype},
                )
            ),
        )
        for op in (replace(op, shared=None) for op in stages):
            ref = graph.add(
                (
                    op.with_attrs(activation=None)
                    if "activation" in op.attrs and op.kind != "Activation"
                    else op
                ),
                graph.outputs,
            )
            graph.outputs = (ref,)
        found = list(pairs(graph)) if self.balanced else []
        exact, ranges = _run(graph, self.read), {}
        for pair in found:
            ranges[pair.tensor] = Ranges.of(exact[pair.tensor], pair.axis)
        equalize(graph, found, ranges, self.bits)
        lost = _run(graph, self.read, self.bits, self.steps)[ref] - exact[ref]
        others = tuple(number for number in range(lost.ndim) if number != self.axis)
        lost -= lost.mean(others, keepdims=True)
        count = lost.size // lost.shape[self.axis]
        feature = self.activate(self.before)
        difference = np.linalg.norm(self.activate(self.before + self.scale * lost) - feature)
        return float(
            difference
            / max(float(np.linalg.norm(feature)), 1e-12)
            * np.sqrt(count / max(count - 1, 1))
        )


def _run(
    graph: Graph, read: Array, bits: int | None = None, steps: int = STEPS
) -> Mapping[Ref, Array]:
    """What passes through a chain of ops, in float or with weights and what passes between linear layers rounded."""
    values: dict[Ref, Array] = {}
    current = read
    for op in graph:
        if op.kind != "InputLayer":
            current = _applied(
                rounded(op, steps) if bits is not None and rounds(op) else op, current
            )
            if bits is not None and op.weights and Ref(op.name) not in graph.outputs:
                current = _fitted(current, bits)
        values[Ref(op.name)] = current
    return values


def _applied(op: Op, x: Array) -> Array:
    """What the op makes of x.

    A Keras layer takes ten times as long to build as to run, so the usual ones are not built.
    """
    plain = (
        op.attrs.get("data_format") in (None, "channels_last")
        and op.attrs.get("groups", 1) == 1
        and op.attrs.get("padding") != "causal"
    )
    known = {"dense": "matmul", "conv": "conv", "depthwise": "depthwise_conv"}.get(op.info.family)
    if known is None or not plain:
        return keras_io.single(op)([x])[0]
    window = (
        {}
        if op.info.family == "dense"
        else {name: op[name] for name in ("strides", "padding", "dilation_rate")}
    )
    with quiet():
        found = np.asarray(getattr(keras().ops, known)(x, op.weights["kernel"], **window))
    return found + op.weights["bias"] if "bias" in op.weights else found


def _fitted(values: Array, bits: int) -> Array:
    """The values as integers with one scale hold them; the range includes 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = np.float32((high - low) / (2**bits - 1) or 1)
    return np.asarray(np.rint(values / step) * step, np.float32)


def _seen(
    graph: Graph, layers: Sequence[str], inputs: Sequence[NDArray[np.generic]]
) -> Iterator[tuple[str, Array, Array]]:
    """Each layer with what it reads, and what the activation behind it does, in one pass that keeps a tensor as long as it is needed."""
    ends: dict[str, list[str]] = defaultdict(list)
    readers = Counter(ref for op in graph for ref in graph.operands(op.name))
    for name in layers:
        chain = epilogue_of(graph, name)
        ends[
            chain.end if chain.activation is None else graph.operands(chain.activation.name)[0].op
        ].append(name)
        readers[graph.operands(name)[0]] += 1
    values: dict[Ref, Array] = {}

    def release(ref: Ref) -> None:
        readers[ref] -= 1
        if not readers[ref]:
            del values[ref]

    given = dict(zip(graph.inputs, inputs, strict=True))
    for op in graph:
        if op.kind == "InputLayer":
            results: Sequence[Array] = [np.asarray(given[op.name], graph.tensors(op.name)[0].dtype)]
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


def _weighed(space: LayerSpace, rounding: Rounding) -> LayerSpace:
    """The space with the noise in the error and the impact of every candidate."""
    own = rounding.noise([space.op])
    noises: dict[str, Callable[[Ranks], float]] = {}
    for method in dict.fromkeys(c.method for c in space.candidates if c.method is not None):
        noises[method] = _between(_probed(space, method, rounding))
        if (
            isinstance(space.factors, Decomposed)
            and Layout.of(space.op, rounding.source).patch > SMALL
        ):
            space.factors.forget(method)
    curvature = _impact(space.candidates, PROBES[0]) / PROBES[0] ** 2

    def one(candidate: Candidate) -> Candidate:
        noise = own if candidate.method is None else noises[candidate.method](candidate.ranks)
        return replace(
            candidate,
            error=float(np.hypot(candidate.error, noise)),
            divergence=candidate.divergence + curvature * noise**2,
        )

    return replace(
        space,
        candidates=tuple(map(one, space.candidates)),
        excluded=None if space.excluded is None else one(space.excluded),
    )


def _probed(space: LayerSpace, method: str, rounding: Rounding) -> dict[Ranks, float]:
    """A method's noise at some of its ranks."""
    ranks = sorted((c.ranks for c in space.candidates if c.method == method), key=prod)
    factors = space.factors[method]
    if isinstance(factors, CPFactors):
        # Of the ranks that were fitted to be weighed, every other one (see lrfc.search.candidates),
        # the fits are there.
        factors, ranks = factors.quick, [*ranks[:-1:2], ranks[-1]]
    probes = FEW if method in FITTED else LOOKED_AT
    chosen = dict.fromkeys(ranks[round(share * (len(ranks) - 1))] for share in probes)
    with alone(Layout.of(space.op, rounding.source)):
        return {each: rounding.noise(factors.stages(each)) for each in chosen}


def _between(known: Mapping[Ranks, float]) -> Callable[[Ranks], float]:
    """The noise at any ranks: a power of their product between those where it is known, and what it is at the next beyond them."""
    at = sorted(known, key=prod)
    sizes, noises = (
        np.log([prod(each) for each in at]),
        np.log([max(known[each], 1e-12) for each in at]),
    )
    return lambda ranks: float(np.exp(np.interp(np.log(prod(ranks)), sizes, noises)))


def _impact(candidates: Sequence[Candidate], error: float) -> float:
    """The impact of an error: a power of it, through the candidates of the least and the greatest one (see lrfc.search.sensitivity)."""
    known = sorted((c.error, c.divergence) for c in candidates if c.error > 0 and c.divergence > 0)
    if not known:
        return 0.0
    (x, y), (far, top) = np.log(known[0]), np.log(known[-1])
    slope = np.clip((top - y) / (far - x), 1.0, 3.0) if far - x > 1e-6 else 2.0
    return float(np.exp(top + slope * (np.log(error) - far)))
