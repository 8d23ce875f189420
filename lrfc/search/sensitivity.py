"""The sensitivity of the network's output to the feature-map error of each layer.

It is measured by forward passes with one layer perturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization.base import Factors, Ranks
from lrfc.factorization.layout import Layout
from lrfc.factorization.threads import alone
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras.layers import variables_of
from lrfc.ir.op import Op, Tensor
from lrfc.search.candidates import Candidate, LayerSpace, nearest_to_probes, response
from lrfc.search.epilogue import FeatureMap
from lrfc.search.segments import Segments
from lrfc.search.statistics import LayerSamples

#: Number of inputs that ``telling`` draws from, for each input that sensitivities are measured on.
POOL = 8


def divergence(
    reference: Batch, outputs: Batch, weights: NDArray[np.float64] | None = None
) -> float:
    """The divergence of a network's outputs from the original's, without labels.

    For probabilities (last axis sums to 1) the Kullback-Leibler divergence in nats per sample,
    otherwise ‖a − b‖² / ‖a − mean(a)‖²; the mean over outputs.
    ``weights``: of the samples (N,), for the former.
    """
    return float(
        np.mean(
            [
                _divergence(np.asarray(a, np.float64), np.asarray(b, np.float64), weights)
                for a, b in zip(reference, outputs, strict=True)
            ]
        )
    )


def is_distribution(values: NDArray[Any]) -> bool:
    """Whether the last axis holds probabilities."""
    return (
        values.ndim > 1
        and values.shape[-1] > 1
        and float(values.min()) >= 0
        and bool(np.allclose(values.sum(-1), 1, atol=1e-3))
    )


def _divergence(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> float:
    if is_distribution(a):
        tiny = 1e-9
        values = np.sum(a * (np.log(a + tiny) - np.log(b + tiny)), -1).reshape(len(a), -1).mean(1)
        return float(values.mean() if weights is None else values @ weights)
    return float(np.sum(np.square(a - b)) / max(np.sum(np.square(a - a.mean(0))), 1e-30))


def telling(outputs: Batch, count: int) -> tuple[NDArray[np.intp], NDArray[np.float64] | None]:
    """Importance sampling by output entropy: sample indices, and inverse-probability weights.

    A trained classifier is certain of most images, and a tenth of them carry more than half of the
    divergence. Samples are drawn with a probability proportional to the entropy of the output
    (systematic sampling, Madow 1949) and weighted by its inverse, which leaves the mean unbiased.
    On ResNet-20, 64 of them estimate a layer's effect as well as 256 unselected ones. Where the
    outputs are no probabilities, the first samples are used, with weights None.
    """
    total = len(outputs[0])
    if count >= total or not all(is_distribution(values) for values in outputs):
        return np.arange(min(count, total)), None
    entropy = np.zeros(total)
    for values in outputs:
        p = np.clip(np.asarray(values, np.float64), 1e-12, 1)
        entropy += -np.sum(p * np.log(p), -1).reshape(total, -1).mean(1)
    entropy += 0.1 * entropy.mean() + 1e-12
    probability = count * entropy / entropy.sum()
    while (probability > 1).any():  # those above 1 are certainly drawn, the others share the rest
        certain = probability >= 1
        rest = np.where(certain, 0, entropy)
        probability = np.where(certain, 1, (count - certain.sum()) * rest / rest.sum())
    reached = np.cumsum(probability) + 0.5
    chosen = np.flatnonzero(np.floor(reached) > np.floor(reached - probability))
    return chosen, 1 / (probability[chosen] * total)


class Sensitivity:
    """Predicts the output divergence of the candidates of a layer from their feature-map error.

    Each layer is perturbed alone, by the dense equivalent kernels of the candidates nearest to
    ``PROBES`` (so nothing is rebuilt), with the BatchNorm behind it re-estimated. Between and
    beyond the probes the divergence is a power of the error. ``images``: number of inputs to use.
    """

    def __init__(self, graph: Graph, inputs: Batch, images: int | None = None) -> None:
        self._graph = graph
        self._segments = Segments(graph)
        self._weights: NDArray[np.float64] | None = None
        if images is not None and images < len(inputs[0]):
            chosen, self._weights = telling(self._segments.predict(inputs, max(images, 8)), images)
            inputs = tuple(x[chosen] for x in inputs)
        self._reference = self._segments.hold(inputs)

    def __call__(self, space: LayerSpace, samples: LayerSamples) -> LayerSpace:
        """The space with the predicted divergence of every candidate."""
        points, source = {}, self._graph.input_tensors(space.op.name)[0]
        for candidate in _probes(space.candidates):
            with alone(Layout.of(space.op, source)):
                points[candidate.error] = self.divergence(
                    _weights(space, candidate, samples, source)
                )
        return replace(
            space, candidates=tuple(_with_divergence(c, points) for c in space.candidates)
        )

    def divergence(self, weights: Mapping[str, Mapping[str, NDArray[Any]]]) -> float:
        """The divergence of the outputs with these weights, by layer and variable."""
        with holding(self._graph, self._segments, weights) as changed:
            return max(
                divergence(self._reference, self._segments.outputs(changed), self._weights), 1e-12
            )


@contextmanager
def holding(
    graph: Graph, segments: Segments, weights: Mapping[str, Mapping[str, NDArray[Any]]]
) -> Iterator[list[str]]:
    """Set weights, by layer and variable, in the running network, and restore them on exit.

    Yields the names of the changed Keras layers.
    """
    names = {name: graph.op(name).shared or name for name in weights}
    changes = [
        (variables_of(layer)[variable], value, graph.op(name).weights[variable])
        for name, values in weights.items()
        for layer in segments.layers(names[name])
        for variable, value in values.items()
    ]
    for variable, value, _ in changes:
        variable.assign(np.asarray(value).reshape(variable.shape))
    try:
        yield list(names.values())
    finally:
        for variable, _, own in changes:
            variable.assign(own)


def _probes(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates at which the layer is perturbed."""
    real: dict[tuple[str, float], Candidate] = {}
    for candidate in candidates:
        if candidate.method is not None:
            real.setdefault((candidate.method, candidate.error), candidate)
    return [real[entry] for entry in nearest_to_probes(list(real))]


def _with_divergence(candidate: Candidate, points: Mapping[float, float]) -> Candidate:
    if candidate.method is None or candidate.error <= 0:
        return replace(candidate, divergence=0.0)
    errors = sorted(points)
    x = np.log(candidate.error)
    if len(errors) == 1:
        return replace(
            candidate, divergence=float(points[errors[0]] * np.exp(2 * (x - np.log(errors[0]))))
        )
    at, logs = np.log([errors[0], errors[-1]]), np.log([points[errors[0]], points[errors[-1]]])
    slope = np.clip((logs[1] - logs[0]) / max(at[1] - at[0], 1e-9), 1.0, 3.0)
    # The line goes through the middle of both probes: with a clipped slope, any other would predict
    # a smaller divergence for some larger error.
    return replace(candidate, divergence=float(np.exp(logs.mean() + slope * (x - at.mean()))))


def _weights(
    space: LayerSpace, candidate: Candidate, samples: LayerSamples, source: Tensor
) -> dict[str, dict[str, NDArray[Any]]]:
    """A candidate's dense kernel, its bias, and the re-estimated BatchNorm behind it."""
    assert candidate.method is not None
    factors = space.factors[candidate.method]
    kernel = factors.kernel(candidate.ranks)
    weights: dict[str, dict[str, NDArray[Any]]] = {
        space.op.name: Layout.of(space.op, source).weights(kernel)
    }
    bias = _bias(space.op, factors, candidate.ranks, samples)
    if bias is not None:
        weights[space.op.name]["bias"] = bias
    return weights | batchnorm_statistics(
        space.op,
        source,
        samples,
        lambda: next(iter(factors.responses(samples.patches, [candidate.ranks]))),
    )


def batchnorm_statistics(
    op: Op, source: Tensor, samples: LayerSamples, changed: Callable[[], NDArray[Any]]
) -> dict[str, dict[str, NDArray[Any]]]:
    """The re-estimated statistics of the BatchNorm behind a layer, by its name; empty without one.

    ``changed``: returns the response of the compressed layer to its samples.
    """
    chain = samples.chain
    if chain.batchnorm is None:
        return {}
    mean, variance = FeatureMap(chain, response(op, source, samples), samples.addend).statistics(
        changed()
    )
    return {chain.batchnorm.name: {"moving_mean": mean, "moving_variance": variance}}


def _bias(op: Op, factors: Factors, ranks: Ranks, samples: LayerSamples) -> NDArray[Any] | None:
    """The bias of the compressed layer; None without one."""
    if "bias" not in op.weights:
        return None
    if op.info.family in ("einsum", "transposed"):  # their responses are not the layer's output
        return next(
            stage.weights["bias"]
            for stage in reversed(factors.stages(ranks))
            if "bias" in stage.weights
        )
    return np.asarray(next(iter(factors.responses(np.zeros_like(samples.patches[:1]), [ranks])))[0])
