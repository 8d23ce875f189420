"""FoldBatchNorm: the layers that it folds or leaves, with the same outputs as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.data.dataset import Data, Split
from lrfc.ir.fold import drop_dropout, fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.passes.canonicalise import split_activations
from lrfc.passes.fold_batchnorm import FoldBatchNorm
from lrfc.state import State
from tests import helpers


def folded(graph: Graph) -> Graph:
    """The folded graph, once its outputs equal those of the original."""
    result = fold_batchnorm(drop_dropout(graph))
    result.check()
    helpers.same(graph, result)
    return result


def chain(*layers: Any, shape: tuple[int, ...] = (8, 8, 3)) -> Graph:
    import keras

    return helpers.graph_of(
        helpers.random_weights(
            keras.Sequential([keras.Input(shape, name="x"), *layers], name="chain")
        )
    )


def test_batchnorm_folds_and_dropout_goes() -> None:
    from keras import layers

    graph = chain(
        layers.Conv2D(4, 3, use_bias=False, name="conv"),
        layers.Dropout(0.5),
        layers.BatchNormalization(),
        layers.ReLU(name="relu"),
    )
    empty = Split((np.zeros((0, 1), np.float32),))
    result = FoldBatchNorm()(State(graph, graph, Data("none", empty, empty, empty))).graph
    helpers.same(graph, result)
    assert str(result) == "\n".join(
        [
            "graph chain",
            "  x = InputLayer() -> (?, 8, 8, 3)",
            "  conv = Conv2D(x) filters=4 kernel_size=3 -> (?, 6, 6, 4)",
            "  relu = ReLU(conv) -> (?, 6, 6, 4)",
            "  return relu",
        ]
    )


def test_consecutive_batchnorms_and_one_at_the_output() -> None:
    from keras import layers

    result = folded(
        chain(
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(),
            layers.BatchNormalization(),
            shape=(5,),
        )
    )
    assert [op.kind for op in result] == ["InputLayer", "Dense"]
    assert str(result.outputs[0]) == "dense"


def test_batchnorms_that_cannot_be_folded_stay() -> None:
    import keras
    from keras import layers

    assert "BatchNormalization" in str(
        folded(chain(layers.BatchNormalization(), layers.Conv2D(2, 3)))
    )
    assert "BatchNormalization" in str(
        folded(chain(layers.Conv2D(2, 3, activation="relu"), layers.BatchNormalization()))
    )
    along_height = chain(layers.Conv2D(6, 3), layers.BatchNormalization(axis=1))
    assert "BatchNormalization" in str(folded(along_height))
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(image)
    two_readers = helpers.random_weights(
        keras.Model(image, layers.Add()([x, layers.BatchNormalization()(x)]))
    )
    assert "BatchNormalization" in str(folded(helpers.graph_of(two_readers)))
    response_is_output = helpers.random_weights(
        keras.Model(image, [x, layers.BatchNormalization()(x)])
    )
    assert "BatchNormalization" in str(folded(helpers.graph_of(response_is_output)))


def test_layers_that_train_at_inference_stay() -> None:
    import keras
    from keras import layers

    features = keras.Input((5,))
    x = layers.BatchNormalization()(layers.Dense(4)(features), training=True)
    graph = helpers.graph_of(keras.Model(features, layers.Dropout(0.5)(x, training=True)))
    assert str(fold_batchnorm(drop_dropout(graph))) == str(graph)


def test_shared_layer_folds_when_all_calls_are_followed_alike() -> None:
    import keras
    from keras import layers

    def model(second: Any) -> Graph:
        left, right = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
        conv = layers.Conv2D(4, 3, name="conv")
        return helpers.graph_of(
            helpers.random_weights(
                keras.Model([left, right], layers.Add()([first(conv(left)), second(conv(right))]))
            )
        )

    first = layers.BatchNormalization()
    result = folded(model(first))
    assert "BatchNormalization" not in str(result)
    assert result.params == 4 * 27 + 4
    first = layers.BatchNormalization()
    assert str(folded(model(layers.BatchNormalization()))).count("BatchNormalization") == 2
    first = layers.BatchNormalization()
    assert str(folded(model(layers.ReLU()))).count("BatchNormalization") == 1


def test_one_batchnorm_behind_several_layers_folds_into_each() -> None:
    import keras
    from keras import layers

    image, norm = keras.Input((6, 6, 3)), layers.BatchNormalization()
    graph = helpers.graph_of(
        helpers.random_weights(
            keras.Model(
                image,
                layers.Add()([norm(layers.Conv2D(4, 3)(image)), norm(layers.Conv2D(4, 3)(image))]),
            )
        )
    )
    assert "BatchNormalization" not in str(folded(graph))


@pytest.mark.parametrize(
    "model",
    [
        helpers.conv_net,
        helpers.residual,
        helpers.nested_twice,
        helpers.shared_conv,
        helpers.two_inputs,
    ],
)
def test_small_models(model: Any) -> None:
    graph = helpers.graph_of(model())
    result = folded(split_activations(graph))
    helpers.same(graph, result)
    if model in (helpers.conv_net, helpers.residual):
        # bn0 stays: the stem has a second reader.
        text = str(result).replace("bn0 = BatchNormalization(stem)", "")
        assert "BatchNormalization" not in text


@given(
    kind=st.sampled_from(
        [
            "Conv1D",
            "Conv2D",
            "Conv3D",
            "DepthwiseConv1D",
            "DepthwiseConv2D",
            "SeparableConv1D",
            "SeparableConv2D",
            "Conv1DTranspose",
            "Conv2DTranspose",
            "Conv3DTranspose",
            "Dense",
        ]
    ),
    kernel=st.integers(1, 3),
    strides=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same", "causal"]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    scale=st.booleans(),
    center=st.booleans(),
    axis=st.booleans(),
)
def test_every_linear_layer(
    kind: str,
    kernel: int,
    strides: int,
    dilation: int,
    padding: str,
    groups: int,
    bias: bool,
    scale: bool,
    center: bool,
    axis: bool,
) -> None:
    from keras import layers

    options: dict[str, Any] = {"use_bias": bias}
    rank = 0 if kind == "Dense" else int(kind.split("Conv")[1][0])
    if rank:
        dilation = dilation if strides == 1 and "Transpose" not in kind else 1
        padding = padding if padding != "causal" or kind == "Conv1D" else "same"
        options |= {
            "kernel_size": kernel,
            "strides": strides,
            "dilation_rate": dilation,
            "padding": padding,
        }
        options |= {"depth_multiplier": 2} if "Depthwise" in kind or "Separable" in kind else {}
        options |= {"groups": groups} if kind in ("Conv1D", "Conv2D") else {}
    layer = (
        getattr(layers, kind)(**options)
        if "Depthwise" in kind
        else getattr(layers, kind)(6, **options)
    )
    norm = layers.BatchNormalization(axis=rank + 1 if axis else -1, scale=scale, center=center)
    result = folded(chain(layer, norm, shape=(7,) * rank + (4,)))
    assert [op.kind for op in result] == ["InputLayer", kind]


@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D", "Conv2DTranspose"])
def test_channels_first(kind: str) -> None:
    """The weights equal those with channels last; TensorFlow may not run this model."""
    from keras import layers

    def model(data_format: str) -> Graph:
        options = {"kernel_size": 3, "data_format": data_format, "name": "conv"}
        layer = (
            getattr(layers, kind)(**options)
            if "Depthwise" in kind
            else getattr(layers, kind)(4, **options)
        )
        first = data_format == "channels_first"
        return chain(
            layer,
            layers.BatchNormalization(axis=1 if first else -1),
            shape=(3, 8, 8) if first else (8, 8, 3),
        )

    first, last = (fold_batchnorm(model(f)) for f in ("channels_first", "channels_last"))
    assert len(first) == len(last) == 2
    for name, array in first.op("conv").weights.items():
        np.testing.assert_array_equal(array, last.op("conv").weights[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet20_cifar10.keras",
        "mlperf_tiny_resnet8_cifar10.h5",
        "mlperf_tiny_autoencoder_ad.h5",
        "mini_mobilenetv2_cifar10.h5",
    ],
)
def test_real_models(name: str, lrfc_data: Path) -> None:
    graph = keras_io.from_keras(keras_load.load(lrfc_data / "models" / name))
    result = fold_batchnorm(drop_dropout(split_activations(graph)))
    result.check()
    batch = tuple(128 + 64 * x for x in helpers.random_inputs(graph, 8))
    assert (
        helpers.difference(keras_io.predict(graph, batch), keras_io.predict(result, batch)) < 1e-5
    )
    assert "BatchNormalization" not in str(result)
