"""How much each unit of a group matters: one function per criterion, higher scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.factorization.base import Statistics
from lrfc.factorization.linalg import LowRank
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.pruning import statistics as seen
from lrfc.pruning.compensate import layout_of
from lrfc.pruning.groups import Dependencies, Group, Part
from lrfc.pruning.labels import Ids
from lrfc.pruning.reconstruct import Block, blocks, eliminate, wide_costs

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may look at beside the weights.

    ``statistics`` gives those of what a consumer reads, by its name (such as ``lambda name:
    sampler[name].statistics``); ``inputs`` are calibration samples. What is found for all groups at
    once is kept.
    """

    graph: Graph
    dependencies: Dependencies
    inputs: Batch = ()
    statistics: Callable[[str], Statistics] | None = None
    seed: int = 0

    @cached_property
    def slopes(self) -> Mapping[str, NDArray[np.float32]]:
        """See ``seen.slopes``."""
        return seen.slopes(self.graph, self._readers, self.inputs, self.seed)

    @cached_property
    def ranks(self) -> Mapping[Ref, NDArray[np.float64]]:
        """See ``seen.ranks``."""
        refs = dict.fromkeys(
            self.graph.operands(call.name)[0]
            for op in self._readers
            for call in self.graph.calls(op)
        )
        axes = {ref: self.dependencies.labels[ref].axis for ref in refs}
        return seen.ranks(
            self.graph, {ref: axis for ref, axis in axes.items() if axis is not None}, self.inputs
        )

    @cached_property
    def _readers(self) -> tuple[Op, ...]:
        names = dict.fromkeys(
            part.layer for group in self.dependencies.groups for part in group.consumers
        )
        return tuple(self.graph.op(name) for name in names)


Criterion = Callable[[Graph, Group, Context], Scores]


# -- the filters' weights --------------------------------------------------------------------------


def filters(op: Op) -> NDArray[np.float64]:
    """A producer's filters as rows (filters, values), without the bias."""
    kind = op.info
    if kind.family == "embedding":
        return np.asarray(op.weights["embeddings"].T, np.float64)
    if kind.family == "einsum":
        terms, target = str(op["equation"]).replace(" ", "").split("->")
        weights = terms.split(",")[1]
        made = next(letter for letter in target if letter in weights)
        return _last_first(op.weights["kernel"], weights.index(made))
    assert kind.output_kernel is not None
    (axis,) = kind.output_axes
    return _last_first(op.weights[kind.output_kernel], axis)


def _last_first(kernel: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    moved = np.moveaxis(kernel, axis, 0)
    return np.asarray(moved.reshape(len(moved), -1), np.float64)


def _summed(values: NDArray[np.float64], part: Part, width: int) -> Scores:
    """The values of a part's indices added up by unit."""
    inside = part.units >= 0
    return np.asarray(np.bincount(part.units[inside], values[inside], width), np.float64)


def _total(parts: Iterable[Scores]) -> Scores:
    return np.asarray(np.sum(list(parts), axis=0), np.float64)


def l1(graph: Graph, group: Group, context: Context) -> Scores:
    """Σ|w| of the unit's filters (Li et al. 2017, arXiv 1608.08710)."""
    return _total(
        _summed(np.abs(filters(graph.op(p.layer))).sum(1), p, group.width) for p in group.producers
    )


def l2(graph: Graph, group: Group, context: Context) -> Scores:
    """√Σw² of the unit's filters."""
    return np.asarray(
        np.sqrt(
            _total(
                _summed(np.square(filters(graph.op(p.layer))).sum(1), p, group.width)
                for p in group.producers
            )
        )
    )


def geometric_median(graph: Graph, group: Group, context: Context) -> Scores:
    """The sum of distances to the other units: those near the geometric median are replaceable (FPGM: He et al.

    2019, arXiv 1811.00250, eq. 6).
    """
    columns = []
    for part in group.producers:
        kernel = filters(graph.op(part.layer))
        own = [
            kernel[np.flatnonzero(part.units == unit)].reshape(-1) for unit in range(group.width)
        ]
        longest = max(map(len, own))
        columns.append(np.stack([np.pad(row, (0, longest - len(row))) for row in own]))
    units = np.concatenate(columns, axis=1)
    squares = np.square(units).sum(1)
    return np.asarray(
        np.sqrt(np.clip(squares[:, None] + squares - 2 * units @ units.T, 0, None)).sum(1)
    )


def batchnorm_scale(graph: Graph, group: Group, context: Context) -> Scores:
    """Σ|γ| of the BatchNorms in the group (network slimming: Liu et al.

    2017, arXiv 1708.06519). ModelError where none of them has a scale.
    """
    norms = [
        part
        for part in group.members
        if graph.op(part.layer).kind == "BatchNormalization"
        and "gamma" in graph.op(part.layer).weights
    ]
    if not norms:
        raise ModelError(
            f"the filters of '{group.name}' have no BatchNorm with a scale behind them; choose"
            " another criterion"
        )
    return _total(
        _summed(np.abs(graph.op(p.layer).weights["gamma"]).astype(np.float64), p, group.width)
        for p in norms
    )


# -- what the network does with the units ----------------------------------------------------------


def taylor(graph: Graph, group: Group, context: Context) -> Scores:
    """The mean square of each unit's first-order effect on the output (Molchanov et al.

    2019, arXiv 1906.10771, eq. 8, on what the consumers read).

    At the network itself the divergence from its own outputs has no slope, so it is the outputs'
    own change that is squared: that of the log-probabilities, class by class, or of outputs that
    are no probabilities. Labels are not needed. With the loss of the network's own answer in its
    place, as the Fisher information has it, a trained network that is sure of its samples shows
    nothing: on ResNet-20 a quarter of the MACs then cost twice the accuracy.
    """
    total = np.zeros((0, group.width))
    for part in group.consumers:
        slope = context.slopes[part.layer]
        units = np.zeros((len(part.units), group.width))
        inside = np.flatnonzero(part.units >= 0)
        units[inside, part.units[inside]] = 1
        effect = slope @ units
        total = effect if not len(total) else total + effect
    return np.asarray(np.square(total).mean(0) if len(total) else np.zeros(group.width))


def feature_rank(graph: Graph, group: Group, context: Context) -> Scores:
    """The mean rank of the unit's feature maps (HRank: Lin et al.

    2020, arXiv 2002.10179, eq. 5), their energy deciding between equal ranks.
    """
    scores = np.zeros(group.width)
    refs = dict.fromkeys(
        graph.operands(call.name)[0]
        for part in group.consumers
        for call in graph.calls(graph.op(part.layer))
    )
    unit = {label: number for number, label in enumerate(group.classes.tolist())}
    for ref in refs:
        labels = context.dependencies.labels[ref]
        part = Part(
            ref.op, np.array([unit.get(label, -1) for label in labels.ids.tolist()], np.intp)
        )
        scores += _summed(context.ranks[ref], part, group.width)
    return scores


def reconstruction(graph: Graph, group: Group, context: Context) -> Scores:
    """The relative error of what the consumers give, refitted to do without the unit and all units that matter less, summed over the consumers.

    Sorted, the scores are the curve of that error: entry j − 1 is the error without j units. The
    greedy search goes from all units down (in the spirit of ThiNet, Luo et al. 2017, arXiv
    1707.06342, with the refit inside the search).
    """
    if context.statistics is None:
        raise ModelError("the reconstruction criterion needs statistics of what the layers read")
    found: list[Block] = []
    alone = np.zeros(group.width)
    for part in group.consumers:
        op = graph.op(part.layer)
        layout, statistics = (
            layout_of(op, graph.input_tensors(op.name)[0]),
            context.statistics(part.layer),
        )
        if isinstance(statistics.covariance, LowRank):
            alone += wide_costs(layout, statistics, part.units, group.width)
        else:
            found.extend(blocks(layout, statistics, part.units, group.width))
    return eliminate(found, group.width, alone)


CRITERIA: Mapping[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "geometric_median": geometric_median,
    "batchnorm_scale": batchnorm_scale,
    "taylor": taylor,
    "feature_rank": feature_rank,
    "reconstruction": reconstruction,
}


def keep_best(scores: Scores, count: int) -> Ids:
    """The indices of the ``count`` highest scores, ascending; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
