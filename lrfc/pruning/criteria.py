"""Pruning criteria: functions that score the units of a group; units with low scores go first."""

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
from lrfc.ir.keras.run import outputs_at
from lrfc.ir.op import Op, Ref
from lrfc.pruning import statistics as channel_statistics
from lrfc.pruning.compensate import layout_of
from lrfc.pruning.groups import Dependencies, Group, Part
from lrfc.pruning.labels import Ids
from lrfc.pruning.reconstruct import Block, blocks, eliminate, wide_costs

Scores = NDArray[np.float64]
#: Samples that the energy of products is measured on.
PRODUCTS = 128


@dataclass(frozen=True, eq=False)
class Context:
    """The data of a criterion beyond the weights; results for all groups at once are cached.

    ``inputs`` are calibration samples. ``statistics`` returns the input statistics of a consumer by
    its name, such as ``lambda name: sampler[name].statistics``.
    """

    graph: Graph
    dependencies: Dependencies
    inputs: Batch = ()
    statistics: Callable[[str], Statistics] | None = None
    seed: int = 0

    @cached_property
    def slopes(self) -> Mapping[str, NDArray[np.float32]]:
        """The slopes of the output along the input channels of every consumer."""
        return channel_statistics.slopes(self.graph, self._consumers, self.inputs, self.seed)

    @cached_property
    def ranks(self) -> Mapping[Ref, NDArray[np.float64]]:
        """The ranks of the feature maps that any consumer reads."""
        refs = dict.fromkeys(
            self.graph.operands(call.name)[0]
            for op in self._consumers
            for call in self.graph.calls(op)
        )
        axes = {ref: self.dependencies.labels[ref].axis for ref in refs}
        return channel_statistics.ranks(
            self.graph, {ref: axis for ref, axis in axes.items() if axis is not None}, self.inputs
        )

    @cached_property
    def _consumers(self) -> tuple[Op, ...]:
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
        output = next(letter for letter in target if letter in weights)
        return _rows(op.weights["kernel"], weights.index(output))
    assert kind.output_kernel is not None
    (axis,) = kind.output_axes
    return _rows(op.weights[kind.output_kernel], axis)


def _rows(kernel: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """The kernel as a matrix whose rows are the indices along an axis."""
    moved = np.moveaxis(kernel, axis, 0)
    return np.asarray(moved.reshape(len(moved), -1), np.float64)


def _by_unit(values: NDArray[np.float64], part: Part, width: int) -> Scores:
    """The sums of the values of a part's indices, by unit."""
    inside = part.units >= 0
    return np.asarray(np.bincount(part.units[inside], values[inside], width), np.float64)


def _total(parts: Iterable[Scores]) -> Scores:
    return np.asarray(np.sum(list(parts), axis=0), np.float64)


def l1(graph: Graph, group: Group, context: Context) -> Scores:
    """Σ|w| of the unit's filters (Li et al. 2017, arXiv 1608.08710)."""
    return _total(
        _by_unit(np.abs(filters(graph.op(p.layer))).sum(1), p, group.width) for p in group.producers
    )


def l2(graph: Graph, group: Group, context: Context) -> Scores:
    """√Σw² of the unit's filters."""
    return np.asarray(
        np.sqrt(
            _total(
                _by_unit(np.square(filters(graph.op(p.layer))).sum(1), p, group.width)
                for p in group.producers
            )
        )
    )


def geometric_median(graph: Graph, group: Group, context: Context) -> Scores:
    """The sum of distances to the other units: units near the geometric median are replaceable.

    FPGM (He et al. 2019, arXiv 1811.00250, eq. 6).
    """
    columns = []
    for part in group.producers:
        kernel = filters(graph.op(part.layer))
        rows = [
            kernel[np.flatnonzero(part.units == unit)].reshape(-1) for unit in range(group.width)
        ]
        longest = max(map(len, rows))
        columns.append(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]))
    units = np.concatenate(columns, axis=1)
    squares = np.square(units).sum(1)
    return np.asarray(
        np.sqrt(np.clip(squares[:, None] + squares - 2 * units @ units.T, 0, None)).sum(1)
    )


def batchnorm_scale(graph: Graph, group: Group, context: Context) -> Scores:
    """Σ|γ| of the BatchNorms in the group (Liu et al. 2017, arXiv 1708.06519, network slimming).

    ModelError if none of them has a scale.
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
        _by_unit(np.abs(graph.op(p.layer).weights["gamma"]).astype(np.float64), p, group.width)
        for p in norms
    )


# -- activations and gradients ---------------------------------------------------------------------


def taylor(graph: Graph, group: Group, context: Context) -> Scores:
    """The mean square of the first-order effect of each unit on the output.

    Molchanov et al. 2019 (arXiv 1906.10771, eq. 8), on the inputs of the consumers. The divergence
    from the network's own outputs has no slope at the network itself. So the change of the outputs
    is squared: of the log-probabilities, class by class, or of outputs that are no probabilities.
    Labels are not needed. With the loss of the network's own prediction instead, as in the Fisher
    information, the slopes of a trained network that is certain vanish: on ResNet-20 a quarter of
    the MACs then cost twice the accuracy.
    """
    total = np.zeros((0, group.width))
    for part in group.consumers:
        slopes = context.slopes[part.layer]
        units = np.zeros((len(part.units), group.width))
        inside = np.flatnonzero(part.units >= 0)
        units[inside, part.units[inside]] = 1
        effect = slopes @ units
        total = effect if not len(total) else total + effect
    return np.asarray(np.square(total).mean(0) if len(total) else np.zeros(group.width))


def feature_rank(graph: Graph, group: Group, context: Context) -> Scores:
    """The mean rank of the unit's feature maps, and their energy between equal ranks.

    HRank (Lin et al. 2020, arXiv 2002.10179, eq. 5).
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
        scores += _by_unit(context.ranks[ref], part, group.width)
    return scores


def reconstruction(graph: Graph, group: Group, context: Context) -> Scores:
    """The error of the refitted consumers without the unit and all units with lower scores.

    It is the relative error of their outputs, summed over the consumers. Sorted, the scores are the
    curve of that error: entry j − 1 is the error without j units. The search is greedy, from all
    units down, as in ThiNet (Luo et al. 2017, arXiv 1707.06342), but with a refit at each step.
    """
    if context.statistics is None:
        raise ModelError("the reconstruction criterion needs input statistics of the layers")
    narrow: list[Block] = []
    wide = np.zeros(group.width)
    for part in group.consumers:
        op = graph.op(part.layer)
        layout, statistics = (
            layout_of(op, graph.input_tensors(op.name)[0]),
            context.statistics(part.layer),
        )
        if isinstance(statistics.covariance, LowRank):
            wide += wide_costs(layout, statistics, part.units, group.width)
        else:
            narrow.extend(blocks(layout, statistics, part.units, group.width))
    return eliminate(narrow, group.width, wide)


def products(graph: Graph, group: Group, context: Context) -> Scores:
    """The energy of the products of queries and keys, which no layer with weights reads.

    The product of the mean squares of both producers, each summed over the unit's filters.
    """
    parts = group.producers
    batch = tuple(x[:PRODUCTS] for x in context.inputs)
    values = outputs_at(graph, [Ref(part.layer) for part in parts])(batch)
    squares = [np.square(x, dtype=np.float64).reshape(-1, x.shape[-1]).mean(0) for x in values]
    return np.asarray(
        np.prod([_by_unit(x, part, group.width) for x, part in zip(squares, parts, strict=True)], 0)
    )


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
    """The indices of the ``count`` highest scores, ascending; of equal scores the first ones."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
