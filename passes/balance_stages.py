"""Scale the channels between two linear layers so that both suit 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.affine import Affine, channel_axis, take_in_after, take_in_before
from lrfc.ir.graph import Graph, Op, Ref
from lrfc.ir.keras import io as keras_io
from lrfc.ir.rounding import STEPS, grouped, rounds, scaled_by_channel
from lrfc.state import Batch, Fact, State, batches

Values = NDArray[np.float64]

#: Kinds that give scaled channels for scaled channels, of either sign, and those that do so for positive scales only.
_LINEAR = frozenset(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "AveragePooling", "GlobalAveragePooling", "UpSampling") for n in (1, 2, 3))
_POSITIVE = frozenset(f"{kind}{n}D" for kind in ("MaxPooling", "GlobalMaxPooling") for n in (1, 2, 3)) | {"LeakyReLU"}
_POSITIVE_ACTIVATIONS = frozenset(("relu", "leaky_relu"))
#: How far the scaling goes from equal ranges of the activations (0) to equal ranges of the weights that read them (1).
_SHARES = np.linspace(0, 1, 9)
#: The least range of a channel that is looked at, as a share of the greatest.
_LEAST = 0.05


@dataclass(frozen=True)
class BalanceStages:
    """Multiply the channels between two linear layers by scales, and divide them out again in the second: the function stays the same.

    An int8 file has one scale for all channels of an activation, and one for all weights that make an output channel. Between two layers with nothing
    nonlinear between them (the stages of a factorization), or only what is positively homogeneous (ReLU), each channel's range can be moved between
    the activation and the weights that read it: cross-layer equalisation (Nagel et al. 2019, arXiv 1906.04721, 4.1), here for weights with a scale per
    output channel, so that what is weighed is the activation against the second layer. The noise that rounding leaves in the output of the second
    layer is, with Δ the step of the activation x, Δ_t those of the weights w and E over calibration inputs,

        Σ_it (w_it / s_i)² Δ² / 12 + Σ_t Δ_t² / 12 · Σ_i s_i² E[x_i²].

    Of the scales s_i = r_i^β / a_i^(1-β), with a_i the range of the activation and r_i that of the weights that read it (SmoothQuant, Xiao et al. 2022,
    arXiv 2211.10438, formula 4), those with the least noise are taken, or none. Where the pair is linear, channels whose range is mostly negative change
    their sign: the common range becomes narrower. ``bits``: of the activations. ``convolutions``: only those have a scale per output channel, so that the
    outputs of other layers stay as they are. To be run behind FoldBatchNorm, on the weights that ship.

    Given and result: the graph keeps its ops and shapes; weights change, the function does not.
    """

    samples: int = 200
    sweeps: int = 2
    bits: int = 8
    convolutions: bool = False

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the balanced graph."""
        graph = state.graph.copy()
        found = tuple(pair for pair in pairs(graph) if not self.convolutions or scaled_by_channel(graph.op(pair.first)))
        if not found:
            return state
        ranges = _ranges(graph, found, tuple(x[: self.samples] for x in state.data.train.inputs))
        changed = balance(graph, found, ranges, self.bits, self.sweeps)
        if changed:
            mean = float(np.exp(np.mean(np.log(list(changed.values())))))
            state.progress.log(f"  {len(changed)} of {len(found)} pairs of layers balanced, rounding noise of these ×{mean:.2f}")
        return state.with_graph(graph)


def balance(graph: Graph, found: Sequence[Pair], ranges: dict[Ref, Ranges], bits: int, sweeps: int = 2) -> dict[str, float]:
    """Balance pairs of layers in place; ``ranges``, of what each second layer reads, follow. The noise that is left, as a share, by the first layers changed."""
    changed: dict[str, float] = {}
    for _ in range(sweeps):
        for pair in found:
            scales, gain = _best(grouped(graph.op(pair.second)), ranges[pair.tensor], 2**bits - 1, signs=pair.linear)
            if gain >= 1 or not pair.scale(graph, scales):
                continue
            ranges[pair.tensor] = ranges[pair.tensor].scaled(scales)
            changed[pair.first] = changed.get(pair.first, 1.0) * gain
    return changed


@dataclass(frozen=True)
class Pair:
    """Two layers, and what the second reads. ``linear``: there is nothing nonlinear between them."""

    first: str
    second: str
    tensor: Ref
    axis: int
    linear: bool

    def scale(self, graph: Graph, scales: Values) -> bool:
        """Multiply the channels between the two by ``scales``, which the second takes out again; whether that was possible."""
        first, second = graph.op(self.first), graph.op(self.second)
        given, read = graph.tensors(self.first)[0], graph.tensor(self.tensor)
        multiplied = take_in_after(first.with_attrs(activation=None), given, _along(scales, len(given.shape), channel_axis(first, given)))
        divided = take_in_before(second, read, _along(1 / scales, len(read.shape), self.axis))
        if multiplied is None or divided is None:
            return False
        graph.replace(replace(multiplied, attrs={**multiplied.attrs, "activation": first["activation"]}))
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
        return cls(rows.min(0).astype(np.float64), rows.max(0).astype(np.float64), np.square(rows).mean(0, dtype=np.float64))

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
        if not _plain(graph, first) or first["activation"] not in (None, "linear", *_POSITIVE_ACTIVATIONS):
            continue
        linear = first["activation"] in (None, "linear")
        last, op = first, graph.only_consumer(first.name)
        while op is not None and len(graph.operands(op.name)) == 1 and (how := _passes(op)) is not None:
            linear &= how
            last, op = op, graph.only_consumer(op.name)
        if op is None or not _plain(graph, op) or len(graph.operands(op.name)) != 1:
            continue
        tensor = graph.tensor(Ref(last.name))
        axis = channel_axis(op, tensor)
        given = graph.tensors(first.name)[0]
        same = channel_axis(first, given) == axis or len(given.shape) != len(tensor.shape)  # not so where one has its channels first
        if same and given.shape[channel_axis(first, given)] == tensor.shape[axis]:
            yield Pair(first.name, op.name, Ref(last.name), axis, linear)


def _plain(graph: Graph, op: Op) -> bool:
    return rounds(op) and len(graph.calls(op)) == 1


def _passes(op: Op) -> bool | None:
    """Whether the op keeps scales of either sign (True), or positive ones (False); None if it does not."""
    if op.kind in _LINEAR:
        return True
    if op.kind in _POSITIVE:
        return False
    if op.kind == "ReLU" and op["max_value"] is None and not op["threshold"]:
        return False
    if op.kind == "Activation" and op["activation"] in ("linear", *_POSITIVE_ACTIVATIONS):
        return bool(op["activation"] == "linear")
    return None


def _along(values: Values, rank: int, axis: int) -> Affine:
    shape = [1] * (rank - 1)
    shape[axis - 1] = values.size
    return Affine(values.reshape(shape), np.zeros(shape))


def _ranges(graph: Graph, wanted: Sequence[Pair], inputs: Batch) -> dict[Ref, Ranges]:
    """What the calibration inputs show of the activation of each pair."""
    probe = graph.copy()
    probe.outputs, probe.structure = tuple(dict.fromkeys(pair.tensor for pair in wanted)), (graph.structure[0], None)
    axes = {pair.tensor: pair.axis for pair in wanted}
    run = keras_io.compiled(probe)
    found: dict[Ref, Ranges] = {}
    count = len(inputs[0])
    for part in batches(inputs, 64):
        for ref, values in zip(probe.outputs, run(part), strict=True):
            new, old = Ranges.of(values, axes[ref]), found.get(ref)
            new = replace(new, square=new.square * len(part[0]) / count)
            found[ref] = new if old is None else Ranges(np.minimum(old.low, new.low), np.maximum(old.high, new.high), old.square + new.square)
    return found


def _best(weights: Values, ranges: Ranges, steps: int, *, signs: bool) -> tuple[Values, float]:
    """The scales with the least noise, and the noise with them as a share of that without. ``weights``: (G, S, K, T) of the second layer."""
    reach = np.maximum(np.abs(ranges.low), np.abs(ranges.high))
    read = np.abs(weights).max(axis=(2, 3)).ravel()
    if not reach.max(initial=0) or not read.max(initial=0):
        return np.ones_like(reach), 1.0
    # A channel that calibration hardly sees may be seen by others: it is not blown up to the range of all.
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
    return float(np.square(scaled).sum() * (seen.width / steps) ** 2 + weights.shape[2] * (of_weights.sum(1) * square).sum())
