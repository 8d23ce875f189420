"""Calibration inputs made up from the model alone, for builds without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError, UsageError
from lrfc.ir import ops
from lrfc.ir.batch import Batch
from lrfc.ir.channels_last import channels_last
from lrfc.ir.dilated import without_dilated_transposed
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref

#: Means and standard deviations that trained models commonly read: standardised, 0–1, −1–1, 0–255.
_SCALES = ((0.0, 1.0), (0.5, 0.25), (0.0, 0.5), (127.5, 64.0))
_CHUNK = 32  # samples whose statistics are matched together
_REFINEMENTS = 60  # steps of the scale
_STEPS = (3, 40)  # of the matching, fewest and most
_WORK = 8e11  # MACs that the matching may take before its steps are cut, about twenty seconds of two cores


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of one input: float32 arrays that broadcast with a batch of it."""

    mean: NDArray[Any]
    std: NDArray[Any]

    @staticmethod
    def of(mean: Any, std: Any) -> Scale:
        """The scale in float32."""
        return Scale(np.asarray(mean, np.float32), np.asarray(std, np.float32))


def samples_for(graph: Graph) -> int:
    """How many samples a calibration set for that model has: 256 small ones, at least 16 of any size (64 MiB).

    256 are enough for closed-form refits too. ResNet-20 with channel SVD at half of the MACs (1,000
    test images): 40 % as factorized; refitted on 128 made-up samples 65 %, on 256 71 %, on 256 real
    ones 77 %. Plain noise ruins it (64 samples: 21 %), and more samples are worth more than more
    steps.
    """
    values = sum(_size(graph, name) for name in graph.inputs)
    return max(16, min(256, 2**24 // values))


def synthesise(graph: Graph, samples: int, seed: int) -> Batch:
    """Made-up inputs (samples, ...) for every model input, in its dtype.

    The same graph, number and seed give the same samples.

    1. Noise: images and signals are Gaussian with the 1/f amplitudes of natural ones; flat inputs are drawn in the directions that the Dense layers
       behind them read (half of the energy; trained weights lie where data lay); integer inputs are uniform over the vocabulary of the Embedding behind.
    2. Scale: the statistics of a Normalization layer or the range of a Rescaling layer behind the input; otherwise the one of a few usual scales
       (standardised, 0–1, −1–1, 0–255) under which the first BatchNorm meets inputs most like those of its training, then refined per channel by Adam
       steps on the same measure. Without BatchNorm: standardised.
    3. Matching: a few Adam steps on the values themselves bring the batch statistics before every BatchNorm towards its moving mean and variance
       (DeepInversion, Yin et al. 2020, arXiv 1912.08795; ZeroQ, Cai et al. 2020, arXiv 2001.00281), 32 samples at a time. Large models get fewer steps.

    UsageError when an input has no fixed size.
    """
    rng = np.random.default_rng(seed)
    noise = [_noise(graph, name, samples, rng) for name in graph.inputs]
    known = [scale_of(graph, name) for name in graph.inputs]
    norms = tuple(op for op in graph if op.kind == "BatchNormalization")
    floats = [i for i, name in enumerate(graph.inputs) if _is_float(graph, name)]
    if not norms or not floats:
        scales = [scale or Scale.of(0, 1) for scale in known]
        return tuple(
            _scaled(x, scale) if i in floats else x
            for i, (x, scale) in enumerate(zip(noise, scales, strict=True))
        )
    head = [x[:_CHUNK] for x in noise]
    if any(known[i] is None for i in floats):
        first = _Matching(graph, norms[:1] if len(graph.inputs) == 1 else norms, floats, head)
        options = [[scale or Scale.of(mean, std) for scale in known] for mean, std in _SCALES]
        scales = first.refined(min(options, key=first.distance), known)
    else:
        scales = [scale or Scale.of(0, 1) for scale in known]
    matching = _Matching(graph, norms, floats, head)
    steps = int(np.clip(_WORK // (3 * samples * max(1, _macs(graph))), *_STEPS))
    parts = [
        matching.matched([x[start : start + _CHUNK] for x in noise], scales, steps)
        for start in range(0, samples, _CHUNK)
    ]
    return tuple(np.concatenate(columns)[:samples] for columns in zip(*parts, strict=True))


# -- noise -----------------------------------------------------------------------------------------


def _noise(graph: Graph, name: str, samples: int, rng: np.random.Generator) -> NDArray[Any]:
    """Standardised noise for a float input; final values for an integer one."""
    tensor = graph.tensors(name)[0]
    shape = tuple(int(n) for n in tensor.shape[1:] if n is not None)
    _size(graph, name)
    if not _is_float(graph, name):
        vocabularies = [
            int(op.attrs["input_dim"]) for op in readers(graph, name) if op.kind == "Embedding"
        ]
        numbers: NDArray[Any] = rng.integers(
            0, min(vocabularies, default=2), (samples, *shape)
        ).astype(tensor.dtype)
        return numbers
    white = rng.standard_normal((samples, *shape)).astype(np.float32)
    if len(shape) > 1:
        first = any(op.attrs.get("data_format") == "channels_first" for op in readers(graph, name))
        return _standardised(
            _coloured(
                white, tuple(range(2, len(shape) + 1)) if first else tuple(range(1, len(shape)))
            )
        )
    kernels = [
        op.weights["kernel"]
        for op in readers(graph, name)
        if op.info.family == "dense" and op.weights["kernel"].shape[0] == white.shape[-1]
    ]
    if not kernels:
        return white
    kernel = np.concatenate(kernels, axis=1)
    directed = rng.standard_normal((samples, kernel.shape[1])).astype(np.float32) @ kernel.T
    noise: NDArray[Any] = (white + directed / max(float(directed.std()), 1e-12)) / np.float32(
        np.sqrt(2)
    )
    return noise


def _coloured(white: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[Any]:
    """Noise whose amplitude falls with the spatial frequency as 1/f (Field 1987, the statistics of natural images)."""
    spectrum = np.fft.rfftn(white, axes=axes)
    frequencies = [np.fft.fftfreq(white.shape[axis]) for axis in axes[:-1]] + [
        np.fft.rfftfreq(white.shape[axes[-1]])
    ]
    squares = sum(
        np.square(f).reshape([-1 if a == axis else 1 for a in range(white.ndim)])
        for axis, f in zip(axes, frequencies, strict=True)
    )
    floor = 1 / max(white.shape[axis] for axis in axes)
    return np.fft.irfftn(
        spectrum / np.sqrt(np.maximum(squares, floor**2)),
        s=[white.shape[axis] for axis in axes],
        axes=axes,
    ).astype(np.float32)


def _standardised(x: NDArray[Any]) -> NDArray[Any]:
    x -= x.mean()
    x /= max(float(x.std()), 1e-12)
    return x


# -- scale -----------------------------------------------------------------------------------------


def scale_of(graph: Graph, name: str) -> Scale | None:
    """What a Normalization or Rescaling layer behind the input says of its scale; None without one."""
    for op in readers(graph, name):
        if (
            op.kind == "Normalization"
            and "mean" in op.weights
            and not op.attrs.get("invert", False)
        ):
            return Scale.of(op.weights["mean"], np.sqrt(op.weights["variance"]))
        if (
            op.kind == "Normalization"
            and op.attrs.get("mean") is not None
            and not op.attrs.get("invert", False)
        ):
            return Scale.of(op.attrs["mean"], np.sqrt(op.attrs["variance"]))
        if op.kind == "Rescaling" and np.all(op.attrs["scale"]):
            scale, offset = (
                np.asarray(op.attrs["scale"], np.float32),
                np.asarray(op.attrs.get("offset", 0.0), np.float32),
            )
            mean, std = (0.0, 0.5) if np.any(offset) else (0.5, 0.25)
            return Scale.of((mean - offset) / scale, std / np.abs(scale))
    return None


def _scaled(x: Any, scale: Scale) -> Any:
    return x * scale.std + scale.mean


# -- matching --------------------------------------------------------------------------------------


class _Matching:
    """Brings the statistics before some BatchNorms, for a chunk of samples, to those of their training.

    What is learnt, in units of each input's scale: the values ``z``, and a ``shift`` and a
    logarithmic ``gain`` per channel (last axis).
    """

    def __init__(
        self, graph: Graph, norms: tuple[Op, ...], floats: list[int], head: list[NDArray[Any]]
    ) -> None:
        import tensorflow as tf

        from lrfc.ir.keras import io as keras_io

        # As the canonical graph will be: the model itself does not run with channels first on every
        # processor.
        probe = without_dilated_transposed(channels_last(graph)).copy()
        norms = tuple(probe.op(op.name) for op in norms)
        for name in probe.inputs:
            probe.replace(
                probe.op(name).with_attrs(batch_shape=(None, *probe.tensors(name)[0].shape[1:]))
            )
        probe.outputs, probe.structure = (
            tuple(probe.operands(op.name)[0] for op in norms),
            (None, None),
        )
        self.norms, self.floats = norms, floats
        self.model = keras_io.to_keras(probe)
        self.z = [tf.Variable(x) for x in head]
        channels = [(1,) * (x.ndim - 1) + x.shape[-1:] for x in head]
        self.shift = [tf.Variable(tf.zeros(shape)) for shape in channels]
        self.gain = [tf.Variable(tf.zeros(shape)) for shape in channels]
        self.mean = [tf.Variable(tf.zeros(shape)) for shape in channels]
        self.std = [tf.Variable(tf.ones(shape)) for shape in channels]
        self.evaluate = tf.function(self._evaluate, autograph=False)

    def _inputs(self) -> list[Any]:
        import tensorflow as tf

        return [
            (z * tf.exp(gain) + shift) * std + mean if i in self.floats else z
            for i, (z, gain, shift, std, mean) in enumerate(
                zip(self.z, self.gain, self.shift, self.std, self.mean, strict=True)
            )
        ]

    def _evaluate(self) -> tuple[Any, Any, Any, Any]:
        """The distance and its gradients by values, shifts and gains.

        A BatchNorm's distance is log(1 + d²) + mean(log² r), with d² the mean squared error of the
        means in units of the moving variance, and r the ratio of the standard deviations: alike for
        too much and too little, and no BatchNorm drowns the others.
        """
        import tensorflow as tf

        variables = (
            [self.z[i] for i in self.floats],
            [self.shift[i] for i in self.floats],
            [self.gain[i] for i in self.floats],
        )
        with tf.GradientTape() as tape:
            inputs = self._inputs()
            outputs = self.model(inputs if len(inputs) > 1 else inputs[0], training=False)
            total = tf.constant(0.0)
            for op, x in zip(
                self.norms, outputs if isinstance(outputs, list) else [outputs], strict=True
            ):
                axis = int(op["axis"]) % len(x.shape)
                mean, variance = tf.nn.moments(x, [a for a in range(len(x.shape)) if a != axis])
                wanted = op.weights["moving_variance"] + op["epsilon"]
                ratio = (variance + op["epsilon"]) / wanted
                total += (
                    tf.math.log1p(tf.reduce_mean((mean - op.weights["moving_mean"]) ** 2 / wanted))
                    + tf.reduce_mean(tf.math.log(ratio) ** 2) / 4
                )
        gradients = tape.gradient(
            total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return total / len(self.norms), *gradients

    def _set(self, scales: list[Scale]) -> None:
        import tensorflow as tf

        for variables, values in (
            (self.mean, [s.mean for s in scales]),
            (self.std, [s.std for s in scales]),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(tf.broadcast_to(value, variable.shape))
        for variable in (*self.shift, *self.gain):
            variable.assign(tf.zeros_like(variable))

    def distance(self, scales: list[Scale]) -> float:
        """The distance at those scales; infinite when values overflow."""
        self._set(scales)
        value = float(self.evaluate()[0])
        return value if np.isfinite(value) else np.inf

    def refined(self, scales: list[Scale], known: list[Scale | None]) -> list[Scale]:
        """Scales for the inputs whose scale is not known: the given ones, moved to the least distance."""
        self._set(scales)
        free = [(k, i) for k, i in enumerate(self.floats) if known[i] is None]
        variables = [v for _, i in free for v in (self.shift[i], self.gain[i])]
        best, least, step = list(scales), np.inf, _adam(variables, 0.1)
        for _ in range(_REFINEMENTS):
            loss, _, shifts, gains = self.evaluate()
            if float(loss) < least:
                least = float(loss)
                for _, i in free:
                    std = scales[i].std * np.exp(self.gain[i].numpy())
                    best[i] = Scale(scales[i].mean + scales[i].std * self.shift[i].numpy(), std)
            step([g for k, _ in free for g in (shifts[k], gains[k])])
        return best

    def matched(
        self, noise: list[NDArray[Any]], scales: list[Scale], steps: int
    ) -> list[NDArray[Any]]:
        """One chunk, scaled and matched (a short one is filled up by repetition); of all steps the best one is kept."""
        self._set(scales)
        for z, x in zip(self.z, noise, strict=True):
            z.assign(np.resize(x, z.shape))
        best: list[NDArray[Any]] = []
        least, step = np.inf, _adam([self.z[i] for i in self.floats], 0.1)
        for _ in range(steps + 1):
            loss, values, _, _ = self.evaluate()
            if float(loss) < least or not best:
                best, least = [x.numpy() for x in self._inputs()], float(loss)
            step(values)
        return best


def _adam(variables: list[Any], rate: float) -> Callable[[Any], None]:
    import keras

    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(variables)
    return lambda gradients: optimizer.apply(gradients, variables)


# -- what the graph says of its inputs -------------------------------------------------------------


def _is_float(graph: Graph, name: str) -> bool:
    return "float" in graph.tensors(name)[0].dtype


def _size(graph: Graph, name: str) -> int:
    tensor = graph.tensors(name)[0]
    if None in tensor.shape[1:]:
        raise UsageError(
            f"input '{name}' of shape {tensor} has no fixed size, so no inputs can be made up for"
            " it: give --data"
        )
    return max(1, prod(n for n in tensor.shape[1:] if n is not None))


def readers(graph: Graph, name: str) -> list[Op]:
    """The ops that read the input, also through ops that only rearrange it."""
    found = []
    for reader, _ in graph.consumers(Ref(name)):
        op = graph.op(reader)
        through = op.info.family == "padding" or op.kind in (
            "Flatten",
            "Reshape",
            "Identity",
            "Dropout",
        )
        found += [op, *(readers(graph, reader) if through else [])]
    return found


def _macs(graph: Graph) -> int:
    try:
        return sum(
            ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph
        )
    except ModelError:  # a size inside is not fixed: count the weights once, a lower bound that costs at most the full number of steps
        return graph.params
