"""Small networks of the kinds that devices run, from Keras layers, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tests import helpers


def vision_transformer(width: int = 32, heads: int = 2) -> Any:
    """Two blocks of attention over the patches of an image."""
    from keras import Input, Model, layers

    image = Input((16, 16, 3), name="image")
    x = layers.Conv2D(width, 4, strides=4, name="patches")(image)
    x = layers.Reshape((-1, width), name="sequence")(x)
    for n in range(2):
        y = layers.LayerNormalization(name=f"norm_{n}a")(x)
        y = layers.MultiHeadAttention(heads, width // heads, name=f"attention_{n}")(y, y)
        x = layers.Add(name=f"attended_{n}")([x, y])
        y = layers.LayerNormalization(name=f"norm_{n}b")(x)
        y = layers.Dense(2 * width, activation="gelu", name=f"wide_{n}")(y)
        x = layers.Add(name=f"mixed_{n}")([x, layers.Dense(width, name=f"narrow_{n}")(y)])
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return Model(image, layers.Dense(5, activation="softmax", name="classes")(x), name="vit")


def keyword_transformer(width: int = 32) -> Any:
    """Attention over the frames of a spectrogram, normalised behind each block (Berg et al. 2021).

    arXiv 2104.00769
    """
    from keras import Input, Model, layers

    spectra = Input((20, 24), name="spectra")
    x = layers.Dense(width, name="embed")(spectra)
    for n in range(2):
        y = layers.MultiHeadAttention(1, width, name=f"attention_{n}")(x, x)
        x = layers.LayerNormalization(name=f"norm_{n}a")(layers.Add(name=f"attended_{n}")([x, y]))
        y = layers.Dense(width, name=f"narrow_{n}")(
            layers.Dense(2 * width, activation="relu", name=f"wide_{n}")(x)
        )
        x = layers.LayerNormalization(name=f"norm_{n}b")(layers.Add(name=f"mixed_{n}")([x, y]))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return Model(spectra, layers.Dense(5, activation="softmax", name="classes")(x), name="kwt")


def speech_lstm(units: int = 16) -> Any:
    """Two LSTM layers, unrolled so that calibration can run them."""
    from keras import Input, Model, layers

    spectra = Input((6, 32), name="spectra")
    x = layers.LSTM(units, return_sequences=True, unroll=True, name="first")(spectra)
    x = layers.LSTM(units, unroll=True, name="second")(x)
    return Model(spectra, layers.Dense(5, activation="softmax", name="classes")(x), name="lstm")


def speech_gru(units: int = 16) -> Any:
    """A convolution and a GRU in both directions, unrolled."""
    from keras import Input, Model, layers

    spectra = Input((12, 24), name="spectra")
    x = layers.Conv1D(32, 5, strides=2, padding="same", activation="relu", name="frames")(spectra)
    x = layers.Bidirectional(layers.GRU(units, unroll=True), name="memory")(x)
    return Model(spectra, layers.Dense(5, activation="softmax", name="classes")(x), name="gru")


def unet(filters: int = 8) -> Any:
    """Two steps down, two up by transposed convolutions, with what was at each height added."""
    from keras import Input, Model, layers

    def block(x: Any, width: int, name: str) -> Any:
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))

    image = Input((16, 16, 3), name="image")
    one = block(image, filters, "down_0")
    two = block(layers.MaxPooling2D(name="pool_0")(one), 2 * filters, "down_1")
    x = block(layers.MaxPooling2D(name="pool_1")(two), 4 * filters, "bottom")
    for n, (width, same) in enumerate(((2 * filters, two), (filters, one))):
        x = layers.Conv2DTranspose(width, 2 + n, strides=2, padding="same", name=f"up_{n}")(x)
        x = block(layers.Concatenate(name=f"joined_{n}")([x, same]), width, f"after_{n}")
    return Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x), name="unet")


def _inverted(x: Any, width: int, name: str, act: Callable[..., Any], *, gated: bool) -> Any:
    """An inverted residual block: 1×1, depthwise, and 1×1 without an activation."""
    from keras import layers

    depth = 4 * x.shape[-1]
    y = layers.Conv2D(depth, 1, use_bias=False, name=f"{name}_expand")(x)
    y = act(name=f"{name}_act")(layers.BatchNormalization(name=f"{name}_bn")(y))
    y = layers.DepthwiseConv2D(5 if gated else 3, padding="same", use_bias=False, name=name)(y)
    y = act(name=f"{name}_act2")(layers.BatchNormalization(name=f"{name}_bn2")(y))
    if gated:
        g = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(y)
        g = layers.Conv2D(depth // 4, 1, activation="relu", name=f"{name}_squeeze")(g)
        g = layers.Conv2D(depth, 1, activation="hard_sigmoid", name=f"{name}_excite")(g)
        y = layers.Multiply(name=f"{name}_gate")([y, g])
    y = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_project")(y)
    y = layers.BatchNormalization(name=f"{name}_bn3")(y)
    return layers.Add(name=f"{name}_add")([x, y]) if x.shape[-1] == width else y


def _inverted_residuals(name: str, act: Callable[..., Any], *, gated: bool) -> Any:
    from keras import Input, Model, layers

    image = Input((16, 16, 3), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = act(name="stem_act")(layers.BatchNormalization(name="stem_bn")(x))
    for n, width in enumerate((16, 24, 24)):
        x = _inverted(x, width, f"block_{n}", act, gated=gated)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return Model(image, layers.Dense(5, activation="softmax", name="classes")(x), name=name)


def mobilenet_v3() -> Any:
    """Blocks with squeeze and excitation and hard swish (Howard et al. 2019, arXiv 1905.02244)."""
    from keras import layers

    def swish(name: str) -> Any:
        return layers.Activation("hard_swish", name=name)

    return _inverted_residuals("mobilenet_v3", swish, gated=True)


def efficientnet_lite() -> Any:
    """Inverted residual blocks with ReLU6 and without gates."""
    from keras import layers

    def relu6(name: str) -> Any:
        return layers.ReLU(6, name=name)

    return _inverted_residuals("efficientnet_lite", relu6, gated=False)


def conformer(width: int = 32) -> Any:
    """One block: half of a feed-forward layer, attention, convolution, the other half.

    Gulati et al. 2020, arXiv 2005.08100.
    """
    from keras import Input, Model, layers

    def half(x: Any, name: str) -> Any:
        y = layers.LayerNormalization(name=f"{name}_norm")(x)
        y = layers.Dense(2 * width, activation="silu", name=f"{name}_wide")(y)
        y = layers.Dense(width, name=f"{name}_narrow")(y)
        return layers.Add(name=f"{name}_add")([x, layers.Rescaling(0.5, name=f"{name}_half")(y)])

    spectra = Input((16, 24), name="spectra")
    x = half(layers.Dense(width, name="embed")(spectra), "one")
    y = layers.LayerNormalization(name="attention_norm")(x)
    y = layers.MultiHeadAttention(2, width // 2, name="attention")(y, y)
    x = layers.Add(name="attended")([x, y])
    y = layers.LayerNormalization(name="conv_norm")(x)
    gate = layers.Conv1D(width, 1, activation="sigmoid", name="gate")(y)
    y = layers.Multiply(name="gated")([layers.Conv1D(width, 1, name="value")(y), gate])
    y = layers.DepthwiseConv1D(5, padding="same", use_bias=False, name="along_time")(y)
    y = layers.Activation("silu", name="conv_act")(layers.BatchNormalization(name="conv_bn")(y))
    x = layers.Add(name="convolved")([x, layers.Conv1D(width, 1, name="out")(y)])
    x = layers.LayerNormalization(name="last_norm")(half(x, "two"))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return Model(
        spectra, layers.Dense(5, activation="softmax", name="classes")(x), name="conformer"
    )


#: Each network by its name.
NETWORKS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        make.__name__: lambda make=make: helpers.random_weights(make())
        for make in (
            vision_transformer,
            keyword_transformer,
            speech_lstm,
            speech_gru,
            unet,
            mobilenet_v3,
            efficientnet_lite,
            conformer,
        )
    }
)
