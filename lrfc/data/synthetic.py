"""Synthetic calibration inputs, generated from the model alone, for builds without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data.descent import Adam, Descent
from lrfc.errors import ModelError, UsageError
from lrfc.ir import ops
from lrfc.ir.batch import Batch
from lrfc.ir.channels_last import channels_last
from lrfc.ir.dilated import without_dilated_transposed
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref

#: Common means and deviations of inputs in training: standardised, 0–1, −1–1, 0–255.
_SCALES = ((0.0, 1.0), (0.5, 0.25), (0.0, 0.5), (127.5, 64.0))
_CHUNK = 32  # samples whose statistics are matched together
_REFINEMENTS = 60  # most steps that refine the scale
_STEPS = (2, 30)  # fewest and most steps of the matching
_EQUAL = 3.8e-4  # distance of statistics that count as equal
#: MACs of the matching, beyond which it takes fewer steps: about fifteen seconds on two cores.
_WORK = 6e11
_MATCHING = Adam(0.3, 0.7, 0.9, annealed=True)  # in 30 steps what 0.1, 0.9, 0.999 reach in 40
_REFINING = Adam(0.1, 0.9, 0.999, annealed=False)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of an input: float32 arrays that broadcast with a batch."""

    mean: NDArray[Any]
    std: NDArray[Any]

    @staticmethod
    def of(mean: Any, std: Any) -> Scale:
        """Return a scale with its values in float32."""
        return Scale(np.asarray(mean, np.float32), np.asarray(std, np.float32))


def samples_for(graph: Graph) -> int:
    """Return the size of a synthetic calibration set: 256 samples, or fewer of 64 MiB, at least 16.

    256 also suffice for reconstruction in closed form. ResNet-20 with channel SVD at half of the
    MACs (1,000 test images): 40 % as factorized; reconstructed on 128 synthetic samples 65 %, on
    256 71 %, on 256 real ones 77 %. Plain noise lowers the accuracy (64 samples: 21 %), and more
    samples help more than more steps.
    """
    values = sum(_size(graph, name) for name in graph.inputs)
    return max(16, min(256, 2**24 // values))


def synthesise(
    graph: Graph,
    samples: int,
    seed: int,
    stage: Callable[[str, int], Callable[[int], None]] = lambda title, total: lambda steps: None,
) -> Batch:
    """Return synthetic samples, (samples, ...) for every model input, in its dtype.

    The same graph, number and seed give the same samples. ``stage``: as in ``lrfc.state.Progress``.

    1. Noise: images and signals are Gaussian, with amplitudes of 1/f as in natural ones. Flat
       inputs have half of their energy in the directions that the Dense layers behind them read,
       as trained weights lie in the directions of their data. Integer inputs are uniform over the
       vocabulary of the Embedding behind them.
    2. Scale: the statistics of a Normalization layer or the range of a Rescaling layer behind the
       input. Otherwise the common scale (standardised, 0–1, −1–1, 0–255) under which the
       inputs of the first BatchNorm are nearest to its moving statistics; Adam steps on the same
       distance refine it for each channel. Without BatchNorm: standardised.
    3. Matching: a few Adam steps on the values themselves bring the batch statistics before every
       BatchNorm towards its moving mean and variance (DeepInversion, Yin et al. 2020, arXiv
       1912.08795; ZeroQ, Cai et al. 2020, arXiv 2001.00281), 32 samples at a time. Large models
       get fewer steps, and the steps end where the statistics are equal or come no nearer.

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
    starts = range(0, samples, _CHUNK)
    report, parts = stage("making up inputs", len(starts)), []
    for start in starts:
        chunk = [x[start : start + _CHUNK] for x in noise]
        parts.append(matching.matched(chunk, scales, steps))
        report(1)
    return tuple(np.concatenate(columns)[:samples] for columns in zip(*parts, strict=True))


# -- noise -----------------------------------------------------------------------------------------


def _noise(graph: Graph, name: str, samples: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return standardised noise for a float input, or the final values of an integer input."""
    tensor = graph.tensors(name)[0]
    shape = tuple(int(n) for n in tensor.shape[1:] if n is not None)
    _size(graph, name)
    if not _is_float(graph, name):
        vocabularies = [
            int(op.attrs["input_dim"]) for op in readers(graph, name) if op.kind == "Embedding"
        ]
        size = min(vocabularies, default=2)
        tokens: NDArray[Any] = rng.integers(0, size, (samples, *shape)).astype(tensor.dtype)
        return tokens
    white = rng.standard_normal((samples, *shape)).astype(np.float32)
    if len(shape) > 1:
        first = any(op.attrs.get("data_format") == "channels_first" for op in readers(graph, name))
        axes = range(2, len(shape) + 1) if first else range(1, len(shape))
        return _standardised(_coloured(white, tuple(axes)))
    kernels = [
        op.weights["kernel"]
        for op in readers(graph, name)
        if op.info.family == "dense" and op.weights["kernel"].shape[0] == white.shape[-1]
    ]
    if not kernels:
        return white
    kernel = np.concatenate(kernels, axis=1)
    directed = rng.standard_normal((samples, kernel.shape[1])).astype(np.float32) @ kernel.T
    directed = directed / max(float(directed.std()), 1e-12)
    noise: NDArray[Any] = (white + directed) / np.float32(np.sqrt(2))
    return noise


def _coloured(white: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[Any]:
    """Return noise whose amplitude falls as 1/f with the spatial frequency f.

    The amplitudes are those of natural images (Field 1987).
    """
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
    """Return the scale that a Normalization or Rescaling layer behind an input implies, or None."""
    for op in readers(graph, name):
        if op.kind == "Normalization" and not op.attrs.get("invert", False):
            if "mean" in op.weights:
                return Scale.of(op.weights["mean"], np.sqrt(op.weights["variance"]))
            if op.attrs.get("mean") is not None:
                return Scale.of(op.attrs["mean"], np.sqrt(op.attrs["variance"]))
        if op.kind == "Rescaling" and np.all(op.attrs["scale"]):
            scale = np.asarray(op.attrs["scale"], np.float32)
            offset = np.asarray(op.attrs.get("offset", 0.0), np.float32)
            mean, std = (0.0, 0.5) if np.any(offset) else (0.5, 0.25)
            return Scale.of((mean - offset) / scale, std / np.abs(scale))
    return None


def _scaled(x: Any, scale: Scale) -> Any:
    return x * scale.std + scale.mean


# -- matching --------------------------------------------------------------------------------------


class _Matching:
    """Match the statistics before some BatchNorms, for a chunk of samples, to those of training.

    The variables, in units of the scale of each input: the values ``z``, and a ``shift`` and a
    logarithmic ``gain`` for each channel (last axis).
    """

    def __init__(
        self, graph: Graph, norms: tuple[Op, ...], floats: list[int], head: list[NDArray[Any]]
    ) -> None:
        import tensorflow as tf

        from lrfc.ir.keras import io as keras_io

        # As in the canonical graph: not every processor runs a model with channels first.
        probe = without_dilated_transposed(channels_last(graph)).copy()
        norms = tuple(probe.op(op.name) for op in norms)
        for name in probe.inputs:
            probe.replace(
                probe.op(name).with_attrs(batch_shape=(None, *probe.tensors(name)[0].shape[1:]))
            )
        probe.outputs = tuple(probe.operands(op.name)[0] for op in norms)
        probe.structure = (None, None)
        self.norms, self.floats = norms, floats
        self.model = keras_io.to_keras(probe)
        self.z = [tf.Variable(x) for x in head]
        channels = [(1,) * (x.ndim - 1) + x.shape[-1:] for x in head]
        self.shift = [tf.Variable(tf.zeros(shape)) for shape in channels]
        self.gain = [tf.Variable(tf.zeros(shape)) for shape in channels]
        self.mean = [tf.Variable(tf.zeros(shape)) for shape in channels]
        self.std = [tf.Variable(tf.ones(shape)) for shape in channels]
        self.evaluate = tf.function(lambda: self._distance(self._inputs()), autograph=False)
        self._matching = Descent(
            self._inputs, self._distance, [self.z[i] for i in floats], _MATCHING
        )

    def _inputs(self) -> list[Any]:
        import tensorflow as tf

        return [
            (z * tf.exp(gain) + shift) * std + mean if i in self.floats else tf.identity(z)
            for i, (z, gain, shift, std, mean) in enumerate(
                zip(self.z, self.gain, self.shift, self.std, self.mean, strict=True)
            )
        ]

    def _distance(self, inputs: list[Any]) -> Any:
        """The mean distance of the statistics before the BatchNorms from those of training.

        The distance of a BatchNorm is log(1 + d²) + mean(log² r). Here d² is the mean squared
        error of the means in units of the moving variance, and r the ratio of the standard
        deviations. A factor and its inverse count alike, and no BatchNorm dominates.
        """
        import tensorflow as tf

        outputs = self.model(inputs if len(inputs) > 1 else inputs[0], training=False)
        total = tf.constant(0.0)
        for op, x in zip(
            self.norms, outputs if isinstance(outputs, list) else [outputs], strict=True
        ):
            axis = int(op["axis"]) % len(x.shape)
            mean, variance = tf.nn.moments(x, [a for a in range(len(x.shape)) if a != axis])
            moving_variance = op.weights["moving_variance"] + op["epsilon"]
            ratio = (variance + op["epsilon"]) / moving_variance
            errors = (mean - op.weights["moving_mean"]) ** 2 / moving_variance
            total += (
                tf.math.log1p(tf.reduce_mean(errors)) + tf.reduce_mean(tf.math.log(ratio) ** 2) / 4
            )
        return total / len(self.norms)

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
        """Return the distance at these scales; infinity when values overflow."""
        self._set(scales)
        value = float(self.evaluate())
        return value if np.isfinite(value) else np.inf

    def refined(self, scales: list[Scale], known: list[Scale | None]) -> list[Scale]:
        """Return the scales of least distance, by Adam steps; those in ``known`` do not change."""
        self._set(scales)
        free = [i for i in self.floats if known[i] is None]
        changes = [v for i in free for v in (self.shift[i], self.gain[i])]
        descent = Descent(
            lambda: [v.read_value() for v in changes],
            lambda _: self._distance(self._inputs()),
            changes,
            _REFINING,
        )
        found = descent.run(_REFINEMENTS, _EQUAL)
        best = list(scales)
        for i, shift, gain in zip(free, found[::2], found[1::2], strict=True):
            std = scales[i].std
            best[i] = Scale(scales[i].mean + std * shift, std * np.exp(gain))
        return best

    def matched(
        self, noise: list[NDArray[Any]], scales: list[Scale], steps: int
    ) -> list[NDArray[Any]]:
        """Return a chunk, scaled and matched: the values of the step with the least distance.

        A chunk that is too short is repeated.
        """
        self._set(scales)
        for z, x in zip(self.z, noise, strict=True):
            z.assign(np.resize(x, z.shape))
        return self._matching.run(steps, _EQUAL)


# -- facts about inputs ----------------------------------------------------------------------------


#: Kinds of ops that pass their input's values on.
_REARRANGING = ("Flatten", "Reshape", "Identity", "Dropout")


def _is_float(graph: Graph, name: str) -> bool:
    return "float" in graph.tensors(name)[0].dtype


def _size(graph: Graph, name: str) -> int:
    """Return the number of values of a sample; UsageError when its size is not fixed."""
    tensor = graph.tensors(name)[0]
    if None in tensor.shape[1:]:
        raise UsageError(
            f"input '{name}' of shape {tensor} has no fixed size, so no synthetic inputs can be"
            " generated for it: give --data"
        )
    return max(1, prod(n for n in tensor.shape[1:] if n is not None))


def readers(graph: Graph, name: str) -> list[Op]:
    """Return the ops that read an input, also behind ops that only rearrange it."""
    result = []
    for reader, _ in graph.consumers(Ref(name)):
        op = graph.op(reader)
        rearranges = op.info.family == "padding" or op.kind in _REARRANGING
        result += [op, *(readers(graph, reader) if rearranges else [])]
    return result


def _macs(graph: Graph) -> int:
    try:
        return sum(
            ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph
        )
    except ModelError:  # a size is not fixed: count each weight once, which is a lower bound
        return graph.params
