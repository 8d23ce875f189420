"""Epilogues: BatchNorm, Add and activation, up to the first tensor with several readers."""

from __future__ import annotations

import numpy as np
import pytest

from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.search.epilogue import Epilogue, FeatureMap, epilogue_of
from tests import helpers


def names(chain: Epilogue) -> tuple[str | None, str | None, str | None, str]:
    norm, activation = chain.batchnorm, chain.activation
    return (
        norm and norm.name,
        chain.addend and str(chain.addend),
        activation and activation.name,
        chain.end,
    )


def tail(*layers, data_format: str = "channels_last", kind: str = "Conv2D") -> Graph:
    """A convolution named conv with layers behind it."""
    import keras

    x = image = keras.Input((6, 6, 4), name="image")
    x = getattr(keras.layers, kind)(4, 3, padding="same", data_format=data_format, name="conv")(x)
    for layer in layers:
        x = layer(x)
    return helpers.graph_of(
        helpers.random_weights(keras.Model(image, keras.layers.Flatten(name="flat")(x)))
    )


def test_through_batchnorm_addition_and_activation() -> None:
    graph = helpers.graph_of(helpers.residual())
    assert names(epilogue_of(graph, "conv")) == ("bn1", "stem", "relu1", "relu1")
    assert names(epilogue_of(graph, "stem")) == (
        None,
        None,
        None,
        "stem",
    )  # two readers: the map itself is what is read
    assert names(epilogue_of(graph, "head")) == (None, None, None, "head")


def test_each_link_may_be_absent() -> None:
    from keras import layers

    assert names(epilogue_of(tail(layers.ReLU(name="relu")), "conv")) == (
        None,
        None,
        "relu",
        "relu",
    )
    assert names(epilogue_of(tail(layers.BatchNormalization(name="bn")), "conv")) == (
        "bn",
        None,
        None,
        "bn",
    )
    assert names(
        epilogue_of(tail(layers.MaxPooling2D(name="max"), layers.ReLU(name="relu")), "conv")
    ) == (None, None, None, "conv")


def test_the_layer_added_to_itself_has_no_addend() -> None:
    from keras import layers

    assert names(epilogue_of(tail(lambda x: layers.Add(name="add")([x, x])), "conv")) == (
        None,
        None,
        None,
        "conv",
    )


def test_an_addend_of_another_shape_ends_the_chain() -> None:
    from keras import layers

    def add(x):
        return layers.Add(name="add")(
            [
                x,
                layers.GlobalAveragePooling2D(keepdims=True, name="pool")(
                    layers.ReLU(name="other")(image)
                ),
            ]
        )

    import keras

    image = keras.Input((6, 6, 4), name="image")
    graph = helpers.graph_of(
        keras.Model(image, add(layers.Conv2D(4, 3, padding="same", name="conv")(image)))
    )
    assert names(epilogue_of(graph, "conv")) == (None, None, None, "conv")


def test_a_model_output_ends_the_chain() -> None:
    import keras
    from keras import layers

    image = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    norm = layers.BatchNormalization(name="bn")(x)
    graph = helpers.graph_of(keras.Model(image, [x, layers.ReLU(name="relu")(norm)]))
    assert names(epilogue_of(graph, "conv")) == (None, None, None, "conv")
    graph = helpers.graph_of(keras.Model(image, [norm, layers.ReLU(name="relu")(norm)]))
    assert names(epilogue_of(graph, "conv")) == ("bn", None, None, "bn")


def test_only_a_batchnorm_of_the_output_channels_belongs_to_the_layer() -> None:
    from keras import layers

    assert epilogue_of(tail(layers.BatchNormalization(axis=1, name="bn")), "conv").batchnorm is None
    assert (
        epilogue_of(tail(layers.BatchNormalization(axis=3, name="bn")), "conv").batchnorm
        is not None
    )
    first = tail(
        layers.BatchNormalization(axis=1, name="bn"),
        layers.ReLU(name="relu"),
        data_format="channels_first",
    )
    assert names(epilogue_of(first, "conv")) == ("bn", None, "relu", "relu")
    assert (
        epilogue_of(
            tail(layers.BatchNormalization(name="bn"), data_format="channels_first"), "conv"
        ).batchnorm
        is None
    )


def test_an_activation_across_positions_ends_the_chain() -> None:
    from keras import layers

    assert epilogue_of(tail(layers.Softmax(name="softmax")), "conv").activation is not None
    assert epilogue_of(tail(layers.Softmax(axis=1, name="softmax")), "conv").activation is None
    assert (
        epilogue_of(
            tail(layers.Activation("softmax", name="softmax"), data_format="channels_first"), "conv"
        ).activation
        is None
    )
    assert (
        epilogue_of(
            tail(layers.Activation("tanh", name="tanh"), data_format="channels_first"), "conv"
        ).activation
        is not None
    )


def test_a_transposed_convolution_is_compared_by_its_bare_response() -> None:
    from keras import layers

    assert names(
        epilogue_of(tail(layers.BatchNormalization(name="bn"), kind="Conv2DTranspose"), "conv")
    ) == (None, None, None, "conv")


def test_the_feature_map_is_what_the_network_computes() -> None:
    graph = helpers.graph_of(helpers.residual())
    chain = epilogue_of(graph, "conv")
    probe = graph.copy()
    probe.outputs, probe.structure = (Ref("conv"), Ref("stem"), Ref("relu1")), (None, None)
    response, addend, expected = (
        x.reshape(-1, 6) for x in keras_io.predict(probe, helpers.random_inputs(graph, 4))
    )
    feature_map = FeatureMap(chain, response, addend)
    np.testing.assert_allclose(feature_map.reference, expected, atol=1e-5)
    assert feature_map.energy == pytest.approx(float(np.square(expected).sum()), rel=1e-4)
    assert chain.scale == pytest.approx(
        np.asarray(graph.op("bn1").weights["gamma"])
        / np.sqrt(graph.op("bn1").weights["moving_variance"] + 1e-3),
        rel=1e-5,
    )


def test_reestimation_undoes_a_shift_and_nearly_a_scale() -> None:
    graph = helpers.graph_of(helpers.residual())
    response = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
    addend = np.zeros_like(response)
    feature_map = FeatureMap(epilogue_of(graph, "conv"), response, addend)
    np.testing.assert_allclose(feature_map(response + 3), feature_map.reference, atol=1e-4)
    np.testing.assert_allclose(
        feature_map(3 * response + 1), feature_map.reference, atol=0.01
    )  # but for the epsilon
    assert np.abs(feature_map(response[::-1]) - feature_map.reference).max() > 0.1
