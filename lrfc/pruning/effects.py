"""Divergence of the output when a dependency group is pruned and its consumers are refitted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op
from lrfc.pruning.compensate import refitted
from lrfc.pruning.criteria import keep_best
from lrfc.pruning.groups import Group
from lrfc.pruning.labels import Ids
from lrfc.pruning.space import Keep
from lrfc.search.candidates import response
from lrfc.search.sensitivity import Sensitivity, batchnorm_statistics
from lrfc.search.statistics import LayerSamples

#: Fractions of a group's units at whose removal the divergence is measured.
PROBES = (0.12, 0.4, 0.75)


def choices(
    graph: Graph,
    group: Group,
    scores: NDArray[np.float64],
    kept: list[int],
    sensitivity: Sensitivity,
    samples: Callable[[str], LayerSamples],
) -> tuple[Keep, ...]:
    """A choice for each number of kept units: those with the highest scores.

    The divergence is measured at the numbers nearest to ``PROBES``; between and beyond them it is
    a power of the removed fraction. ``samples`` returns the calibration statistics of a layer.
    """

    def removed(count: int) -> float:
        return 1 - count / group.width

    fewer = [count for count in kept if count < group.width]
    probes = sorted(
        {min(fewer, key=lambda count: abs(removed(count) - share)) for share in PROBES if fewer},
        reverse=True,
    )
    points = {}
    for count in probes:
        units = np.setdiff1d(np.arange(group.width), keep_best(scores, count))
        weights = _weights(graph, group, units, samples)
        points[removed(count)] = sensitivity.divergence(weights)
    return tuple(
        Keep(group, keep_best(scores, count), _divergence(points, removed(count))) for count in kept
    )


def _weights(
    graph: Graph, group: Group, removed: Ids, samples: Callable[[str], LayerSamples]
) -> Mapping[str, Mapping[str, Array]]:
    """The weights of every consumer of the group, and of the BatchNorms behind, after pruning.

    Of a group without consumers, whose producers are multiplied with each other, those of the first
    producer, with zeros for what is removed.
    """
    if not group.consumers:
        first = group.producers[0]
        return {first.layer: _zeroed(graph.op(first.layer), first.where(removed))}
    weights: dict[str, Mapping[str, Array]] = {}
    for part in group.consumers:
        op, sample = graph.op(part.layer), samples(part.layer)
        source = graph.input_tensors(op.name)[0]
        refit = refitted(op, source, sample.statistics, part.where(removed))
        weights[op.name] = {"kernel": refit.kernel} | (
            {} if refit.bias is None else {"bias": refit.bias}
        )
        changed = replace(op, weights={**op.weights, **weights[op.name]})
        weights |= batchnorm_statistics(
            op,
            source,
            sample,
            functools.partial(response, changed, source, sample),
        )
    return weights


def _zeroed(op: Op, filters: Ids) -> Mapping[str, Array]:
    """The weights of a fully connected layer some of whose filters compute 0."""
    weights = {name: np.array(array) for name, array in op.weights.items()}
    for array in weights.values():
        array[..., filters] = 0
    return weights


def _divergence(points: Mapping[float, float], share: float) -> float:
    """The divergence when a share of the units is removed, interpolated between measured points."""
    if share <= 0:
        return 0.0
    at = sorted(points)
    x = np.log(at)
    # Removing more units is never predicted to change the output less.
    y = np.maximum.accumulate(np.log([points[removed] for removed in at]))
    slope = float(np.clip(np.polyfit(x, y, 1)[0], 1.0, 4.0)) if len(at) > 1 else 2.0
    inside = float(np.interp(np.log(share), x, y))
    outside = min(np.log(share) - x[0], 0.0) + max(np.log(share) - x[-1], 0.0)
    return float(np.exp(inside + slope * outside))
