"""Table of op kinds: for each kind its family and the facts that passes need.

A kind is the name of a Keras layer class, or ``ops.`` and the name of a function's class in
keras.ops. A custom layer that has the name of a Keras layer has its full path as its kind. A kind
that the code compares by name only needs no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

Family = Literal[
    "input",
    "conv",
    "transposed",
    "depthwise",
    "separable",
    "dense",
    "einsum",
    "embedding",
    "recurrent",
    "attention",
    "batchnorm",
    "normalization",
    "rescaling",
    "activation",
    "function",
    "arithmetic",
    "concatenation",
    "pooling",
    "global_pooling",
    "padding",
    "cropping",
    "upsampling",
    "dropout",
    "identity",
    "shape",
    "reduction",
    "lookup",
    "other",
]


@dataclass(frozen=True)
class Kind:
    """One kind of op.

    ``spatial_axes``: number of axes that its kernel or window moves along.
    ``kernel``: the weight that multiplies the input; ``input_axis``: its axis of input channels.
    ``output_kernel``: the weight whose product is the output, which is another one only for a
    separable convolution; ``output_axes``: its axes of output channels. Axes count from the end.
    They are empty where the configuration decides them (the equation of an EinsumDense).
    ``elementwise``: the same function of one value gives each value of the output.
    ``parametric``: an activation with weights.
    ``view``: only renames or reshapes its input at inference; no runtime copies for it.
    ``keeps_range``: in an int8 file the output has the range of the input.
    ``homogeneous``: it commutes with a scale for each channel, with every scale ('linear') or with
    positive ones only ('positive'), whatever the configuration.
    ``fuses_relu``: TFLite fuses a ReLU that follows into the op.
    """

    name: str
    family: Family = "other"
    spatial_axes: int = 0
    kernel: str | None = None
    input_axis: int | None = None
    output_kernel: str | None = None
    output_axes: tuple[int, ...] = ()
    elementwise: bool = False
    parametric: bool = False
    view: bool = False
    keeps_range: bool = False
    homogeneous: Literal["linear", "positive"] | None = None
    fuses_relu: bool = False

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a depthwise convolution: each input channel has filters of its own."""
        return self.family == "depthwise"

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.family == "transposed"

    @property
    def is_separable(self) -> bool:
        """Whether it is a depthwise convolution and a 1×1 convolution in one layer."""
        return self.family == "separable"

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution of any kind."""
        return self.family in ("conv", "transposed", "depthwise", "separable")

    @property
    def is_matrix_product(self) -> bool:
        """Whether it multiplies by a matrix, as a fully connected layer does."""
        return self.family in ("dense", "einsum")

    @property
    def has_kernel(self) -> bool:
        """Whether it is a convolution or a matrix product, which can be factorized."""
        return self.is_convolution or self.is_matrix_product

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies by a kernel, with channels on fixed axes, and adds a bias."""
        return self.has_kernel and self.input_axis is not None

    @property
    def has_filters(self) -> bool:
        """Whether its output channels can be removed without removing input channels."""
        return (self.has_kernel and not self.is_depthwise) or self.family == "embedding"

    @property
    def is_activation(self) -> bool:
        """Whether it is an activation layer."""
        return self.family == "activation"

    @property
    def is_dropout(self) -> bool:
        """Whether it acts in training only and is the identity at inference."""
        return self.family == "dropout"


def _sized(pattern: str, sizes: tuple[int, ...], kind: Kind) -> Iterator[Kind]:
    """One kind for each number of spatial axes."""
    return (replace(kind, name=pattern.format(size), spatial_axes=size) for size in sizes)


def _named(names: str, kind: Kind, prefix: str = "") -> Iterator[Kind]:
    """One kind for each name."""
    return (replace(kind, name=prefix + name) for name in names.split())


def _linear(
    family: Family,
    input_axis: int,
    output_axes: tuple[int, ...],
    kernel: str = "kernel",
    output_kernel: str = "kernel",
) -> Kind:
    """A kind of linear layer, without a name; TFLite fuses a ReLU into all of them."""
    return Kind("", family, 0, kernel, input_axis, output_kernel, output_axes, fuses_relu=True)


_CONV = _linear("conv", -2, (-1,))  # (*K, I/groups, O)
_TRANSPOSED = _linear("transposed", -1, (-2,))  # (*K, O, I)
_DEPTHWISE = _linear("depthwise", -2, (-2, -1))  # (*K, I, multiplier)
_SEPARABLE = _linear("separable", -2, (-1,), "depthwise_kernel", "pointwise_kernel")
_WINDOW = Kind("", "pooling", keeps_range=True)
_AVERAGE = replace(_WINDOW, homogeneous="linear")
_MAXIMUM = replace(_WINDOW, homogeneous="positive")
_RESIZED = Kind("", keeps_range=True, homogeneous="linear")
_ELEMENTWISE = Kind("", "activation", elementwise=True)

KINDS: tuple[Kind, ...] = (
    Kind("InputLayer", "input"),
    # Linear layers
    *_sized("Conv{}D", (1, 2, 3), _CONV),
    *_sized("Conv{}DTranspose", (1, 2, 3), _TRANSPOSED),
    *_sized("DepthwiseConv{}D", (1, 2), _DEPTHWISE),
    *_sized("SeparableConv{}D", (1, 2), _SEPARABLE),
    replace(_linear("dense", -2, (-1,)), name="Dense"),
    Kind("EinsumDense", "einsum", kernel="kernel", output_kernel="kernel"),
    # Other layers with weights
    Kind("Embedding", "embedding", output_kernel="embeddings", output_axes=(-1,)),
    *_named("LSTM GRU SimpleRNN RNN Bidirectional", Kind("", "recurrent")),
    *_sized("ConvLSTM{}D", (1, 2, 3), Kind("", "recurrent")),
    *_named("MultiHeadAttention GroupQueryAttention", Kind("", "attention")),
    # Normalisation: by stored statistics, by the sample's own, and of a model's inputs
    Kind("BatchNormalization", "batchnorm"),
    *_named(
        "LayerNormalization GroupNormalization UnitNormalization RMSNormalization",
        Kind("", "normalization"),
    ),
    *_named("Normalization Rescaling", Kind("", "rescaling")),
    # Activations. Activation is elementwise but for softmax, which code checks where it matters.
    *_named("Activation ReLU ELU", _ELEMENTWISE),
    replace(_ELEMENTWISE, name="LeakyReLU", homogeneous="positive"),
    replace(_ELEMENTWISE, name="PReLU", parametric=True),
    Kind("Softmax", "activation"),
    *_named(
        "Relu Relu6 Sigmoid Tanh Silu Gelu Elu Selu Softplus Softsign LeakyRelu HardSigmoid "
        "HardSilu Abs Absolute Negative Square Sqrt Rsqrt Exp Log Sign",
        replace(_ELEMENTWISE, family="function"),
        "ops.",
    ),
    *_named("Softmax Clip", Kind("", "function"), "ops."),  # the bounds of clip may be arrays
    # Several operands
    *_named("Add Subtract Multiply", Kind("", "arithmetic", fuses_relu=True)),
    *_named("Average Maximum Minimum", Kind("", "arithmetic")),
    *_named(
        "Add Subtract Multiply Divide TrueDivide Maximum Minimum Power",
        Kind("", "arithmetic"),
        "ops.",
    ),
    Kind("Concatenate", "concatenation"),
    Kind("ops.Concatenate", "concatenation"),
    # Spatial axes. TFLite has no pooling along three of them.
    *_sized("MaxPooling{}D", (1, 2), replace(_MAXIMUM, fuses_relu=True)),
    *_sized("MaxPooling{}D", (3,), _MAXIMUM),
    *_sized("AveragePooling{}D", (1, 2), replace(_AVERAGE, fuses_relu=True)),
    *_sized("AveragePooling{}D", (3,), _AVERAGE),
    *_sized("GlobalMaxPooling{}D", (1, 2, 3), Kind("", "global_pooling", homogeneous="positive")),
    *_sized("GlobalAveragePooling{}D", (1, 2, 3), Kind("", "global_pooling", homogeneous="linear")),
    *_sized("ZeroPadding{}D", (1, 2, 3), replace(_RESIZED, family="padding")),
    *_sized("Cropping{}D", (1, 2, 3), replace(_RESIZED, family="cropping")),
    *_sized("UpSampling{}D", (1, 2, 3), replace(_RESIZED, family="upsampling")),
    # Layers that act in training only
    *_named(
        "Dropout AlphaDropout GaussianDropout GaussianNoise ActivityRegularization",
        Kind("", "dropout", view=True),
    ),
    *_sized("SpatialDropout{}D", (1, 2, 3), Kind("", "dropout", view=True)),
    Kind("Identity", "identity", view=True),
    # The same values in another shape or order, or a part of them
    *_named("Flatten Reshape", Kind("", "shape", view=True, keeps_range=True)),
    *_named("Permute RepeatVector", Kind("", "shape", keeps_range=True)),
    *_named("Pad Reshape Transpose", Kind("", "shape", keeps_range=True), "ops."),
    *_named("ExpandDims Squeeze GetItem Split", Kind("", "shape"), "ops."),
    *_named("Mean Max Min Sum", Kind("", "reduction"), "ops."),
    # Text and tables, which no runtime format holds
    *_named(
        "StringLookup IntegerLookup TextVectorization Hashing HashedCrossing",
        Kind("", "lookup"),
    ),
)

_BY_NAME: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in KINDS})


def kind_of(name: str) -> Kind:
    """The kind with that name; for a name outside the table, one of family 'other'."""
    return _BY_NAME.get(name) or Kind(name)


def names(*families: Family) -> tuple[str, ...]:
    """The names of the kinds of these families, in the order of the table."""
    return tuple(kind.name for kind in KINDS if kind.family in families)
