"""The workspace of XNNPACK: computed, and as it is allocated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks.workspace import TINY
from benchmarks.workspace import workspace_bytes as allocated
from lrfc.ir.keras import io as keras_io
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.target import TFLite
from lrfc.targets.tflite.xnnpack import workspace_bytes
from tests.tflite_files import File

compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="needs a C compiler: apt-get install gcc libc6-dev"
)


def computed(path: Path) -> int | None:
    return workspace_bytes(flatfile.unpack(path.read_bytes()))


def any_file(seed: int) -> bytes:
    """A random network of one output, which every operator in it leads to."""
    random, file = np.random.default_rng(seed), File()
    height, channels = (int(random.choice(sizes)) for sizes in ([15, 16, 21], [3, 5, 8]))
    made = [file.conv(file.input(height, height, channels), 16, 3)]
    for _ in range(random.integers(3, 11)):
        source = int(random.choice(made[-3:]))
        height, _, channels = file._shape(source)
        alike = [other for other in made if file._shape(other) == file._shape(source)]
        match random.choice(["conv", "depthwise", "pointwise", "pool", "pad", "add", "add"]):
            case "conv":
                result = file.conv(
                    source, int(random.choice([6, 16])), 3, int(random.integers(1, 3))
                )
            case "depthwise":
                result = file.conv(source, channels, 3, depthwise=True)
            case "pointwise":
                result = file.conv(source, int(random.choice([5, 24])), 1)
            case "pool":
                result = file.pool(source, 2, 1, kind="MAX")
            case "pad":
                kernel, same = int(random.choice([1, 3])), bool(random.integers(2))
                result = file.conv(file.pad(source, 1, 1, 1), 8, kernel, same=same)
            case _:
                result = file.add(source, int(random.choice(alike)))
        made.append(result)
    needed, operators = {made[-1]}, []
    for operator in reversed(file.operators):
        if operator.outputs[0] in needed:
            needed.update(operator.inputs)
            operators.insert(0, operator)
    file.operators[:] = operators
    return file.written(file.conv(made[-1], 4, 1))


@compiler
def test_random_networks(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.tflite" for seed in range(60)]
    for seed, path in enumerate(paths):
        path.write_bytes(any_file(seed))
    sizes = [computed(path) for path in paths]
    assert allocated(*paths) == sizes
    assert min(size or 0 for size in sizes) > TINY


def activated() -> keras.Model:
    """Every activation that writes over its input, a squeeze-and-excitation block, matrices."""
    result = source = keras.Input((16, 16, 3))
    for activation in ("swish", "hard_swish", "relu6", "elu", "leaky_relu", "tanh", "sigmoid"):
        result = layers.Conv2D(8, 3, padding="same", activation=activation)(result)
    weights = layers.GlobalAveragePooling2D(keepdims=True)(result)
    weights = layers.Conv2D(8, 1, activation="hard_sigmoid")(weights)
    result = layers.Flatten()(layers.Multiply()([result, weights]))
    return keras.Model(source, layers.Dense(5, activation="softmax")(result))


def scaled() -> keras.Model:
    """Maps of several sizes, joined."""
    source = keras.Input((17, 17, 3))
    first = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(source)
    second = layers.AveragePooling2D(2)(layers.Conv2D(8, 5, strides=1, padding="same")(first))
    second = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(second)
    third = layers.ZeroPadding2D(((0, 1), (0, 1)))(
        layers.UpSampling2D(interpolation="bilinear")(second)
    )
    result = layers.Conv2D(8, 3, strides=2)(third)
    return keras.Model(source, layers.Concatenate()([result, second]))


def matrices() -> keras.Model:
    """Fully connected layers alone, of which the first reads the input."""
    source = keras.Input((640,))
    result = layers.Dense(640)(layers.Dense(128, activation="relu")(source))
    return keras.Model(source, result)


@compiler
def test_files_of_the_converter(tmp_path: Path) -> None:
    made = [(activated, "fp32"), (activated, "fp16"), (scaled, "fp32"), (matrices, "fp32")]
    paths = []
    for network, precision in made:
        path = tmp_path / f"{network.__name__}-{precision}.tflite"
        TFLite(precision).emit(keras_io.from_keras(network()), path)
        paths.append(path)
    assert allocated(*paths) == [computed(path) for path in paths]


def test_what_xnnpack_does_not_run_is_not_computed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    # Hard-swish and ELU run in float only.
    for network, precision in ((activated, "int8"), (matrices, "dynamic"), (matrices, "int16x8")):
        model = network()
        samples: Any = (random.random((8, *model.input_shape[1:]), np.float32),)
        path = tmp_path / f"{network.__name__}-{precision}.tflite"
        TFLite(precision).emit(keras_io.from_keras(model), path, samples)
        assert computed(path) is None


def test_a_network_of_one_operator_needs_none() -> None:
    file = File()
    content = file.written(file.conv(file.input(8, 8, 3), 4, 3))
    assert workspace_bytes(flatfile.unpack(content)) == 0
