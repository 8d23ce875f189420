"""Cross-layer equalisation: scaling of the channels between two linear layers for 8 bits."""

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

#: Activations, by name, that commute with scaling by a positive factor.
_POSITIVE_ACTIVATIONS = frozenset(("relu", "leaky_relu"))
#: Steps from equal ranges of the activations (0) to equal ranges of the weights that read them (1).
_SHARES = np.linspace(0, 1, 9)
#: Lower bound on the range of a channel, as a share of the greatest range.
_LEAST = 0.05


def equalize(
    graph: Graph, layers: Sequence[Pair], ranges: dict[Ref, Ranges], bits: int, sweeps: int = 2
) -> dict[str, float]:
    """Equalise pairs of layers in place.

    ``ranges``: those of the input of each second layer, which are scaled in place too. Return the
    rounding noise that is left, as a share of the noise before, by first layer.
    """
    noise: dict[str, float] = {}
    for _ in range(sweeps):
        for pair in layers:
            scales, share = _best(
                grouped(graph.op(pair.second)), ranges[pair.tensor], 2**bits - 1, signs=pair.linear
            )
            if share >= 1 or not pair.scale(graph, scales):
                continue
            ranges[pair.tensor] = ranges[pair.tensor].scaled(scales)
            noise[pair.first] = noise.get(pair.first, 1.0) * share
    return noise


@dataclass(frozen=True)
class Pair:
    """Two linear layers and the input of the second one, with its channel axis.

    ``linear``: no op between them is nonlinear.
    """

    first: str
    second: str
    tensor: Ref
    axis: int
    linear: bool

    def scale(self, graph: Graph, scales: Values) -> bool:
        """Multiply the channels by ``scales`` in the first layer and divide by them in the second.

        Return whether that was possible.
        """
        first, second = graph.op(self.first), graph.op(self.second)
        output, read = graph.tensors(self.first)[0], graph.tensor(self.tensor)
        multiplied = take_in_after(
            first.with_attrs(activation=None),
            output,
            _along(scales, len(output.shape), channel_axis(first, output)),
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
    """Minimum, maximum and mean square of each channel, all (C,)."""

    low: Values
    high: Values
    square: Values

    @classmethod
    def of(cls, values: NDArray[np.float32], axis: int) -> Ranges:
        """The ranges of values whose channels lie along ``axis``."""
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        return cls(
            rows.min(0).astype(np.float64),
            rows.max(0).astype(np.float64),
            np.square(rows).mean(0, dtype=np.float64),
        )

    def scaled(self, scales: Values) -> Ranges:
        """The ranges of the channels multiplied by ``scales``."""
        a, b = self.low * scales, self.high * scales
        return Ranges(np.minimum(a, b), np.maximum(a, b), self.square * scales**2)

    @property
    def width(self) -> float:
        """Width of the range that all channels share, which includes 0."""
        return float(max(self.high.max(), 0) - min(self.low.min(), 0))


def pairs(graph: Graph) -> Iterator[Pair]:
    """The pairs of layers that can be equalised."""
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
            and (signed := _commutes(op)) is not None
        ):
            linear &= signed
            last, op = op, graph.only_consumer(op.name)
        if op is None or not _plain(graph, op) or len(graph.operands(op.name)) != 1:
            continue
        tensor, output = graph.tensor(Ref(last.name)), graph.tensors(first.name)[0]
        axis, output_axis = channel_axis(op, tensor), channel_axis(first, output)
        # The axes differ where only one of the two layers has its channels first.
        same_axis = output_axis == axis or len(output.shape) != len(tensor.shape)
        if same_axis and output.shape[output_axis] == tensor.shape[axis]:
            yield Pair(first.name, op.name, Ref(last.name), axis, linear)


def _plain(graph: Graph, op: Op) -> bool:
    """Whether the op is a linear layer that is rounded to 8 bits and has one call."""
    return rounds(op) and len(graph.calls(op)) == 1


def _commutes(op: Op) -> bool | None:
    """Whether the op commutes with scales of either sign (True) or positive ones only (False).

    None when it commutes with neither.
    """
    if op.info.homogeneous is not None:
        return op.info.homogeneous == "linear"
    if op.kind == "ReLU" and op["max_value"] is None and not op["threshold"]:
        return False
    if op.kind == "Activation" and op["activation"] in ("linear", *_POSITIVE_ACTIVATIONS):
        return bool(op["activation"] == "linear")
    return None


def _along(values: Values, rank: int, axis: int) -> Affine:
    """Scaling by ``values`` along one axis of a tensor of that rank, batch included."""
    shape = [1] * (rank - 1)
    shape[axis - 1] = values.size
    return Affine(values.reshape(shape), np.zeros(shape))


def _best(weights: Values, ranges: Ranges, steps: int, *, signs: bool) -> tuple[Values, float]:
    """The scales with the least noise, and that noise as a share of the noise without scales.

    ``weights``: those of the second layer as (G, S, K, T); ``signs``: scales may be negative.
    """
    of_inputs = np.maximum(np.abs(ranges.low), np.abs(ranges.high))
    of_weights = np.abs(weights).max(axis=(2, 3)).ravel()
    if not of_inputs.max(initial=0) or not of_weights.max(initial=0):
        return np.ones_like(of_inputs), 1.0
    # A channel that is near 0 on the calibration samples may be larger on others, so it is not
    # scaled up to the range of all channels.
    of_inputs, of_weights = (np.maximum(m, _LEAST * m.max()) for m in (of_inputs, of_weights))
    sign = np.where(signs & (-ranges.low > ranges.high), -1.0, 1.0)
    candidates = [sign]
    for share in _SHARES:
        scales = of_weights**share / of_inputs ** (1 - share)
        candidates.append(sign * scales / np.exp(np.log(scales).mean()))
    noises = [_noise(weights, ranges, steps, scales) for scales in candidates]
    best = int(np.argmin(noises))
    before = _noise(weights, ranges, steps, np.ones_like(of_inputs))
    return candidates[best], noises[best] / before if before > 0 else 1.0


def _noise(weights: Values, ranges: Ranges, steps: int, scales: Values) -> float:
    """Variance of the rounding error in the second layer's output, times 12, over all channels."""
    scaled = weights / scales.reshape(*weights.shape[:2], 1, 1)
    inputs = ranges.scaled(scales)
    square = inputs.square.reshape(weights.shape[:2]).sum(1)  # (G,)
    of_weights = (np.abs(scaled).max(axis=(1, 2)) / STEPS) ** 2  # (G, T)
    return float(
        np.square(scaled).sum() * (inputs.width / steps) ** 2
        + weights.shape[2] * (of_weights.sum(1) * square).sum()
    )
