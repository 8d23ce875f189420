"""Choose a method and ranks for every Conv and fully connected layer by the similarity of feature maps, under the budgets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import ClassVar

from lrfc.config.build import METHODS, Budget
from lrfc.costs.pricing import Prices
from lrfc.errors import BudgetError
from lrfc.factorization.base import Factors
from lrfc.factorization.threads import one_thread, workers
from lrfc.ir import ops
from lrfc.ir.graph import Graph, Op
from lrfc.passes.fold_batchnorm import fold_batchnorm
from lrfc.pruning import milp as joint
from lrfc.pruning.labels import Ids
from lrfc.pruning.memory import Room
from lrfc.pruning.space import FilterSpace, Keep
from lrfc.search.allocate import allocate
from lrfc.search.cache import Store, fingerprint, place
from lrfc.search.candidates import Answers, Candidate, Decomposed, LayerSpace, answers, compared, pareto, selected
from lrfc.search.sensitivity import PROBES, Sensitivity
from lrfc.search.similarity import MEASURES
from lrfc.search.statistics import LayerSamples, Sampler, SampleSize
from lrfc.state import Fact, State

#: Multiply-accumulates that the passes for the sensitivities may take, half a minute of two cores, and passes for each layer.
WORK, PROBED = 1e12, len(PROBES)
#: Out of how many times as many inputs those are drawn that the sensitivities are measured on.
POOL = 8
#: Why a layer is not factorized that could be.
NOT_WORTH = "within the budgets, no factorization of it is worth its effect on the output"
LEFT_ASIDE = "methods were left aside: filters alone are cut, as with --prune only"
#: Layers whose filters stay that an error names at most, and what share of the whole they have at least.
NAMED, LARGE = 3, 0.02


@dataclass(frozen=True)
class DesignSpace(Fact):
    """Every layer's choices, evaluated: what the allocation draws from, for any budget."""

    spaces: tuple[LayerSpace, ...]
    skipped: Mapping[str, str]

    def narrowed(self, methods: tuple[str, ...]) -> DesignSpace:
        """The same layers with the candidates of some methods only."""
        spaces = tuple(replace(s, candidates=tuple(c for c in s.candidates if c.method is None or c.method in methods)) for s in self.spaces)
        return replace(self, spaces=spaces)

    @property
    def size(self) -> int:
        """Number of candidates."""
        return sum(len(s.candidates) for s in self.spaces)

    @property
    def undominated(self) -> int:
        """Number of candidates that no other of the same layer beats in everything."""
        return sum(len(pareto(s.candidates)) for s in self.spaces)


@dataclass(frozen=True)
class Price(Fact):
    """That the latencies of the design space are predicted for a device.

    ``unit``: of the latencies, 'ms' or 'cycles'; ``ms_per_unit`` turns them into milliseconds. ``whole``: the predicted latency of the original.
    ``prices``: of ops that have lost channels.
    """

    device: str
    unit: str
    ms_per_unit: float
    whole: float
    prices: Prices


@dataclass(frozen=True)
class Selection(Fact):
    """The choice for each factorizable layer of the original graph, and the reason where it is left alone.

    ``beside``: what all else costs that channels were taken from; see lrfc.pruning.milp.Joint.
    ``keeps``: the groups of filters that lose some, and which units they keep; ``removed``: the filters that go, by the layer that makes them. The costs of
    a candidate are those that it has between what is left of its neighbours.
    """

    about_graph: ClassVar[bool] = False

    chosen: tuple[Candidate, ...]
    reasons: Mapping[str, str]
    factors: Mapping[str, Factors]
    keeps: Mapping[str, Keep] = field(default_factory=dict)
    removed: Mapping[str, Ids] = field(default_factory=dict)
    beside: Mapping[str, float] = field(default_factory=dict)

    def cost(self, quantity: str) -> float:
        """The MACs, parameters or predicted latency of all that depends on the choices; see ``fixed`` for the rest."""
        return self.beside.get(quantity, 0.0) + float(sum(getattr(c, quantity) for c in self.chosen))

    @property
    def impact(self) -> float:
        """The predicted divergence of the network's output."""
        return sum(c.impact for c in self.chosen) + sum(k.impact for k in self.keeps.values())


@dataclass(frozen=True)
class ExploreLayers:
    """Evaluate all methods and ranks of all layers on the calibration data: cost, feature-map similarity, and effect on the output."""

    methods: tuple[str, ...] = METHODS
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    measure: str = "relative_l2"
    rank_multiple: int = 1
    size: SampleSize = SampleSize()
    sensitivity_images: int = 64
    cached: bool = False

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its DesignSpace. ``cached``: what an earlier run found out about a layer on the same model, data and options is taken over."""
        graph, inputs = state.graph, tuple(x[: max(self.size.images + self.size.held_out, self.sensitivity_images)] for x in state.data.train.inputs)
        layers = list(selected(graph, self.keep, self.only))
        skipped = {op.name: reason for op, reason in layers if reason is not None}
        eligible = [op for op, reason in layers if reason is None]
        samples = Sampler(graph, eligible, inputs, self.size, state.seed)
        store = None
        if self.cached:
            seen = (self.methods, self.measure, self.rank_multiple, self.size, self.sensitivity_images, state.seed)
            store = Store(place(), fingerprint(graph, inputs, seen), state.progress.log)
        stored = {} if store is None else {op.name: known for op in eligible if (known := store.get(op.name)) is not None}
        fresh = iter(self._answered(graph, [op for op in eligible if op.name not in stored], samples))
        sensitivity: Sensitivity | None = None
        step = state.progress.stage("layers", len(eligible))
        spaces = []
        for op in eligible:
            if op.name in stored:
                candidates, refusals = stored[op.name]
                methods = list(dict.fromkeys(c.method for c in candidates if c.method is not None))
                factors = Decomposed(op, graph.input_tensors(op.name)[0], methods, partial(samples.__getitem__, op.name))
                found = LayerSpace(op, tuple(call.name for call in graph.calls(op)), candidates, factors, refusals)
            else:
                sample, given = next(fresh)
                found = compared(graph, op, sample, given, MEASURES[self.measure])
                if len(found.candidates) > 1:
                    if sensitivity is None:
                        images = self._looked_at(graph, len(eligible))
                        sensitivity = Sensitivity(graph, tuple(x[: POOL * images] for x in inputs), images)
                    found = sensitivity(found, sample)
                if op.name not in samples.lasting:  # what a large network's layers read is not kept for all of them
                    found = replace(
                        found, factors=Decomposed(op, graph.input_tensors(op.name)[0], list(found.factors), partial(samples.__getitem__, op.name))
                    )
                if store is not None:
                    store.put(op.name, found.candidates, found.refusals)
            if len(found.candidates) == 1:
                skipped[op.name] = found.reason
            else:
                spaces.append(found)
            step(1)
        return state.with_fact(DesignSpace(tuple(spaces), skipped))

    def _answered(self, graph: Graph, layers: Sequence[Op], samples: Sampler) -> Iterator[tuple[LayerSamples, Answers]]:
        """The layers' samples and the methods' answers, in their order.

        A group's samples are collected when nothing is at work on the group before: together they would need twice the memory.
        """
        with one_thread(), ThreadPoolExecutor(workers()) as pool:
            for group in samples.groups(layers):
                yield from self._ahead(graph, group, samples, pool)

    def _ahead(self, graph: Graph, layers: Sequence[Op], samples: Sampler, pool: ThreadPoolExecutor) -> Iterator[tuple[LayerSamples, Answers]]:
        """The same for one group, a few layers ahead: on as many cores as there are, each with one BLAS thread."""
        pending: deque[tuple[LayerSamples, Future[Answers]]] = deque()
        waiting = iter(layers)
        try:
            for _ in layers:
                for op in islice(waiting, workers() + 1 - len(pending)):
                    seen = samples[op.name]  # collected here, not in a thread: it runs the network
                    pending.append((seen, pool.submit(answers, graph, op, seen, self.methods, MEASURES[self.measure], multiple=self.rank_multiple)))
                seen, future = pending.popleft()
                yield seen, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _looked_at(self, graph: Graph, layers: int) -> int:
        """How many images the sensitivities are measured on: fewer for a deep and large network, so that the passes end."""
        work = PROBED * layers * totals(graph)["macs"]
        return max(min(self.sensitivity_images, 8), min(self.sensitivity_images, int(WORK // max(work, 1))))


@dataclass(frozen=True)
class SelectRanks:
    """Pick one candidate per layer: the least of ``minimise`` within the budgets.

    ``minimise``: the predicted effect on the output ('impact'), or 'macs', 'params', 'latency'. ``max_impact`` bounds the former. ``max_latency``, in
    milliseconds, and 'latency' need a device to be known (``Price``). Where the filters were explored, and ``prune`` is not False, the units that each
    group keeps are chosen in the same programme; then ``rooms`` bound the activation memory.
    """

    max_macs: Budget | None = None
    max_params: Budget | None = None
    methods: tuple[str, ...] | None = None
    max_latency: Budget | None = None
    max_impact: float | None = None
    minimise: str = "impact"
    prune: bool = True
    rooms: tuple[Room, ...] = ()

    needs: ClassVar[tuple[type[Fact], ...]] = (DesignSpace,)
    gives: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    rewrites: ClassVar[bool] = False

    def __call__(self, state: State) -> State:
        """The state with its Selection. ``methods`` narrows the choice. BudgetError when a budget cannot be met."""
        given, design = state, state.fact(DesignSpace)
        if self.methods is not None:
            design = design.narrowed(self.methods)
            state = state.with_fact(design)
        filters = state.known(FilterSpace) if self.prune else None
        if filters is None:
            state = without_filters(state)
        whole, outside = costs(state), fixed(state)
        limits: dict[str, float] = {}
        for quantity, budget in (("macs", self.max_macs), ("params", self.max_params), ("latency", self.max_latency)):
            if budget is not None:
                # Milliseconds are what a budget is given in; a profile may count cycles.
                unit = state.fact(Price).ms_per_unit if quantity == "latency" else 1
                limit = budget.limit(whole[quantity] * unit) / unit
                least = reachable(state, quantity)
                if least > limit:
                    raise BudgetError(
                        f"--max-{quantity} {budget} cannot be reached: that is {_amount(limit)} of {_amount(whole[quantity])}, and the least that"
                        f" {self._means(filters)} is {_amount(least)} ({100 * least / whole[quantity]:.1f}%){_staying(state, filters, quantity)}"
                    )
                limits[quantity] = limit - outside[quantity]
        if self.max_impact is not None:
            limits["impact"] = self.max_impact
        keeps: Mapping[str, Keep] = {}
        beside: Mapping[str, float] = {}
        if filters is None:
            chosen = allocate([pareto(s.candidates) for s in design.spaces], limits, self.minimise)
        else:
            try:
                found = joint.allocate(state.graph, design.spaces, filters, limits, self.minimise, self.rooms, _prices(state))
            except joint.UnsolvedError as error:
                return self._uncut(given, error)
            chosen, keeps, beside = found.chosen, found.keeps, found.beside
        reasons = dict(design.skipped)
        for candidate in chosen:
            if candidate.method is None:
                reasons[candidate.layer] = LEFT_ASIDE if self.methods == () else NOT_WORTH
        factors = {s.op.name: s.factors[c.method] for s, c in zip(design.spaces, chosen, strict=True) if c.method is not None}
        return given.with_fact(Selection(chosen, reasons, factors, keeps, {} if filters is None else filters.removed(keeps), beside))

    def _means(self, filters: FilterSpace | None) -> str:
        """What a budget is to be reached with."""
        if filters is None:
            return "these methods reach"
        return "cutting filters reaches" if self.methods == () else "these methods and cutting filters reach"

    def _uncut(self, given: State, error: joint.UnsolvedError) -> State:
        """The selection that cuts no filters, where the one that may was not found in time; the error where that does not keep the budgets."""
        if self.rooms:
            raise error
        try:
            found = replace(self, prune=False)(given)
        except BudgetError:
            raise error from None
        given.progress.log(f"  {error}: no filters are cut")
        return found


def totals(graph: Graph) -> dict[str, int]:
    """MACs of one sample and parameters of the file that a graph becomes, with every BatchNorm folded that can be."""
    folded = fold_batchnorm(graph)
    macs = sum(ops.macs(op, folded.input_tensors(op.name), folded.tensors(op.name)) for op in folded)
    return {"macs": macs, "params": folded.params}


def totals_of(graph: Graph, name: str) -> dict[str, int]:
    """Parameters of a layer, and the MACs of all its calls."""
    op = graph.op(name)
    return {"params": op.params, "macs": sum(ops.macs(call, graph.input_tensors(call.name), graph.tensors(call.name)) for call in graph.calls(op))}


def costs(state: State) -> dict[str, float]:
    """What the original takes: MACs, parameters, and its predicted latency where a device is known."""
    price = state.known(Price)
    return totals(state.original) | ({} if price is None else {"latency": price.whole})


def reachable(state: State, quantity: str) -> float:
    """The least MACs, parameters or latency that the design space reaches, this one alone minded."""
    outside, spaces, filters = fixed(state)[quantity], state.fact(DesignSpace).spaces, state.known(FilterSpace)
    if filters is None:
        return outside + float(sum(min(getattr(c, quantity) for c in s.candidates) for s in spaces))
    found = joint.allocate(state.graph, spaces, filters, {}, quantity, prices=_prices(state))
    return outside + found.cost(quantity)


def without_filters(state: State) -> State:
    """The state as if the filters had not been explored."""
    return replace(state, facts={kind: fact for kind, fact in state.facts.items() if kind is not FilterSpace})


def fixed(state: State) -> dict[str, float]:
    """What lies outside the layers that have a choice, and those that lose what their neighbours lose."""
    spaces = state.fact(DesignSpace).spaces
    beside = joint.others(state.graph, spaces, _prices(state)) if state.known(FilterSpace) is not None else {}
    return {quantity: total - sum(getattr(s.whole, quantity) for s in spaces) - beside.get(quantity, 0) for quantity, total in costs(state).items()}


def _staying(state: State, filters: FilterSpace | None, quantity: str) -> str:
    """The largest layers whose filters stay, with their reasons, as the end of a sentence; empty where none has a share that counts."""
    if filters is None:
        return ""
    by = "params" if quantity == "params" else "macs"
    whole = totals(state.original)[by]
    sizes = {layer: totals_of(state.graph, layer)[by] for layer in filters.refused}
    large = sorted((layer for layer, size in sizes.items() if size >= LARGE * whole), key=lambda layer: -sizes[layer])
    named = "; ".join(f"{layer}: {filters.refused[layer]}" for layer in large[:NAMED])
    more = f"; and {len(large) - NAMED} more" if len(large) > NAMED else ""
    return f"; filters stay in {named}{more}" if large else ""


def _prices(state: State) -> Prices | None:
    price = state.known(Price)
    return None if price is None else price.prices


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
