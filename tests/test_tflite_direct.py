"""Float files written without the converter: its operators, and its outputs bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.costs import latency
from lrfc.costs.measurements import Store
from lrfc.engine.benchmark import Bench
from lrfc.engine.growth import Ram
from lrfc.factorization import METHODS
from lrfc.ir.batch import Batch
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.passes.canonicalise import split_activations
from lrfc.protocols import Artifact
from lrfc.targets.devices import device
from lrfc.targets.tflite.target import TFLite
from tests import helpers


def model(shape: tuple[int, ...], call: Callable[[Any], Any]) -> Graph:
    """The graph of a model of one input."""
    import keras

    inputs = keras.Input(shape, name="x")
    built = keras.Model(inputs, call(inputs), name="net")
    return fold_batchnorm(helpers.graph_of(helpers.random_weights(built)))


def same(graph: Graph, folder: Path) -> None:
    """The file written here has the operators of the converter's, and its outputs bit by bit."""
    target = TFLite()
    converted = target.emit(graph, folder / "converted.tflite")
    written = target.direct(graph, folder / "written.tflite")
    assert written is not None
    assert target.same_operators(converted, written)
    inputs = helpers.random_inputs(graph, 3)
    for one, two in zip(*(target.load(f)(inputs) for f in (converted, written)), strict=True):
        np.testing.assert_array_equal(one, two)


def _windows(x: Any) -> Any:
    from keras import layers

    x = layers.ZeroPadding2D(((1, 0), (0, 2)), name="pad")(x)
    x = layers.Conv2D(6, (3, 2), strides=2, name="strided")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.DepthwiseConv2D((1, 3), padding="same", depth_multiplier=2, name="wide")(x)
    x = layers.ReLU(6, name="relu6")(x)
    x = layers.Conv2D(8, 3, padding="same", groups=4, use_bias=False, name="grouped")(x)
    x = layers.Conv2D(8, 3, padding="same", dilation_rate=2, name="dilated")(x)
    x = layers.MaxPooling2D(2, padding="same", name="max")(x)
    x = layers.AveragePooling2D(2, strides=1, name="average")(x)
    return layers.GlobalAveragePooling2D(name="pool")(x)


def _joins(x: Any) -> Any:
    import keras
    from keras import layers

    one, two = layers.Conv2D(4, 1, name="one")(x), layers.Conv2D(4, 1, name="two")(x)
    y = layers.Activation("relu", name="added")(layers.Add(name="add")([one, two]))
    y = keras.ops.pad(y, [(0, 0), (0, 0), (0, 0), (1, 2)])
    y = layers.Concatenate(name="joined")([y, layers.Activation("tanh", name="tanh")(two)])
    y = layers.Dropout(0.5, name="drop")(layers.Flatten(name="flat")(y))
    y = layers.Dense(5, activation="sigmoid", name="unbiased", use_bias=False)(y)
    y = layers.Dense(4, activation="relu", name="hidden")(y)
    return layers.Dense(3, activation="softmax", name="head")(y)


def _resized(x: Any) -> Any:
    from keras import layers

    y = layers.UpSampling2D(2, interpolation="bilinear", name="smooth")(x)
    return layers.Reshape((-1, 3), name="rows")(y)


def _sequence(x: Any) -> Any:
    from keras import layers

    return layers.Softmax(name="softmax")(layers.Dense(4, name="dense")(x))


@pytest.mark.parametrize(
    ("shape", "call"),
    [((9, 10, 3), _windows), ((4, 5, 3), _joins), ((4, 5, 3), _resized), ((6, 3), _sequence)],
)
def test_the_file_is_that_of_the_converter(shape, call, tmp_path) -> None:
    same(split_activations(model(shape, call)), tmp_path)


def test_a_number_in_an_array_is_a_number(tmp_path) -> None:
    from keras import layers

    legacy = layers.ReLU(np.array(6, np.float32), np.array(0.0), np.array(0.0), name="relu6")
    graph = model((6, 6, 3), lambda x: legacy(layers.Conv2D(4, 3, name="conv")(x)))
    (relu,) = [op for op in graph if op.kind == "ReLU"]
    assert relu["max_value"] == 6
    assert not any(isinstance(value, np.ndarray) for value in relu.attrs.values())
    same(graph, tmp_path)


@pytest.mark.parametrize("method", ["channel_svd", "spatial_svd", "spatial_svd_w", "tucker2", "cp"])
def test_so_is_that_of_a_plan(method, tmp_path) -> None:
    graph = fold_batchnorm(helpers.graph_of(helpers.conv_net()))
    op, source = graph.op("conv1"), graph.input_tensors("conv1")[0]
    chosen = METHODS[method]
    ranks = tuple(max(1, rank // 2) for rank in chosen.full(op, source))
    plan = graph.copy()
    plan.splice(op.name, chosen.decompose(op, source).stages(ranks))
    same(split_activations(plan), tmp_path)


def _reversed(x: Any) -> Any:
    return x[:, ::-1]


def _repeated(x: Any) -> Any:
    from keras import layers

    return layers.UpSampling2D((2, 1), name="near")(layers.Reshape((6, 3, 1))(x))


def _unfused(x: Any) -> Any:
    from keras import layers

    return layers.LeakyReLU(name="leaky")(x)


def _volume(x: Any) -> Any:
    from keras import layers

    return layers.Conv1D(4, 3, name="conv")(x)


@pytest.mark.parametrize("call", [_reversed, _repeated, _unfused, _volume])
def test_an_unknown_op_is_left_to_the_converter(call, tmp_path) -> None:
    path = tmp_path / "m.tflite"
    assert TFLite().direct(model((6, 3), call), path) is None
    assert not path.exists()


@pytest.mark.parametrize(
    "target", [TFLite("int8"), TFLite("fp16"), TFLite(memory_plan=True)], ids=repr
)
def test_so_is_any_other_precision(target, tmp_path) -> None:
    assert target.direct(model((6, 3), _sequence), tmp_path / "m.tflite") is None


def test_files_of_other_operators_are_not_the_same(tmp_path) -> None:
    from keras import layers

    target = TFLite()
    one = target.direct(model((6, 3), layers.Dense(4)), tmp_path / "one.tflite")
    two = target.direct(model((6, 3), layers.Dense(5)), tmp_path / "two.tflite")
    assert one is not None
    assert two is not None
    assert target.same_operators(one, one)
    assert not target.same_operators(one, two)


# -- on the bench ----------------------------------------------------------------------------------


class Counted(TFLite):
    """Counts what the converter writes, and may write other files without it than it does."""

    converted = 0
    changed = False

    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        type(self).converted += 1
        return super().emit(graph, path, calibration)

    def direct(self, graph: Graph, path: Path) -> Artifact | None:
        if self.changed:
            (op,) = [op for op in graph if op.kind == "Dense"]
            graph = graph.with_weights({op.name: {**op.weights, "bias": op.weights["bias"] + 1e-6}})
        return super().direct(graph, path)


@pytest.mark.parametrize(("changed", "converted"), [(False, 1), (True, 3)])
def test_plans_are_written_without_the_converter_where_the_original_is_the_same(
    changed, converted, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Counted, "converted", 0)
    monkeypatch.setattr(Counted, "changed", changed)
    graph = helpers.graph_of(helpers.conv_net())
    profile = latency.load("host", "tflite", "fp32", 1)
    assert profile is not None
    bench = Bench(
        target=Counted(),
        device=device.load("host"),
        runner=None,
        profile=profile,
        original=split_activations(graph),
        calibration=helpers.random_inputs(graph, 2),
        threads=1,
        folder=tmp_path,
        store=Store(),
        ram=Ram(),
    )
    for _ in range(2):
        assert bench(split_activations(graph)).time > 0
    assert Counted.converted == converted
