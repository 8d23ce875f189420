"""Evaluate every method and rank of every layer on the calibration samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from lrfc.config.build import METHODS
from lrfc.costs.totals import totals
from lrfc.factorization.layout import Layout
from lrfc.factorization.threads import HUGE, SMALL, one_thread, workers
from lrfc.ir.batch import Batch, head
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor
from lrfc.search.cache import Store, fingerprint, place
from lrfc.search.candidates import (
    PROBES,
    Answers,
    Candidate,
    Decomposed,
    LayerSpace,
    answers,
    compared,
    selected,
)
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import POOL, Sensitivity
from lrfc.search.similarity import MEASURES
from lrfc.search.statistics import LayerSamples, Sampler, SampleSize
from lrfc.state import Fact, State
from lrfc.system import memory, spans

#: MACs of all passes for the sensitivities (half a minute on two cores), and passes for each layer.
WORK, PROBED = 1e12, len(PROBES)
#: Bytes that the decompositions of all layers in work may take.
WORKING = 2 << 30


@dataclass(frozen=True)
class ExploreLayers:
    """Evaluate all methods and ranks of all layers: their costs, their errors, their divergences.

    ``methods``: names of factorization methods. ``keep``, ``only``: patterns of layers to leave
    unchanged, and of the only ones to factorize. ``measure``: the distance of feature maps, a name
    in lrfc.search.similarity. ``rank_multiple``: ranks are multiples of it. ``size``,
    ``sensitivity_images``: calibration samples for the errors and for the sensitivities.
    ``cached``: reuse the results of earlier runs with the same model, data and options.

    Given and result: the graph is not changed.
    """

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
        """The state with its DesignSpace."""
        graph = state.graph
        count = max(self.size.images + self.size.held_out, self.sensitivity_images)
        inputs = state.data.train.head(count).inputs
        layers = list(selected(graph, self.keep, self.only))
        skipped = {op.name: reason for op, reason in layers if reason is not None}
        eligible = [op for op, reason in layers if reason is None]
        samples = Sampler(graph, eligible, inputs, self.size, state.seed)
        store = self._store(state, inputs) if self.cached else None
        stored = {
            op.name: entry
            for op in eligible
            if store is not None and (entry := store.get(op.name)) is not None
        }
        missing = [op for op in eligible if op.name not in stored]
        explored = self._explored(graph, missing, samples, inputs, len(eligible))
        step = state.progress.stage("layers", len(eligible))
        spaces = []
        for op in eligible:
            if op.name in stored:
                space = _from_store(graph, op, samples, *stored[op.name])
            else:
                space = next(explored)
                if store is not None:
                    store.put(op.name, space.candidates, space.refusals)
            if len(space.candidates) == 1:
                skipped[op.name] = space.reason
            else:
                spaces.append(space)
            step(1)
        return state.with_fact(DesignSpace(tuple(spaces), skipped))

    def _store(self, state: State, inputs: Batch) -> Store:
        """The stored results for this model, data and options."""
        options = (
            self.methods,
            self.measure,
            self.rank_multiple,
            self.size,
            self.sensitivity_images,
            state.seed,
        )
        return Store(place(), fingerprint(state.graph, inputs, options), state.progress.log)

    def _explored(
        self,
        graph: Graph,
        layers: Sequence[Op],
        samples: Sampler,
        inputs: Batch,
        eligible: int,
    ) -> Iterator[LayerSpace]:
        """The candidates of the layers, in their order; ``eligible`` layers share the passes."""
        sensitivity: Sensitivity | None = None
        evaluated = self._evaluated(graph, layers, samples)
        for op, (sample, evaluation) in zip(layers, evaluated, strict=True):
            space = compared(graph, op, sample, evaluation, MEASURES[self.measure])
            if len(space.candidates) > 1:
                if sensitivity is None:
                    images = self._sensitivity_images(graph, eligible)
                    sensitivity = Sensitivity(graph, head(inputs, POOL * images), images)
                with spans.span(op.name, "layer", parallel=True):
                    space = sensitivity(space, sample)
            large = Layout.of(op, graph.input_tensors(op.name)[0]).patch > SMALL
            if large or op.name not in samples.lasting:
                # The factors of all layers of a large network do not fit into memory, nor do their
                # samples, to which the factors refer.
                space = replace(space, factors=_factors(graph, op, list(space.factors), samples))
            yield space

    def _evaluated(
        self, graph: Graph, layers: Sequence[Op], samples: Sampler
    ) -> Iterator[tuple[LayerSamples, Answers]]:
        """The samples of the layers and the results of the methods, in the order of the layers.

        The samples of a group of layers are collected when the group before is done: together
        they would need twice the memory.
        """
        with one_thread(), ThreadPoolExecutor(workers()) as pool:
            for group in samples.groups(layers):
                yield from self._in_parallel(graph, group, samples, pool)

    def _in_parallel(
        self, graph: Graph, layers: Sequence[Op], samples: Sampler, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[LayerSamples, Answers]]:
        """The same for one group, a few layers ahead, on all cores with one BLAS thread each."""
        pending: deque[tuple[LayerSamples, Future[Answers]]] = deque()
        needs = [_working_bytes(op, graph.input_tensors(op.name)[0]) for op in layers]
        submitted = 0
        try:
            for done in range(len(layers)):
                while submitted < len(layers) and _together(needs[done : submitted + 1]):
                    op = layers[submitted]
                    submitted += 1
                    # Collected here and not in a thread, because it runs the network.
                    sample = samples[op.name]
                    future = pool.submit(
                        spans.in_thread(op.name, answers),
                        graph,
                        op,
                        sample,
                        self.methods,
                        MEASURES[self.measure],
                        multiple=self.rank_multiple,
                    )
                    pending.append((sample, future))
                sample, future = pending.popleft()
                yield sample, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _sensitivity_images(self, graph: Graph, layers: int) -> int:
        """The number of images for the sensitivities: fewer for deep and large networks."""
        work = PROBED * layers * totals(graph)["macs"]
        return max(
            min(self.sensitivity_images, 8), min(self.sensitivity_images, int(WORK // max(work, 1)))
        )


def _together(needs: Sequence[int]) -> bool:
    """Whether layers that need this many bytes each may be in work at once; a single one may."""
    fit = len(needs) <= workers() + 1 and sum(needs) <= memory.share(WORKING)
    return fit or len(needs) == 1


def _working_bytes(op: Op, source: Tensor) -> int:
    """Bytes that the decompositions of a layer take at most, besides its samples.

    They are those of ten arrays of the size of its covariance (measured at 3×3×512×512, where
    Tucker-2 takes the most).
    """
    layout = Layout.of(op, source)
    item = 4 if layout.patch > SMALL else 8
    side = min(layout.patch, HUGE)  # of longer patches, the covariance is stored by its rows
    return 10 * item * layout.groups * side**2


def _from_store(
    graph: Graph,
    op: Op,
    samples: Sampler,
    candidates: tuple[Candidate, ...],
    refusals: Mapping[str, str],
) -> LayerSpace:
    """The candidates of an earlier run, with factors that are decomposed again when needed."""
    methods = list(dict.fromkeys(c.method for c in candidates if c.method is not None))
    calls = tuple(call.name for call in graph.calls(op))
    return LayerSpace(op, calls, candidates, _factors(graph, op, methods, samples), refusals)


def _factors(graph: Graph, op: Op, methods: Sequence[str], samples: Sampler) -> Decomposed:
    """The factors of a layer, decomposed on its samples when they are needed."""
    source = graph.input_tensors(op.name)[0]
    return Decomposed(op, source, methods, partial(samples.__getitem__, op.name))
