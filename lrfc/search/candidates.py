"""The design space: every method and rank of every layer, with its cost and its similarity, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import METHODS
from lrfc.factorization.base import Cost, Factors, Method, Ranks
from lrfc.factorization.layout import Layout, refusal
from lrfc.factorization.norms import add_bias
from lrfc.factorization.threads import SMALL, alone
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor
from lrfc.search.epilogue import FeatureMap
from lrfc.search.similarity import MEASURES, Measure
from lrfc.search.statistics import LayerSamples

#: Methods that fit every rank anew: they are weighed at half as many, and of those every other one
#: is fitted, with the distance interpolated between them.
COSTLY = frozenset({"cp", "cp4"})


@dataclass(frozen=True, eq=False)
class Candidate:
    """One choice for one layer: a method at given ranks, or the layer as it is (``method`` None).

    ``params`` and ``macs`` count all calls of the layer (weights once); ``error`` is the
    feature-map distance on held-out data (0 for the layer as it is), ``divergence`` the divergence of
    the network's output that it predicts. ``latency``: predicted time of all calls on the device
    that the build is for, in the unit of its cost profile; 0 as long as no device is known.
    """

    layer: str
    method: str | None
    ranks: Ranks
    params: int
    macs: int
    error: float = 0.0
    divergence: float = 0.0
    latency: float = 0.0


@dataclass(frozen=True, eq=False)
class LayerSpace:
    """All choices for one layer.

    ``refusals`` says, by method, why there are no others. ``whole`` is the layer as it is.
    """

    op: Op
    calls: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    factors: Mapping[str, Factors] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    excluded: Candidate | None = None

    @property
    def whole(self) -> Candidate:
        """The layer as it is: the first candidate, or ``excluded`` where a budget rules it out."""
        return self.excluded or self.candidates[0]

    @property
    def reason(self) -> str:
        """Why the layer has no choice, one clause."""
        distinct = dict.fromkeys(self.refusals.values())
        return "; ".join(distinct)


def selected(
    graph: Graph, keep: Sequence[str], only: Sequence[str]
) -> Iterator[tuple[Op, str | None]]:
    """Each factorizable layer once, with the reason when the user's patterns or the graph rule it out."""
    for op in graph.layers():
        if not op.info.has_kernel or op.origin is not None:
            continue
        calls = graph.calls(op)
        inputs = {graph.input_tensors(call.name) for call in calls}
        pattern = next((p for p in keep if any(fnmatchcase(call.name, p) for call in calls)), None)
        if pattern is not None:
            yield op, f"kept by --keep {pattern}"
        elif only and not any(fnmatchcase(call.name, p) for call in calls for p in only):
            yield op, "not named by --only"
        elif len(inputs) != 1:
            yield op, "the calls of this shared layer read different shapes"
        elif len(graph.operands(op.name)) != 1:
            yield op, f"it reads {len(graph.operands(op.name))} tensors"
        else:
            yield op, refusal(op, *graph.input_tensors(op.name))


def readable(graph: Graph) -> list[Op]:
    """The layers whose inputs can be sampled: those that may be factorized, and shared ones whose calls read images or sequences of several sizes."""
    found = []
    for op, reason in selected(graph, (), ()):
        read = [graph.input_tensors(call.name) for call in graph.calls(op)]
        if reason is None or (
            len(set(read)) > 1
            and all(len(each) == 1 and refusal(op, *each) is None for each in read)
        ):
            found.append(op)
    return found


def space(
    graph: Graph,
    op: Op,
    samples: LayerSamples,
    methods: Sequence[str],
    measure: Measure,
    levels: int = 32,
    multiple: int = 1,
) -> LayerSpace:
    """Every candidate of one layer that saves MACs or parameters and costs no more of either, evaluated on the layer's samples."""
    return compared(
        graph, op, samples, answers(graph, op, samples, methods, measure, levels, multiple), measure
    )


@dataclass(frozen=True, eq=False)
class Answers:
    """What the methods can do for a layer: the costs of each method's ranks, and its distances at them, or at some of them.

    Where the activation behind the layer has to be asked of Keras, which threads cannot, there are
    responses in the place of distances.
    """

    costs: Mapping[str, Mapping[Ranks, Cost]]
    found: Mapping[str, Mapping[Ranks, float | NDArray[np.float32]]]
    factors: Decomposed
    refusals: Mapping[str, str]


def answers(
    graph: Graph,
    op: Op,
    samples: LayerSamples,
    methods: Sequence[str],
    measure: Measure,
    levels: int = 32,
    multiple: int = 1,
) -> Answers:
    """The decompositions of a layer and their distances: plain array work, so that several layers can be answered at once in threads."""
    source, whole = graph.input_tensors(op.name)[0], _whole(graph, op)
    costs: dict[str, Mapping[Ranks, Cost]] = {}
    refusals: dict[str, str] = {}
    for name in methods:
        method = METHODS[name]
        reason = method.refuses(op, source)
        if reason is not None:
            refusals[name] = reason
            continue
        ranks = grid(method.full(op, source), levels // 2 if name in COSTLY else levels, multiple)
        totals = {
            each: _total(method.cost(op, source, each), len(graph.calls(op))) for each in ranks
        }
        smaller = {
            r: c
            for r, c in totals.items()
            if c.params <= whole.params
            and c.macs <= whole.macs
            and (c.params < whole.params or c.macs < whole.macs)
        }
        if smaller:
            costs[name] = smaller
        else:
            refusals[name] = "no rank is smaller than the layer itself"
    factors = Decomposed(op, source, list(costs), lambda: samples)
    with alone(Layout.of(op, source)) if costs else nullcontext():
        found = _looked_at(op, source, samples, costs, factors, measure)
    return Answers(costs, found, factors, refusals)


def _looked_at(
    op: Op,
    source: Tensor,
    samples: LayerSamples,
    costs: Mapping[str, Mapping[Ranks, Cost]],
    factors: Decomposed,
    measure: Measure,
) -> dict[str, dict[Ranks, float | NDArray[np.float32]]]:
    """The distances of each method, or its responses; see ``Answers``."""
    feature_map = (
        FeatureMap(samples.chain, response(op, source, samples), samples.addend)
        if costs and samples.chain.in_numpy
        else None
    )
    found: dict[str, dict[Ranks, float | NDArray[np.float32]]] = {}
    for name, saving in costs.items():
        ranks = list(saving)
        if name in COSTLY:
            ranks = sorted({*ranks[::2], ranks[-1]})
        # One response at a time: together they are a gigabyte for a layer of 512 channels.
        estimates = factors[name].estimates(samples.patches, ranks)
        values = (
            v if feature_map is None else measure(feature_map.reference, feature_map(v))
            for v in estimates
        )
        found[name] = dict(zip(ranks, values, strict=True))
        if Layout.of(op, source).patch > SMALL and len(costs) > 1:
            factors.forget(name)
    return found


def compared(
    graph: Graph, op: Op, samples: LayerSamples, given: Answers, measure: Measure
) -> LayerSpace:
    """The candidates with their distances from the original's feature map."""
    whole = _whole(graph, op)
    found = [whole]
    feature_map: FeatureMap | None = None
    for name, costs in given.costs.items():
        known: dict[Ranks, float] = {}
        for ranks, value in given.found[name].items():
            if not isinstance(value, float):
                feature_map = feature_map or FeatureMap(
                    samples.chain,
                    response(op, graph.input_tensors(op.name)[0], samples),
                    samples.addend,
                )
                value = measure(feature_map.reference, feature_map(value))
            known[ranks] = value
        for ranks, cost in costs.items():
            error = known[ranks] if ranks in known else _between(known, ranks)
            found.append(Candidate(op.name, name, ranks, cost.params, cost.macs, error))
    return LayerSpace(
        op,
        tuple(call.name for call in graph.calls(op)),
        tuple(found),
        given.factors,
        given.refusals,
    )


def _between(known: Mapping[Ranks, float], ranks: Ranks) -> float:
    """The distance at a rank between those where it is known: a power of the rank from one to the next."""
    at = sorted(known)
    distances = np.log([max(known[each], 1e-12) for each in at])
    return float(np.exp(np.interp(np.log(ranks[0]), np.log([each[0] for each in at]), distances)))


def _whole(graph: Graph, op: Op) -> Candidate:
    macs = len(graph.calls(op)) * ops.macs(
        op, (graph.input_tensors(op.name)[0],), graph.tensors(op.name)
    )
    return Candidate(op.name, None, (), op.params, macs)


class Decomposed(Mapping[str, Factors]):
    """The factors of a layer by method, decomposed when they are asked for."""

    def __init__(
        self, op: Op, source: Tensor, methods: Sequence[str], samples: Callable[[], LayerSamples]
    ) -> None:
        self._op, self._source, self._samples = op, source, samples
        self._found: dict[str, Factors | None] = dict.fromkeys(methods)

    def __getitem__(self, method: str) -> Factors:
        factors = self._found[method]
        if factors is None:
            samples = self._samples()
            factors = METHODS[method].decompose(
                self._op, self._source, scale=samples.chain.scale, statistics=samples.statistics
            )
            self._found[method] = factors
        return factors

    def forget(self, method: str) -> None:
        """Free what is kept of a decomposition; it is computed anew when it is asked for again."""
        self._found[method] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _total(cost: Cost, calls: int) -> Cost:
    return Cost(cost.params, cost.macs * calls)


def response(op: Op, source: Tensor, samples: LayerSamples) -> NDArray[np.float32]:
    """The layer's own linear response (N, T) to the sampled patches, in the form of ``Factors.responses``."""
    layout = Layout.of(op, source)
    matrix = layout.matrix(layout.tensor(np.float32))
    rows = [samples.patches[:, group] @ matrix[group] for group in range(layout.groups)]
    return add_bias(layout, np.concatenate(rows, axis=1), None)


def grid(full: Ranks, levels: int, multiple: int = 1) -> list[Ranks]:
    """Rank tuples up to the full ranks: all of them where there are few, otherwise about ``levels`` per rank (√levels·2 each for two ranks).

    Ranks are multiples of ``multiple``, what a device computes at once, besides the full ones;
    below it there are none, except that a rank which cannot reach it has its full value.
    """
    each = levels if len(full) == 1 else max(4, round(2 * levels ** (1 / len(full))))
    axes = []
    for top in full:
        step = multiple * max(1, -(-top // (each * multiple)))
        axes.append(sorted({*range(step, top + 1, step), top}))
    return list(product(*axes))


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates that no other one beats: at most the same impact, MACs, parameters and latency, and less of one.

    The others are never allocated.
    """
    ordered = sorted(
        candidates,
        key=lambda c: (c.divergence, c.macs, c.params, c.latency, c.method or "", c.ranks),
    )
    kept: list[Candidate] = []
    for candidate in ordered:
        if not any(
            o.macs <= candidate.macs
            and o.params <= candidate.params
            and o.latency <= candidate.latency
            for o in kept
        ):
            kept.append(candidate)
    return tuple(kept)


__all__ = ["MEASURES", "Candidate", "LayerSpace", "Method", "grid", "pareto", "selected", "space"]
