"""The design space: the candidates of each layer with cost and error, or the reason for none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import METHODS
from lrfc.factorization.base import Cost, Factors, Method, Ranks, Statistics
from lrfc.factorization.layout import Layout, refusal
from lrfc.factorization.norms import add_bias, multiplied
from lrfc.factorization.threads import SMALL, alone
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor
from lrfc.search.epilogue import FeatureMap
from lrfc.search.similarity import MEASURES, Measure
from lrfc.search.statistics import LayerSamples

#: Methods that run a fit for every rank: one in ``STRIDE`` ranks is fitted, and the error is
#: interpolated between them.
COSTLY, STRIDE = frozenset({"cp", "cp4"}), 4
#: Feature-map errors (relative L2) at which each layer is perturbed for its sensitivity: about
#: those of a mild and of a strong compression.
PROBES = (0.1, 0.3)
#: Families of layers with matrices that are not the kernel of a convolution or a matrix product.
OTHER = ("recurrent", "embedding")
#: Methods that run a fit for each choice of ranks, which takes longer than a forward pass: the
#: sensitivity of a layer is measured with them only where no other method applies.
FITTED = COSTLY | {"tucker2"}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A choice for one layer: a method at given ranks, or the layer unchanged (``method`` None).

    ``params`` and ``macs``: of all calls of the layer, weights counted once. ``error``: distance of
    the feature map on held-out samples, 0 for the layer unchanged. ``divergence``: the predicted
    divergence of the network's output. ``latency``: the predicted time of all calls on the build's
    device, in the unit of its cost profile; 0 while no device is known. ``tail``: bytes that it
    adds to the tail of a microcontroller's arena; 0 while nothing limits that.
    """

    layer: str
    method: str | None
    ranks: Ranks
    params: int
    macs: int
    error: float = 0.0
    divergence: float = 0.0
    latency: float = 0.0
    tail: int = 0


@dataclass(frozen=True, eq=False)
class LayerSpace:
    """The candidates of one layer.

    ``calls``: names of the ops that call it. ``factors``: by method. ``refusals``: by method, the
    reason why it has no candidates. ``excluded``: the layer unchanged, where a budget excludes it.
    """

    op: Op
    calls: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    factors: Mapping[str, Factors] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    excluded: Candidate | None = None

    @property
    def whole(self) -> Candidate:
        """The layer unchanged: the first candidate, or ``excluded``."""
        return self.excluded or self.candidates[0]

    @property
    def reason(self) -> str:
        """The distinct refusals, as the reason why the layer has no choice."""
        distinct = dict.fromkeys(self.refusals.values())
        return "; ".join(distinct)


def selected(
    graph: Graph, keep: Sequence[str], only: Sequence[str]
) -> Iterator[tuple[Op, str | None]]:
    """The layers with matrices of weights, and why one is ruled out by the user or the graph.

    The reason is None for a layer that may be factorized.
    """
    for op in graph.layers():
        if not (op.info.has_kernel or op.info.family in OTHER) or op.origin is not None:
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
    """The layers whose inputs can be sampled.

    They are those that may be factorized, and shared ones whose calls read several sizes.
    """
    layers = []
    for op, reason in selected(graph, (), ()):
        inputs = [graph.input_tensors(call.name) for call in graph.calls(op)]
        if reason is None or (
            len(set(inputs)) > 1
            and all(len(tensors) == 1 and refusal(op, *tensors) is None for tensors in inputs)
        ):
            layers.append(op)
    return layers


def space(
    graph: Graph,
    op: Op,
    samples: LayerSamples,
    methods: Sequence[str],
    measure: Measure,
    levels: int = 32,
    multiple: int = 1,
) -> LayerSpace:
    """Return the evaluated candidates of one layer.

    Each has fewer MACs or parameters than the layer and no more of either, but that of a table of
    an embedding, which has no MACs, a matrix product may follow. ``levels`` and ``multiple``: see
    ``grid``.
    """
    return compared(
        graph, op, samples, answers(graph, op, samples, methods, measure, levels, multiple), measure
    )


@dataclass(frozen=True, eq=False)
class Answers:
    """The costs of each method's ranks for a layer, and its evaluations at all or some of them.

    An evaluation is the error; where the epilogue needs Keras, which threads cannot run, it is the
    response instead, and ``compared`` computes the error.
    """

    costs: Mapping[str, Mapping[Ranks, Cost]]
    evaluations: Mapping[str, Mapping[Ranks, float | NDArray[np.float32]]]
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
    """Decompose a layer by each method and evaluate its ranks; safe in threads, without Keras."""
    source, whole = graph.input_tensors(op.name)[0], _whole(graph, op)
    costs: dict[str, Mapping[Ranks, Cost]] = {}
    refusals: dict[str, str] = {}
    for name in methods:
        method = METHODS[name]
        reason = method.refuses(op, source)
        if reason is not None:
            refusals[name] = reason
            continue
        ranks = grid(method.full(op, source), levels, multiple)
        totals = {r: _total(method.cost(op, source, r), len(graph.calls(op))) for r in ranks}
        smaller = {r: c for r, c in totals.items() if _smaller(c, whole)}
        if smaller:
            costs[name] = smaller
        else:
            refusals[name] = "no rank is smaller than the layer itself"
    factors = Decomposed(op, source, list(costs), lambda: samples)
    with alone(Layout.of(op, source)) if costs else nullcontext():
        evaluations = _evaluations(op, source, samples, costs, factors, measure)
    return Answers(costs, evaluations, factors, refusals)


def _smaller(cost: Cost, whole: Candidate) -> bool:
    fewer = cost.params < whole.params
    if not whole.macs:  # a table
        return fewer
    no_more = cost.params <= whole.params and cost.macs <= whole.macs
    return no_more and (fewer or cost.macs < whole.macs)


def _evaluations(
    op: Op,
    source: Tensor,
    samples: LayerSamples,
    costs: Mapping[str, Mapping[Ranks, Cost]],
    factors: Decomposed,
    measure: Measure,
) -> dict[str, dict[Ranks, float | NDArray[np.float32]]]:
    """The evaluations of each method, see ``Answers``."""
    feature_map = (
        FeatureMap(samples.chain, response(op, source, samples), samples.addend)
        if costs and samples.chain.in_numpy
        else None
    )
    evaluations: dict[str, dict[Ranks, float | NDArray[np.float32]]] = {}
    large = Layout.of(op, source).patch > SMALL
    for name, saving in costs.items():
        ranks = list(saving)
        if name in COSTLY:
            ranks = sorted({*ranks[STRIDE // 2 :: STRIDE], ranks[0], ranks[-1]})
        # One response at a time: together they are a gigabyte for a layer of 512 channels.
        estimates = factors[name].estimates(samples.patches, ranks)
        values = (
            v if feature_map is None else measure(feature_map.reference, feature_map(v))
            for v in estimates
        )
        evaluations[name] = dict(zip(ranks, values, strict=True))
        if large:
            factors.keep_only(_needed_again(evaluations))
    return evaluations


def _needed_again(
    evaluations: Mapping[str, Mapping[Ranks, float | NDArray[np.float32]]],
) -> set[str]:
    """The methods whose factors the sensitivity of the layer needs: see ``nearest_to_probes``."""
    errors = [
        (name, value)
        for name, values in evaluations.items()
        for value in values.values()
        if isinstance(value, float)
    ]
    if not errors:  # responses, whose errors are not known yet
        return set(evaluations) - FITTED or set(evaluations)
    return {name for name, _ in nearest_to_probes(errors)}


def nearest_to_probes(errors: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Of methods and errors of candidates, those at which the sensitivity of a layer is measured.

    They are the nearest to ``PROBES``, of methods that need no fit where there are such.
    """
    positive = [(name, error) for name, error in errors if error > 0]
    direct = [(name, error) for name, error in positive if name not in FITTED] or positive
    nearest = [
        min(direct, key=lambda entry: abs(np.log(entry[1] / probe))) for probe in PROBES if direct
    ]
    return list({error: (name, error) for name, error in nearest}.values())


def compared(
    graph: Graph, op: Op, samples: LayerSamples, results: Answers, measure: Measure
) -> LayerSpace:
    """The candidates of a layer with their errors."""
    whole = _whole(graph, op)
    candidates = [whole]
    feature_map: FeatureMap | None = None
    for name, costs in results.costs.items():
        errors: dict[Ranks, float] = {}
        for ranks, value in results.evaluations[name].items():
            if not isinstance(value, float):
                feature_map = feature_map or FeatureMap(
                    samples.chain,
                    response(op, graph.input_tensors(op.name)[0], samples),
                    samples.addend,
                )
                value = measure(feature_map.reference, feature_map(value))
            errors[ranks] = value
        for ranks, cost in costs.items():
            error = errors[ranks] if ranks in errors else _between(errors, ranks)
            candidates.append(Candidate(op.name, name, ranks, cost.params, cost.macs, error))
    return LayerSpace(
        op,
        tuple(call.name for call in graph.calls(op)),
        tuple(candidates),
        results.factors,
        results.refusals,
    )


def _between(known: Mapping[Ranks, float], ranks: Ranks) -> float:
    """The error at a rank between known ones, interpolated as a power of the rank."""
    at = sorted(known)
    distances = np.log([max(known[r], 1e-12) for r in at])
    return float(np.exp(np.interp(np.log(ranks[0]), np.log([r[0] for r in at]), distances)))


def _whole(graph: Graph, op: Op) -> Candidate:
    macs = len(graph.calls(op)) * ops.macs(
        op, (graph.input_tensors(op.name)[0],), graph.tensors(op.name)
    )
    return Candidate(op.name, None, (), op.params, macs)


class Decomposed(Mapping[str, Factors]):
    """The factors of a layer by method, each decomposed at its first use."""

    def __init__(
        self, op: Op, source: Tensor, methods: Sequence[str], samples: Callable[[], LayerSamples]
    ) -> None:
        self._op, self._source, self._samples = op, source, samples
        self._statistics: Statistics | None = None
        self._factors: dict[str, Factors | None] = dict.fromkeys(methods)

    def __getitem__(self, method: str) -> Factors:
        factors = self._factors[method]
        if factors is None:
            samples = self._samples()
            if self._statistics is None:
                # A copy: what decompositions share is freed with them, while the samples stay.
                self._statistics = replace(samples.statistics)
            factors = METHODS[method].decompose(
                self._op, self._source, scale=samples.chain.scale, statistics=self._statistics
            )
            self._factors[method] = factors
        return factors

    def keep_only(self, methods: Collection[str]) -> None:
        """Free the memory of the other decompositions, and of what all share.

        Their next use computes them again.
        """
        self._factors = {
            name: factors if name in methods else None for name, factors in self._factors.items()
        }
        if self._statistics is not None:
            self._statistics.shared.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)


def _total(cost: Cost, calls: int) -> Cost:
    return Cost(cost.params, cost.macs * calls)


def response(op: Op, source: Tensor, samples: LayerSamples) -> NDArray[np.float32]:
    """The linear response (N, T) of the layer to the sampled patches, as ``Factors.responses``."""
    layout = Layout.of(op, source)
    matrix = layout.matrix(layout.tensor(np.float32))
    return add_bias(layout, multiplied(samples.patches, matrix), None)


def grid(full: Ranks, levels: int, multiple: int = 1) -> list[Ranks]:
    """The tuples of ranks to evaluate, up to the full ones.

    All of them where there are few, otherwise about ``levels`` of one rank and 2·√levels of each
    of two. Ranks are multiples of ``multiple``, the vector width of a device, or full.
    """
    count = levels if len(full) == 1 else max(4, round(2 * levels ** (1 / len(full))))
    axes = []
    for top in full:
        step = multiple * max(1, -(-top // (count * multiple)))
        axes.append(sorted({*range(step, top + 1, step), top}))
    return list(product(*axes))


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates that no other beats in divergence, MACs, parameters, latency and tail.

    No allocation picks any of the others.
    """
    ordered = sorted(
        candidates,
        key=lambda c: (c.divergence, c.macs, c.params, c.latency, c.tail, c.method or "", c.ranks),
    )
    front: list[Candidate] = []
    for candidate in ordered:
        if not any(
            other.macs <= candidate.macs
            and other.params <= candidate.params
            and other.latency <= candidate.latency
            and other.tail <= candidate.tail
            for other in front
        ):
            front.append(candidate)
    return tuple(front)


__all__ = ["MEASURES", "Candidate", "LayerSpace", "Method", "grid", "pareto", "selected", "space"]
