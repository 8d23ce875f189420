"""Evaluate every method and rank of every layer on the calibration data."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import ClassVar

from lrfc.config.build import METHODS
from lrfc.costs.totals import totals
from lrfc.factorization.threads import one_thread, workers
from lrfc.ir.batch import head
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.search.cache import Store, fingerprint, place
from lrfc.search.candidates import Answers, Decomposed, LayerSpace, answers, compared, selected
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import POOL, PROBES, Sensitivity
from lrfc.search.similarity import MEASURES
from lrfc.search.statistics import LayerSamples, Sampler, SampleSize
from lrfc.state import Fact, State

#: Multiply-accumulates that the passes for the sensitivities may take, half a minute of two cores,
#: and passes for each layer.
WORK, PROBED = 1e12, len(PROBES)


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
        """The state with its DesignSpace.

        ``cached``: what an earlier run found out about a layer on the same model, data and options
        is taken over.
        """
        graph, inputs = (
            state.graph,
            state.data.train.head(
                max(self.size.images + self.size.held_out, self.sensitivity_images)
            ).inputs,
        )
        layers = list(selected(graph, self.keep, self.only))
        skipped = {op.name: reason for op, reason in layers if reason is not None}
        eligible = [op for op, reason in layers if reason is None]
        samples = Sampler(graph, eligible, inputs, self.size, state.seed)
        store = None
        if self.cached:
            seen = (
                self.methods,
                self.measure,
                self.rank_multiple,
                self.size,
                self.sensitivity_images,
                state.seed,
            )
            store = Store(place(), fingerprint(graph, inputs, seen), state.progress.log)
        stored = (
            {}
            if store is None
            else {op.name: known for op in eligible if (known := store.get(op.name)) is not None}
        )
        fresh = iter(
            self._answered(graph, [op for op in eligible if op.name not in stored], samples)
        )
        sensitivity: Sensitivity | None = None
        step = state.progress.stage("layers", len(eligible))
        spaces = []
        for op in eligible:
            if op.name in stored:
                candidates, refusals = stored[op.name]
                methods = list(dict.fromkeys(c.method for c in candidates if c.method is not None))
                factors = Decomposed(
                    op,
                    graph.input_tensors(op.name)[0],
                    methods,
                    partial(samples.__getitem__, op.name),
                )
                found = LayerSpace(
                    op, tuple(call.name for call in graph.calls(op)), candidates, factors, refusals
                )
            else:
                sample, given = next(fresh)
                found = compared(graph, op, sample, given, MEASURES[self.measure])
                if len(found.candidates) > 1:
                    if sensitivity is None:
                        images = self._looked_at(graph, len(eligible))
                        sensitivity = Sensitivity(graph, head(inputs, POOL * images), images)
                    found = sensitivity(found, sample)
                if (
                    op.name not in samples.lasting
                ):  # what a large network's layers read is not kept for all of them
                    found = replace(
                        found,
                        factors=Decomposed(
                            op,
                            graph.input_tensors(op.name)[0],
                            list(found.factors),
                            partial(samples.__getitem__, op.name),
                        ),
                    )
                if store is not None:
                    store.put(op.name, found.candidates, found.refusals)
            if len(found.candidates) == 1:
                skipped[op.name] = found.reason
            else:
                spaces.append(found)
            step(1)
        return state.with_fact(DesignSpace(tuple(spaces), skipped))

    def _answered(
        self, graph: Graph, layers: Sequence[Op], samples: Sampler
    ) -> Iterator[tuple[LayerSamples, Answers]]:
        """The layers' samples and the methods' answers, in their order.

        A group's samples are collected when nothing is at work on the group before: together they
        would need twice the memory.
        """
        with one_thread(), ThreadPoolExecutor(workers()) as pool:
            for group in samples.groups(layers):
                yield from self._ahead(graph, group, samples, pool)

    def _ahead(
        self, graph: Graph, layers: Sequence[Op], samples: Sampler, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[LayerSamples, Answers]]:
        """The same for one group, a few layers ahead: on as many cores as there are, each with one BLAS thread."""
        pending: deque[tuple[LayerSamples, Future[Answers]]] = deque()
        waiting = iter(layers)
        try:
            for _ in layers:
                for op in islice(waiting, workers() + 1 - len(pending)):
                    seen = samples[op.name]  # collected here, not in a thread: it runs the network
                    pending.append(
                        (
                            seen,
                            pool.submit(
                                answers,
                                graph,
                                op,
                                seen,
                                self.methods,
                                MEASURES[self.measure],
                                multiple=self.rank_multiple,
                            ),
                        )
                    )
                seen, future = pending.popleft()
                yield seen, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _looked_at(self, graph: Graph, layers: int) -> int:
        """How many images the sensitivities are measured on: fewer for a deep and large network, so that the passes end."""
        work = PROBED * layers * totals(graph)["macs"]
        return max(
            min(self.sensitivity_images, 8), min(self.sensitivity_images, int(WORK // max(work, 1)))
        )
