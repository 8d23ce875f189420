"""What pruning a group of filters does to the network's output, measured with the layers that read them refitted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array
from lrfc.pruning.compensate import refitted
from lrfc.pruning.criteria import keep_best
from lrfc.pruning.groups import Group
from lrfc.pruning.labels import Ids
from lrfc.pruning.space import Keep
from lrfc.search.candidates import response
from lrfc.search.sensitivity import Sensitivity, batchnorm_statistics
from lrfc.search.statistics import LayerSamples

#: Shares of a group's units at whose removal the output is looked at.
PROBES = (0.12, 0.4, 0.75)


def choices(
    graph: Graph,
    group: Group,
    scores: NDArray[np.float64],
    kept: list[int],
    sensitivity: Sensitivity,
    samples: Callable[[str], LayerSamples],
) -> tuple[Keep, ...]:
    """A choice for each number of units: those of the highest scores stay.

    The divergence is measured at the counts nearest to ``PROBES``; between and beyond them it
    follows a power of the share that goes.
    """
    fewer = [count for count in kept if count < group.width]
    probes = sorted(
        {
            min(fewer, key=lambda count: abs(1 - count / group.width - share))
            for share in PROBES
            if fewer
        },
        reverse=True,
    )
    points = {
        1 - count / group.width: sensitivity.divergence(
            _weights(
                graph,
                group,
                np.setdiff1d(np.arange(group.width), keep_best(scores, count)),
                samples,
            )
        )
        for count in probes
    }
    return tuple(
        Keep(group, keep_best(scores, count), _between(points, 1 - count / group.width))
        for count in kept
    )


def _weights(
    graph: Graph, group: Group, gone: Ids, samples: Callable[[str], LayerSamples]
) -> Mapping[str, Mapping[str, Array]]:
    """The weights of every layer that reads the group, without the units that are gone."""
    weights: dict[str, Mapping[str, Array]] = {}
    for part in group.consumers:
        op, sample = graph.op(part.layer), samples(part.layer)
        source = graph.input_tensors(op.name)[0]
        found = refitted(op, source, sample.statistics, part.where(gone))
        weights[op.name] = {"kernel": found.kernel} | (
            {} if found.bias is None else {"bias": found.bias}
        )
        changed = replace(op, weights={**op.weights, **weights[op.name]})
        weights |= batchnorm_statistics(
            op,
            source,
            sample,
            functools.partial(response, changed, source, sample),
        )
    return weights


def _between(points: Mapping[float, float], share: float) -> float:
    """The divergence when that share of the units is gone."""
    if share <= 0:
        return 0.0
    at = sorted(points)
    x, y = (
        np.log(at),
        np.maximum.accumulate(np.log([points[each] for each in at])),
    )  # removing more is never predicted to harm less
    slope = float(np.clip(np.polyfit(x, y, 1)[0], 1.0, 4.0)) if len(at) > 1 else 2.0
    inside = float(np.interp(np.log(share), x, y))
    outside = min(np.log(share) - x[0], 0.0) + max(np.log(share) - x[-1], 0.0)
    return float(np.exp(inside + slope * outside))
