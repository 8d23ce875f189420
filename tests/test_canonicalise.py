"""Canonicalise: each rewrite as a printed graph, with the same outputs as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.data.dataset import Data, Split
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.passes.canonicalise import Canonicalise
from lrfc.state import State
from tests import helpers


def canonical(graph: Graph) -> Graph:
    empty = Split((np.zeros((0, 1), np.float32),))
    state = State(graph, graph, Data("none", empty, empty, empty))
    result = Canonicalise()(state)
    result.graph.check()
    assert result.original is graph
    return result.graph


def chain(*layers: Any, shape: tuple[int | None, ...] = (8, 8, 3)) -> Graph:
    import keras

    return helpers.graph_of(
        helpers.random_weights(
            keras.Sequential([keras.Input(shape, name="x"), *layers], name="chain")
        )
    )


def proved(graph: Graph) -> str:
    """The printed canonical graph, once its outputs equal those of the original."""
    result = canonical(graph)
    helpers.same(graph, result)
    return str(result)


MEAN, VARIANCE = [120.0, 110.0, 100.0], [3400.0, 3200.0, 3300.0]


def test_activation_arguments_become_ops() -> None:
    from keras import layers

    graph = chain(
        layers.Conv2D(4, 3, activation="relu", name="conv"),
        layers.Flatten(name="flat"),
        layers.Dense(2, activation="softmax", name="head"),
    )
    assert proved(graph) == "\n".join(
        [
            "graph chain",
            "  x = InputLayer() -> (?, 8, 8, 3)",
            "  conv = Conv2D(x) filters=4 kernel_size=3 -> (?, 6, 6, 4)",
            "  conv__activation = Activation(conv) activation=relu -> (?, 6, 6, 4)",
            "  flat = Flatten(conv__activation) -> (?, 144)",
            "  head = Dense(flat) units=2 -> (?, 2)",
            "  head__activation = Activation(head) activation=softmax -> (?, 2)",
            "  return head__activation",
        ]
    )


def test_activation_layer_given_as_argument_becomes_that_layer() -> None:
    from keras import layers

    assert "conv__activation = LeakyReLU(conv) negative_slope=0.1" in proved(
        chain(layers.Conv2D(4, 3, activation=layers.LeakyReLU(0.1), name="conv"))
    )


def test_activation_with_weights_stays_inside() -> None:
    from keras import layers

    graph = chain(layers.Dense(4, activation=layers.PReLU(), name="dense"), shape=(5,))
    assert proved(graph) == str(graph)


def test_shared_layer_gets_a_shared_activation() -> None:
    import keras
    from keras import layers

    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    dense = layers.Dense(3, activation="tanh", name="dense")
    graph = helpers.graph_of(
        keras.Model([left, right], layers.Add(name="add")([dense(left), dense(right)]))
    )
    result = canonical(graph)
    helpers.same(graph, result)
    activations = [op for op in result if op.kind == "Activation"]
    assert [op.shared for op in activations] == ["dense__activation"] * 2
    assert result.params == graph.params
    assert len(keras_io.to_keras(result).layers) == len(result) - 2


def test_name_of_the_activation_avoids_existing_ones() -> None:
    from keras import layers

    text = proved(
        chain(
            layers.Dense(4, activation="relu", name="a"),
            layers.ReLU(name="a__activation"),
            shape=(5,),
        )
    )
    assert "a__activation_1 = Activation(a)" in text


def test_normalization_folds_into_a_valid_convolution() -> None:
    from keras import layers

    graph = chain(
        layers.Normalization(mean=MEAN, variance=VARIANCE),
        layers.Conv2D(4, 3, use_bias=False, name="conv"),
    )
    assert proved(graph) == "\n".join(
        [
            "graph chain",
            "  x = InputLayer() -> (?, 8, 8, 3)",
            "  conv = Conv2D(x) filters=4 kernel_size=3 -> (?, 6, 6, 4)",
            "  return conv",
        ]
    )


def test_chain_of_normalizations_before_a_padded_convolution_becomes_one_depthwise() -> None:
    from keras import layers

    graph = chain(
        layers.Rescaling(1 / 127.5, -1, name="rescale"),
        layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0], name="normalize"),
        layers.Rescaling([1.0, 2.0, 0.5], name="again"),
        layers.Conv2D(4, 3, padding="same", name="conv"),
    )
    assert proved(graph) == "\n".join(
        [
            "graph chain",
            "  x = InputLayer() -> (?, 8, 8, 3)",
            "  again = DepthwiseConv2D(x) kernel_size=1 -> (?, 8, 8, 3)",
            "  conv = Conv2D(again) filters=4 kernel_size=3 padding=same -> (?, 8, 8, 4)",
            "  return conv",
        ]
    )


def test_pure_scale_folds_into_a_padded_convolution() -> None:
    from keras import layers

    assert "Rescaling" not in proved(
        chain(layers.Rescaling(1 / 255), layers.Conv2D(4, 3, padding="same", name="conv"))
    )


def test_single_elementwise_op_that_cannot_be_folded_stays() -> None:
    from keras import layers

    assert "Rescaling" in proved(chain(layers.Rescaling(1 / 255), layers.MaxPooling2D(name="pool")))
    assert "Rescaling" in proved(
        chain(layers.Rescaling(1.0, -3.0), layers.Conv2D(4, 3, padding="same", name="conv"))
    )


def test_normalization_per_position_folds_through_flatten_into_dense() -> None:
    from keras import layers

    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(4, 4, 2)), rng.uniform(0.5, 2, (4, 4, 2))
    graph = chain(
        layers.Normalization(axis=(1, 2, 3), mean=mean, variance=variance),
        layers.Flatten(),
        layers.Dense(3),
        shape=(4, 4, 2),
    )
    assert "Normalization" not in proved(graph)


def test_adapted_and_inverted_normalization() -> None:
    from keras import layers

    data = np.random.default_rng(1).normal(3, 2, (50, 5)).astype(np.float32)
    for invert in (False, True):
        normalize = layers.Normalization(invert=invert)
        normalize.adapt(data)
        assert "Normalization" not in proved(chain(normalize, layers.Dense(3), shape=(5,)))


def test_normalization_with_several_readers_folds_into_all_or_none() -> None:
    import keras
    from keras import layers

    def model(second: Any) -> Graph:
        x = image = keras.Input((8, 8, 3))
        x = layers.Normalization(mean=MEAN, variance=VARIANCE)(x)
        return helpers.graph_of(keras.Model(image, [layers.Conv2D(2, 3)(x), second(x)]))

    assert "Normalization" not in proved(model(layers.Conv2D(2, 1, padding="same")))
    assert "DepthwiseConv2D" in proved(model(layers.Conv2D(2, 3, padding="same")))
    assert "DepthwiseConv2D" in proved(model(layers.ReLU()))


def test_shared_reader_and_model_output_are_left_alone() -> None:
    import keras
    from keras import layers

    left, right = keras.Input((5,)), keras.Input((5,))
    dense, normalize = layers.Dense(3), layers.Rescaling(2.0, 1.0)
    graph = helpers.graph_of(keras.Model([left, right], [dense(normalize(left)), dense(right)]))
    assert proved(graph) == str(graph)
    outside = keras.Input((5,))
    scaled = layers.Rescaling(2.0, 1.0)(outside)
    graph = helpers.graph_of(keras.Model(outside, [layers.Dense(3)(scaled), scaled]))
    assert proved(graph) == str(graph)


def test_shared_normalization_is_folded_or_lowered_call_by_call() -> None:
    import keras
    from keras import layers

    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    normalize = layers.Normalization(mean=MEAN, variance=VARIANCE)
    graph = helpers.graph_of(
        keras.Model(
            [left, right],
            [
                layers.Conv2D(2, 3)(normalize(left)),
                layers.Conv2D(2, 3, padding="same")(normalize(right)),
            ],
        )
    )
    text = proved(graph)
    assert "Normalization" not in text
    assert text.count("DepthwiseConv2D") == 1


def test_integer_images_keep_their_normalization() -> None:
    import keras
    from keras import layers

    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    graph = helpers.graph_of(
        keras.Model(image, layers.Conv2D(2, 3)(layers.Rescaling(1 / 255, name="rescale")(image)))
    )
    assert "rescale = Rescaling(image)" in proved(graph)


def test_batchnorm_before_a_convolution_folds_and_behind_one_stays() -> None:
    from keras import layers

    before = chain(
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.BatchNormalization(),
        layers.Conv2D(4, 3, name="conv"),
    )
    assert proved(before).count("BatchNormalization") == 1  # the one before ReLU
    behind = chain(
        layers.Conv2D(4, 3, name="first"),
        layers.BatchNormalization(name="bn"),
        layers.Conv2D(4, 1, name="second"),
    )
    assert proved(behind) == str(behind)
    padded = chain(
        layers.BatchNormalization(name="bn"), layers.Conv2D(4, 3, padding="same", name="conv")
    )
    assert proved(padded) == str(padded)


def test_batchnorm_that_trains_at_inference_is_left_alone() -> None:
    import keras
    from keras import layers

    x = features = keras.Input((5,))
    graph = helpers.graph_of(
        keras.Model(features, layers.Dense(3)(layers.BatchNormalization()(x, training=True)))
    )
    assert str(canonical(graph)) == str(graph)


def test_dropout_stays_for_fine_tuning() -> None:
    from keras import layers

    graph = chain(layers.Dropout(0.5, name="drop"), layers.Dense(3), shape=(5,))
    assert "drop = Dropout(x)" in proved(graph)


@pytest.mark.parametrize("shape", [(9, 4), (4, 5, 6, 2)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    from keras import layers

    rank = len(shape) - 1
    conv, mean = getattr(layers, f"Conv{rank}D"), list(range(1, shape[-1] + 1))
    text = proved(
        chain(
            layers.Normalization(mean=mean, variance=mean), conv(3, 2, padding="same"), shape=shape
        )
    )
    assert ("DepthwiseConv1D" if rank == 1 else " Normalization(x)") in text
    assert "Normalization" not in proved(
        chain(layers.Normalization(mean=mean, variance=mean), conv(3, 2), shape=shape)
    )


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
            "Conv2DTranspose",
            "Dense",
        ]
    ),
    kernel=st.integers(1, 3),
    strides=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    shift=st.booleans(),
    norm=st.sampled_from(["Normalization", "BatchNormalization", "Rescaling"]),
)
def test_every_linear_layer_behind_a_normalization(
    kind: str,
    kernel: int,
    strides: int,
    dilation: int,
    padding: str,
    groups: int,
    bias: bool,
    shift: bool,
    norm: str,
) -> None:
    from keras import layers

    rng = np.random.default_rng(0)
    channels = 4
    mean = rng.normal(0, 2, channels) if shift else np.zeros(channels)
    before = {
        "Normalization": lambda: layers.Normalization(
            mean=mean, variance=rng.uniform(0.5, 4, channels)
        ),
        "BatchNormalization": lambda: layers.BatchNormalization(center=shift),
        "Rescaling": lambda: layers.Rescaling(rng.uniform(0.5, 2, channels), mean),
    }[norm]()
    options: dict[str, Any] = {"use_bias": bias}
    if kind == "Dense":
        layer, shape = layers.Dense(6, **options), (channels,)
    else:
        rank = int(kind.split("Conv")[1][0])
        dilation = dilation if strides == 1 and "Transpose" not in kind else 1
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
        shape = (7,) * rank + (channels,)
    graph = chain(before, layer, shape=shape)
    text = proved(graph)
    if kind == "Dense" or (padding == "valid" and "Transpose" not in kind):
        # No op is left of the normalisation.
        assert len(text.splitlines()) == (5 if "Separable" in kind else 4), text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet20_cifar10.keras",
        "resnet56_cifar10.keras",
        "mlperf_tiny_resnet8_cifar10.h5",
        "mlperf_tiny_autoencoder_ad.h5",
        "mini_mobilenetv2_cifar10.h5",
        "gtsrb_cnn30_sivaprakash.h5",
    ],
)
def test_real_models(name: str, lrfc_data: Path) -> None:
    graph = keras_io.from_keras(keras_load.load(lrfc_data / "models" / name))
    result = canonical(graph)
    batch = tuple(128 + 64 * x for x in helpers.random_inputs(graph, 8))
    assert (
        helpers.difference(keras_io.predict(graph, batch), keras_io.predict(result, batch)) < 1e-5
    )
    if name.startswith("resnet"):
        assert "normalize = DepthwiseConv2D(image)" in str(result)


def test_a_separable_convolution_becomes_its_two_layers():
    import keras

    graph = chain(
        keras.layers.SeparableConv2D(8, 3, activation="relu", depth_multiplier=2, name="conv")
    )
    assert "DepthwiseConv2D" in proved(graph)
    assert [op.kind for op in canonical(graph)] == [
        "InputLayer",
        "DepthwiseConv2D",
        "Conv2D",
        "Activation",
    ]
