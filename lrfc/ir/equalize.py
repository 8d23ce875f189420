"""Cross-layer equalisation: scales of the channels between two linear layers that suit 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.affine import Affine, channel_axis, take_in_after, take_in_before
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.ir.rounding import STEPS, grouped, rounds

Values = NDArray[np.float64]

#: Activations, by name, that give scaled values for values scaled by a positive factor.
_POSITIVE_ACTIVATIONS = frozenset(("relu", "leaky_relu"))
#: How far the scaling goes from equal ranges of the activations (0) to equal ranges of the weights
#: that read them (1).
_SHARES = np.linspace(0, 1, 9)
#: The least range of a channel that is looked at, as a share of the greatest.
_LEAST = 0.05


def equalize(
    graph: Graph, found: Sequence[Pair], ranges: dict[Ref, Ranges], bits: int, sweeps: int = 2
) -> dict[str, float]:
    """Balance pairs of layers in place; ``ranges``, of what each second layer reads, follow.

    The noise that is left, as a share, by the first layers changed.
    """
    changed: dict[str, float] = {}
    for _ in range(sweeps):
        for pair in found:
            scales, gain = _best(
                grouped(graph.op(pair.second)), ranges[pair.tensor], 2**bits - 1, signs=pair.linear
            )
            if gain >= 1 or not pair.scale(graph, scales):
                continue
            ranges[pair.tensor] = ranges[pair.tensor].scaled(scales)
            changed[pair.first] = changed.get(pair.first, 1.0) * gain
    return changed


@dataclass(frozen=True)
class Pair:
    """Two layers, and what the second reads.

    ``linear``: there is nothing nonlinear between them.
    """

    first: str
    second: str
    tensor: Ref
    axis: int
    linear: bool

    def scale(self, graph: Graph, scales: Values) -> bool:
        """Multiply the channels between the two by ``scales``, which the second takes out again; whether that was possible."""
        first, second = graph.op(self.first), graph.op(self.second)
        given, read = graph.tensors(self.first)[0], graph.tensor(self.tensor)
        multiplied = take_in_after(
            first.with_attrs(activation=None),
            given,
            _along(scales, len(given.shape), channel_axis(first, given)),
        )
        divided = take_in_before(second, read, _along(1 / scales, len(read.shape), self.axis))
        if multiplied is None or divided is None:
            return False
        graph.replace(
            replace(multiplied, attrs={**multiplied.attrs, "activation": first["activation"]})
        )
        graph.replace(divided)
        return True


@dataclass(frozen=True)
class Ranges:
    """Of each channel the least and greatest value, and the mean square."""

    low: Values
    high: Values
    square: Values

    @classmethod
    def of(cls, values: NDArray[np.float32], axis: int) -> Ranges:
        """What some values show, with their channels along that axis."""
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        return cls(
            rows.min(0).astype(np.float64),
            rows.max(0).astype(np.float64),
            np.square(rows).mean(0, dtype=np.float64),
        )

    def scaled(self, scales: Values) -> Ranges:
        """Those of the channels multiplied by the scales."""
        a, b = self.low * scales, self.high * scales
        return Ranges(np.minimum(a, b), np.maximum(a, b), self.square * scales**2)

    @property
    def width(self) -> float:
        """Of the range that all channels share; it holds 0."""
        return float(max(self.high.max(), 0) - min(self.low.min(), 0))


def pairs(graph: Graph) -> Iterator[Pair]:
    """The layers that can be balanced, each with the one that reads it."""
    for first in graph:
        if not _plain(graph, first) or first["activation"] not in (
            None,
            "linear",
            *_POSITIVE_ACTIVATIONS,
        ):
            continue
        linear = first["activation"] in (None, "linear")
        last, op = first, graph.only_consumer(first.name)
        while (
            op is not None
            and len(graph.operands(op.name)) == 1
            and (how := _passes(op)) is not None
        ):
            linear &= how
            last, op = op, graph.only_consumer(op.name)
        if op is None or not _plain(graph, op) or len(graph.operands(op.name)) != 1:
            continue
        tensor = graph.tensor(Ref(last.name))
        axis = channel_axis(op, tensor)
        given = graph.tensors(first.name)[0]
        same = channel_axis(first, given) == axis or len(given.shape) != len(
            tensor.shape
        )  # not so where one has its channels first
        if same and given.shape[channel_axis(first, given)] == tensor.shape[axis]:
            yield Pair(first.name, op.name, Ref(last.name), axis, linear)


def _plain(graph: Graph, op: Op) -> bool:
    return rounds(op) and len(graph.calls(op)) == 1


def _passes(op: Op) -> bool | None:
    """Whether the op keeps scales of either sign (True), or positive ones (False); None if it does not."""
    if op.info.homogeneous is not None:
        return op.info.homogeneous == "linear"
    if op.kind == "ReLU" and op["max_value"] is None and not op["threshold"]:
        return False
    if op.kind == "Activation" and op["activation"] in ("linear", *_POSITIVE_ACTIVATIONS):
        return bool(op["activation"] == "linear")
    return None


def _along(values: Values, rank: int, axis: int) -> Affine:
    shape = [1] * (rank - 1)
    shape[axis - 1] = values.size
    return Affine(values.reshape(shape), np.zeros(shape))


def _best(weights: Values, ranges: Ranges, steps: int, *, signs: bool) -> tuple[Values, float]:
    """The scales with the least noise, and the noise with them as a share of that without.

    ``weights``: (G, S, K, T) of the second layer.
    """
    reach = np.maximum(np.abs(ranges.low), np.abs(ranges.high))
    read = np.abs(weights).max(axis=(2, 3)).ravel()
    if not reach.max(initial=0) or not read.max(initial=0):
        return np.ones_like(reach), 1.0
    # A channel that calibration hardly sees may be seen by others: it is not blown up to the range
    # of all.
    reach, read = (np.maximum(each, _LEAST * each.max()) for each in (reach, read))
    sign = np.where(signs & (-ranges.low > ranges.high), -1.0, 1.0)
    choices = [sign]
    for share in _SHARES:
        scales = read**share / reach ** (1 - share)
        choices.append(sign * scales / np.exp(np.log(scales).mean()))
    noises = [_noise(weights, ranges, steps, scales) for scales in choices]
    best = int(np.argmin(noises))
    before = _noise(weights, ranges, steps, np.ones_like(reach))
    return choices[best], noises[best] / before if before > 0 else 1.0


def _noise(weights: Values, ranges: Ranges, steps: int, scales: Values) -> float:
    """The variance that rounding leaves in the output of the second layer, all of its channels together, times 12."""
    scaled = weights / scales.reshape(*weights.shape[:2], 1, 1)
    seen = ranges.scaled(scales)
    square = seen.square.reshape(weights.shape[:2]).sum(1)  # (G,)
    of_weights = (np.abs(scaled).max(axis=(1, 2)) / STEPS) ** 2  # (G, T)
    return float(
        np.square(scaled).sum() * (seen.width / steps) ** 2
        + weights.shape[2] * (of_weights.sum(1) * square).sum()
    )
