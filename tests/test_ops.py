"""Shapes and MACs that lrfc computes itself, compared with Keras."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrfc.errors import GraphError, ModelError
from lrfc.ir import defaults, ops, processor
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Tensor
from tests import helpers


@st.composite
def convolutions(
    draw: st.DrawFn, kinds: str = "Conv DepthwiseConv ConvTranspose"
) -> tuple[Op, Tensor]:
    """A convolution of any kind, without weights, and an input tensor."""
    kind, rank = draw(st.sampled_from(kinds.split())), draw(st.integers(1, 3))
    assume(rank < 3 or kind != "DepthwiseConv")
    transposed = kind.endswith("Transpose")

    def sizes(low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.tuples(*[st.integers(low, high)] * rank)

    kernel, strides = draw(sizes(1, 4)), draw(sizes(1, 3))
    # Keras refuses strides and dilation in one layer.
    dilation = (1,) * rank if max(strides) > 1 else draw(sizes(1, 3))
    if kind == "DepthwiseConv":
        # TensorFlow's depthwise kernels need equal strides along all axes, and equal dilation.
        strides, dilation = (strides[0],) * rank, (dilation[0],) * rank
    padding = draw(
        st.sampled_from(
            ["valid", "same", "causal"] if rank == 1 and kind == "Conv" else ["valid", "same"]
        )
    )
    groups = draw(st.sampled_from([1, 1, 2, 3])) if kind == "Conv" else 1
    inputs = groups * draw(st.integers(1, 3))
    attrs: dict[str, Any] = {
        "kernel_size": kernel,
        "strides": strides,
        "dilation_rate": dilation,
        "padding": padding,
    }
    attrs |= (
        {"depth_multiplier": draw(st.integers(1, 3))}
        if kind == "DepthwiseConv"
        else {"filters": groups * draw(st.integers(1, 3))}
    )
    if groups > 1:
        attrs["groups"] = groups
    if transposed and draw(st.booleans()):
        attrs["output_padding"] = tuple(draw(st.integers(0, stride - 1)) for stride in strides)
    first = draw(st.booleans()) if padding != "causal" else False
    if first:
        attrs["data_format"] = "channels_first"
    lengths = tuple(
        draw(st.integers(d * (k - 1) + 1, 12)) for k, d in zip(kernel, dilation, strict=True)
    )
    name = f"{kind.removesuffix('Transpose')}{rank}D{'Transpose' if transposed else ''}"
    return Op("op", name, attrs), Tensor(
        (None, inputs, *lengths) if first else (None, *lengths, inputs)
    )


def free(source: Tensor, channels_first: bool) -> Tensor:
    """The tensor with spatial axes without fixed lengths."""
    channels = source.shape[1 if channels_first else -1]
    unknown = (None,) * (len(source.shape) - 2)
    return Tensor((None, channels, *unknown) if channels_first else (None, *unknown, channels))


# -- convolutions ----------------------------------------------------------------------------------


@given(convolutions())
def test_shapes_are_those_of_keras(case) -> None:
    op, source = case
    assert ops.infer(op, (source,)) == keras_io.infer(op, (source,))


@given(convolutions())
def test_shapes_without_fixed_sizes_are_those_of_keras(case) -> None:
    op, source = case
    source = free(source, op["data_format"] == "channels_first")
    assert ops.infer(op, (source,)) == keras_io.infer(op, (source,))


@given(convolutions())
def test_macs_are_the_products_that_keras_sums(case) -> None:
    """With a kernel and an input of ones, each output is the number of its products.

    Without padding, every kernel position lies inside the input.
    """
    # A dilated transposed convolution needs oneDNN; lrfc replaces it by a plain one
    # (lrfc.ir.dilated).
    assume(
        processor.onednn().on
        or not case[0].kind.endswith("Transpose")
        or max(case[0]["dilation_rate"]) == 1
    )
    op, (batch, *shape) = case[0], case[1].shape
    if op["data_format"] == "channels_first":
        shape = [*shape[1:], shape[0]]
    ones = {
        "depthwise_initializer" if op.kind.startswith("Depthwise") else "kernel_initializer": "ones"
    }
    op = op.with_attrs(padding="valid", data_format="channels_last", use_bias=False, **ones)
    if "output_padding" in op.attrs:
        op = op.with_attrs(output_padding=None)
    source = Tensor((batch, *shape))
    summed = keras_io.single(op)((np.ones((1, *shape), np.float32),))[0].sum()
    assert ops.macs(op, (source,), ops.infer(op, (source,))) == int(summed)


@given(convolutions())
def test_macs_with_padding_count_every_position(case) -> None:
    op, source = case
    geometry = ops.conv_geometry(op, source)
    positions = geometry.in_shape if geometry.transposed else geometry.out_shape
    per_position = np.prod(geometry.kernel) * geometry.inputs * geometry.outputs // geometry.groups
    assert ops.macs(op, (source,), ops.infer(op, (source,))) == np.prod(positions) * per_position


def test_geometry_by_hand() -> None:
    op = Op(
        "c",
        "Conv2D",
        {"filters": 8, "kernel_size": (3, 5), "strides": 2, "padding": "same", "groups": 2},
    )
    found = ops.conv_geometry(op, Tensor((None, 9, 7, 4)))
    assert (found.rank, found.out_shape, found.macs) == (2, (5, 4), 5 * 4 * 15 * 8 * 2)
    depthwise = Op(
        "d",
        "DepthwiseConv2D",
        {"kernel_size": 3, "depth_multiplier": 2, "data_format": "channels_first"},
    )
    found = ops.conv_geometry(depthwise, Tensor((None, 3, 8, 8)))
    assert (found.groups, found.outputs, found.tensor(4, "float16")) == (
        3,
        6,
        Tensor((4, 6, 6, 6), "float16"),
    )
    assert found.macs == 6 * 6 * 9 * 6
    transposed = Op("t", "Conv1DTranspose", {"filters": 5, "kernel_size": 4, "strides": 3})
    found = ops.conv_geometry(transposed, Tensor((None, 6, 2)))
    assert (found.out_shape, found.macs) == ((19,), 6 * 4 * 2 * 5)


def test_refused_geometry() -> None:
    op = Op("c", "Conv2D", {"filters": 8, "kernel_size": 3})
    with pytest.raises(
        GraphError, match=r"op 'c' \(Conv2D\) reads a tensor of shape \(\?, 9, 4\), expected 4 axes"
    ):
        ops.conv_geometry(op, Tensor((None, 9, 4)))
    with pytest.raises(ModelError, match="layer 'c': the number of input channels is not fixed"):
        ops.conv_geometry(op, Tensor((None, 9, 9, None)))
    with pytest.raises(
        ModelError, match="MACs are unknown; re-save the model with a fixed Input shape"
    ):
        _ = ops.conv_geometry(op, Tensor((None, None, 9, 3))).macs
    with pytest.raises(GraphError, match="has 3 sizes, expected 2"):
        ops.spatial((1, 2, 3), 2)


# -- every other kind ------------------------------------------------------------------------------

#: A layer of each kind whose shape lrfc gives itself, with the shape it reads.
SAME = {
    "Activation": {"activation": "relu"},
    "ReLU": {},
    "LeakyReLU": {},
    "PReLU": {},
    "ELU": {},
    "Softmax": {},
    "BatchNormalization": {},
    "Dropout": {"rate": 0.5},
    "SpatialDropout1D": {"rate": 0.5},
    "SpatialDropout2D": {"rate": 0.5},
    "SpatialDropout3D": {"rate": 0.5},
    "GaussianNoise": {"stddev": 1.0},
    "GaussianDropout": {"rate": 0.5},
    "AlphaDropout": {"rate": 0.5},
    "ActivityRegularization": {},
    "LayerNormalization": {},
    "GroupNormalization": {"groups": 2},
    "UnitNormalization": {},
    "Identity": {},
}


def test_every_kind_of_unchanged_shape_is_tried() -> None:
    assert SAME.keys() == ops._SAME_SHAPE


@pytest.mark.parametrize("kind", SAME)
def test_unchanged_shapes_are_those_of_keras(kind) -> None:
    rank = {"SpatialDropout1D": 3, "SpatialDropout3D": 5}.get(kind, 4)
    source = Tensor((None, *range(5, 5 + rank - 2), 4))
    op = Op("op", kind, SAME[kind])
    assert ops.infer(op, (source,)) == (source,) == keras_io.infer(op, (source,))


@given(st.integers(1, 5), st.lists(st.sampled_from([None, 2, 3]), max_size=2), st.integers(1, 4))
def test_dense(units, lengths, inputs) -> None:
    op, source = (
        Op("op", "Dense", {"units": units}, {"kernel": np.ones((inputs, units))}),
        Tensor((None, *lengths, inputs)),
    )
    outputs = ops.infer(op, (source,))
    assert outputs == keras_io.infer(op, (source,))
    if None not in lengths:
        assert ops.macs(op, (source,), outputs) == int(np.prod(lengths, initial=1)) * inputs * units


def test_an_input() -> None:
    assert ops.infer(Op("x", "InputLayer", {"batch_shape": (None, 3), "dtype": "int32"}), ()) == (
        Tensor((None, 3), "int32"),
    )
    assert ops.infer(Op("x", "InputLayer", {"batch_shape": (2, 3)}), ()) == (Tensor((2, 3)),)


def test_keras_infers_other_kinds() -> None:
    op = Op("op", "ZeroPadding2D", {"padding": ((1, 0), (2, 3))})
    assert ops.infer(op, (Tensor((None, 4, 5, 6)),)) == (Tensor((None, 5, 10, 6)),)
    with pytest.raises(ModelError, match=r"layer 'op' \(ZeroPadding2D\) does not take \(\?, 4\)"):
        ops.infer(op, (Tensor((None, 4)),))


#: What Keras wants to be told.
REQUIRED = {
    "filters": 2,
    "kernel_size": 1,
    "units": 2,
    "equation": "ab,bc->ac",
    "output_shape": 2,
    "scale": 2.0,
    "activation": "relu",
    "target_shape": (2,),
    "pool_size": 2,
    "dims": (1,),
}


@pytest.mark.parametrize("kind", sorted(defaults.kinds()))
def test_defaults_are_those_of_keras(kind) -> None:
    """Passes set only attributes that differ from the defaults, and Keras adds the others."""
    import keras

    cls = getattr(keras.layers, kind)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    given_here = {name: REQUIRED[name] for name in needed}
    config = cls(**given_here).get_config()
    for attr, usual in defaults.DEFAULTS[kind].items():
        if attr not in given_here:
            assert ops._is_default(config[attr], usual) or (
                attr == "strides" and usual is None and config[attr] == config["pool_size"]
            ), f"{attr}: {config[attr]}"


def macs_of(*layers: Any, shape: tuple[int | None, ...]) -> int:
    """The MACs of the last op of a chain."""
    import keras

    graph = helpers.graph_of(keras.Sequential([keras.Input(shape), *layers]))
    op = list(graph)[-1]
    return ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name))


def test_macs_by_hand() -> None:
    from keras import layers

    assert macs_of(layers.Dense(5), shape=(7, 3)) == 7 * 3 * 5
    assert macs_of(
        layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2), shape=(6, 6, 4)
    ) == 36 * (9 * 8 + 8 * 8)
    assert macs_of(layers.SeparableConv1D(8, 3, strides=2), shape=(9, 4)) == 4 * (3 * 4 + 4 * 8)
    assert (
        macs_of(layers.EinsumDense("abc,cde->abde", output_shape=(7, 2, 5)), shape=(7, 3))
        == 7 * 3 * 2 * 5
    )
    assert macs_of(layers.LSTM(4), shape=(6, 3)) == 6 * (3 * 16 + 4 * 16)
    assert macs_of(layers.Bidirectional(layers.GRU(4)), shape=(6, 3)) == 2 * 6 * (3 * 12 + 4 * 12)
    assert macs_of(layers.ReLU(), shape=(6, 3)) == 0
    with pytest.raises(ModelError, match="the number of time steps is not fixed"):
        macs_of(layers.LSTM(4), shape=(None, 3))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_macs_of_attention_by_hand(same, named) -> None:
    import keras

    query, value = keras.Input((6, 8)), keras.Input((6 if same else 4, 8))
    attention = keras.layers.MultiHeadAttention(2, 3, value_dim=5)
    graph = helpers.graph_of(
        keras.Model(
            [query, value],
            attention(value=value, query=query, key=value) if named else attention(query, value),
        )
    )
    (op,) = [op for op in graph if op.kind == "MultiHeadAttention"]
    steps = 6 if same else 4
    projections = 6 * 8 * 6 + steps * 8 * 6 + steps * 8 * 10 + 6 * 10 * 8
    assert ops.macs(
        op, graph.input_tensors(op.name), graph.tensors(op.name)
    ) == projections + 6 * steps * 2 * (3 + 5)


def test_macs_of_a_matrix_product() -> None:
    import keras

    a, b = keras.Input((4, 5)), keras.Input((5, 6))
    constant = np.ones((4, 5), np.float32)
    for inputs, product in (([a, b], keras.ops.matmul(a, b)), ([b], keras.ops.matmul(constant, b))):
        graph = helpers.graph_of(keras.Model(inputs, product))
        op = graph.op(graph.outputs[0].op)
        assert ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) == 4 * 5 * 6


def test_shown_attributes() -> None:
    op = Op(
        "c",
        "Conv2D",
        {
            "filters": 4,
            "kernel_size": (3, 3),
            "strides": (1, 1),
            "padding": "same",
            "activation": "linear",
            "kernel_regularizer": None,
        },
    )
    assert ops.shown(op) == ("filters", "kernel_size", "padding")
    assert ops.shown(Op("m", "Mine", {"filters": 4})) == ()


def test_an_unknown_length_is_no_size() -> None:
    graph = Graph()
    graph.outputs = (graph.add(Op("x", "InputLayer", {"batch_shape": (None, None, 3)})),)
    with pytest.raises(GraphError, match="has no fixed length"):
        _ = graph.tensor(graph.outputs[0]).size
