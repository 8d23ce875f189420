"""Conversion to channels last: exact, with transposes at the borders only, on any processor.

No test runs a layer with channels first: the reference is the same network, built with channels
last, on transposed inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.ir.batch import Batch
from lrfc.ir.channels_last import channels_last, stuck
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.passes.canonicalise import lower_transposed, move_channels
from tests import helpers

FIRST, LAST = "channels_first", "channels_last"
SIZE = {1: (9,), 2: (6, 7), 3: (4, 5, 4)}
HEADS = ("map", "flat", "flat in its own order", "pooled", "extremes")


class Net:
    """Builder of a network, step by step, in the layout ``form``.

    Steps that a rank or a size does not allow do nothing.
    """

    def __init__(self, rank: int, form: str) -> None:
        self.rank, self.form, self.first = rank, form, form == FIRST
        self.axis = 1 if self.first else -1
        #: The last axis of a map with channels first.
        self.last_space = rank + 1 if self.first else rank
        self.number = 0

    def sized(self, width: int) -> tuple[int, ...]:
        return (width, *SIZE[self.rank]) if self.first else (*SIZE[self.rank], width)

    def layer(self, kind: str, *args: Any, suffix: str = "", **options: Any) -> Any:
        from keras import layers

        cls = getattr(layers, kind.replace("?", f"{self.rank}D"))
        return cls(
            *args,
            **({"data_format": self.form} if "?" in kind else {}),
            **({"name": self.named(suffix)} | options),
        )

    def named(self, suffix: str = "") -> str:
        return f"step{self.number}{suffix}"

    def channels(self, x: Any) -> int:
        return int(x.shape[self.axis])

    def tall(self, x: Any) -> bool:
        return min(x.shape[2:] if self.first else x.shape[1:-1]) > 2

    def then(self, step: str, x: Any) -> Any:
        self.number += 1
        return getattr(self, step)(x)

    def conv(self, x: Any) -> Any:
        return self.layer("Conv?", 4, 3, padding="same", activation="relu")(x)

    def strided(self, x: Any) -> Any:
        return self.layer("Conv?", 3, 2, padding="same", strides=2)(x)

    def grouped(self, x: Any) -> Any:
        width = self.channels(x)
        return x if self.rank > 2 else self.layer("Conv?", 2 * width, 1, groups=width)(x)

    def transposed(self, x: Any) -> Any:
        return self.layer("Conv?Transpose", 3, 2, strides=2)(x) if self.number < 3 else x

    def depthwise(self, x: Any) -> Any:
        return x if self.rank > 2 else self.layer("DepthwiseConv?", 3, padding="same")(x)

    def separable(self, x: Any) -> Any:
        return x if self.rank > 2 else self.layer("SeparableConv?", 4, 3, padding="same")(x)

    def batchnorm(self, x: Any) -> Any:
        return self.layer("BatchNormalization", axis=self.axis)(x)

    def norm(self, x: Any) -> Any:
        return self.layer("LayerNormalization", axis=self.axis)(x)

    def prelu(self, x: Any) -> Any:
        return self.layer(
            "PReLU", shared_axes=([2] if self.first else [1]) if self.number % 2 else None
        )(x)

    def relu(self, x: Any) -> Any:
        return self.layer("ReLU", max_value=2.0)(x)

    def dropout(self, x: Any) -> Any:
        return self.layer("Dropout", 0.5)(x)

    def softmax(self, x: Any) -> Any:
        return self.layer("Softmax", axis=self.last_space if self.number % 2 else self.axis)(x)

    def softmax_in_conv(self, x: Any) -> Any:
        """A softmax inside a convolution; Keras computes it along the last axis in any layout."""
        x = self.layer("Conv?", 3, 1, activation="softmax" if self.first else None)(x)
        return (
            x if self.first else self.layer("Softmax", axis=self.last_space, suffix="_softmax")(x)
        )

    def pool(self, x: Any) -> Any:
        return self.layer("MaxPooling?", 2)(x) if self.tall(x) else x

    def average(self, x: Any) -> Any:
        return self.layer("AveragePooling?", 2, strides=1, padding="same")(x)

    def pad(self, x: Any) -> Any:
        return x if self.rank == 1 else self.layer("ZeroPadding?", 1)(x)

    def crop(self, x: Any) -> Any:
        return (
            self.layer("Cropping?", (1, *(0,) * (self.rank - 1)))(x)
            if self.rank > 1 and self.tall(x)
            else x
        )

    def up(self, x: Any) -> Any:
        return self.layer("UpSampling?", 2)(x) if self.rank > 1 and self.number < 3 else x

    def add(self, x: Any) -> Any:
        return self.layer("Add")([x, self.layer("Conv?", self.channels(x), 1, suffix="_conv")(x)])

    def concatenate(self, x: Any) -> Any:
        return self.layer("Concatenate", axis=self.axis)(
            [x, self.layer("Conv?", 2, 1, suffix="_conv")(x)]
        )

    def excite(self, x: Any) -> Any:
        width, ones = self.channels(x), (1,) * self.rank
        y = self.layer("GlobalAveragePooling?", suffix="_pool")(x)
        y = self.layer("Dense", width, activation="sigmoid", suffix="_dense")(y)
        y = self.layer(
            "Reshape", (width, *ones) if self.first else (*ones, width), suffix="_shape"
        )(y)
        return self.layer("Multiply")([x, y])

    def shared(self, x: Any) -> Any:
        twice, bend = (
            self.layer("Conv?", self.channels(x), 3, padding="same"),
            self.layer("PReLU", suffix="_prelu"),
        )
        return bend(twice(bend(twice(x))))

    def function(self, x: Any) -> Any:
        import keras

        return keras.ops.relu(x) * 0.5 + x

    def nested(self, x: Any) -> Any:
        import keras

        z = inside = keras.Input(x.shape[1:])
        z = self.layer("BatchNormalization", axis=self.axis, suffix="_bn")(
            self.layer("Conv?", 3, 1, suffix="_conv")(z)
        )
        return keras.Model(inside, z, name=self.named())(x)

    def headed(self, head: str, x: Any) -> Any:
        """The network's output: a feature map, or a Dense on one."""
        if head == "map":
            return x
        if head == "extremes":
            return self.layer("GlobalMaxPooling?", keepdims=True, name="pool")(x)
        if head == "pooled":
            return self.layer("Dense", 2, name="head")(
                self.layer("GlobalMaxPooling?", name="pool")(x)
            )
        form = self.form
        if head == "flat in its own order":
            form = LAST
            x = (
                x
                if self.first
                else self.layer(
                    "Permute", (self.rank + 1, *range(1, self.rank + 1)), name="as_first"
                )(x)
            )
        return self.layer("Dense", 2, name="head")(
            self.layer("Flatten", data_format=form, name="flat")(x)
        )


STEPS = [
    name
    for name in vars(Net)
    if not name.startswith("_")
    and name not in ("sized", "layer", "named", "channels", "tall", "then", "headed")
]


def network(rank: int, steps: Sequence[str], head: str, form: str, *, second: bool = False) -> Any:
    """A network of these steps and this head, in the layout ``form``."""
    import keras

    net = Net(rank, form)
    inputs = [keras.Input(net.sized(2), name=name) for name in ("x", "y")[: 1 + second]]
    x = net.layer("Concatenate", axis=net.axis, name="both")(inputs) if second else inputs[0]
    for step in steps:
        x = net.then(step, x)
    return keras.Model(
        inputs, net.headed(head, net.layer("Conv?", 3, 1, name="last")(x)), name="net"
    )


def with_weights_of(first: Any, last: Any) -> Any:
    """The channels-last network with the weights of the channels-first one."""
    alike = {layer.name: layer for layer in last._flatten_layers() if layer.weights}
    for layer in first._flatten_layers():
        if layer.weights and layer.name in alike and not getattr(layer, "layers", None):
            weights = layer.get_weights()
            alike[layer.name].set_weights(
                [np.moveaxis(w, 0, -1) for w in weights]
                if type(layer).__name__ == "PReLU"
                else weights
            )
    return last


def agree(graph: Graph, reference: Any) -> None:
    """Check that the converted graph agrees with the channels-last network, but for transposes."""
    moved = channels_last(graph)
    moved.check()
    assert stuck(moved) == ()
    assert [moved.tensors(name) for name in moved.inputs] == [
        graph.tensors(name) for name in graph.inputs
    ]
    assert [moved.tensor(ref) for ref in moved.outputs] == [
        graph.tensor(ref) for ref in graph.outputs
    ]
    assert moved.params == graph.params
    inputs = helpers.random_inputs(graph)
    expected: Batch = keras_io.predict(reference, tuple(np.moveaxis(x, 1, -1) for x in inputs))
    expected = tuple(y if y.ndim < 3 else np.moveaxis(y, -1, 1) for y in expected)
    assert helpers.difference(expected, keras_io.predict(moved, inputs)) < 1e-5


@given(
    rank=st.sampled_from([1, 2, 2, 3]),
    steps=st.lists(st.sampled_from(STEPS), max_size=5),
    head=st.sampled_from(HEADS),
    second=st.booleans(),
)
def test_any_network_computes_the_same(
    rank: int, steps: list[str], head: str, second: bool
) -> None:
    first = helpers.random_weights(network(rank, steps, head, FIRST, second=second))
    graph = helpers.graph_of(first)
    agree(graph, with_weights_of(first, network(rank, steps, head, LAST, second=second)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_every_kind_of_layer(step: str, rank: int) -> None:
    first = helpers.random_weights(network(rank, [step], "map", FIRST))
    agree(helpers.graph_of(first), with_weights_of(first, network(rank, [step], "map", LAST)))


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head: str) -> None:
    first = helpers.random_weights(network(2, ["conv", "pool"], head, FIRST))
    agree(helpers.graph_of(first), with_weights_of(first, network(2, ["conv", "pool"], head, LAST)))


def documented(rewrite: Any) -> tuple[list[str], list[str]]:
    """The printed ops under Given and under Result in a docstring."""
    given, result = rewrite.__doc__.split("Result")
    return tuple(
        [line.strip() for line in part.splitlines() if " = " in line] for part in (given, result)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("rewrite", [move_channels, lower_transposed])
def test_the_docstring_shows_what_happens(rewrite: Any) -> None:
    import keras
    from keras import layers

    if rewrite is move_channels:
        parts = [
            layers.Conv2D(4, 3, data_format=FIRST, name="conv"),
            layers.BatchNormalization(axis=1, name="bn"),
        ]
        model = keras.Sequential(
            [
                keras.Input((3, 8, 8), name="x"),
                *parts,
                layers.Flatten(data_format=LAST, name="flat"),
            ]
        )
    else:
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3), name="x"),
                layers.Conv2DTranspose(4, 3, dilation_rate=2, name="conv"),
            ]
        )
    graph = helpers.graph_of(model)
    given, result = documented(rewrite)
    assert [line.strip() for line in str(graph).splitlines() if " = " in line] == given
    assert [line.strip() for line in str(rewrite(graph)).splitlines() if " = " in line] == result


def test_transposes_between_neighbours_cancel() -> None:
    """Only one is left at each border of a network with every kind of layer."""
    steps = [
        "conv",
        "batchnorm",
        "prelu",
        "pool",
        "add",
        "concatenate",
        "shared",
        "function",
        "nested",
        "up",
    ]
    moved = channels_last(helpers.graph_of(network(2, steps, "map", FIRST)))
    assert [op.name for op in moved if op.kind == "Permute"] == [
        "x__channels_last",
        "last__channels_first",
    ]
    moved = channels_last(helpers.graph_of(network(2, steps, "flat", FIRST)))
    assert [op.name for op in moved if op.kind == "Permute"] == ["x__channels_last"]


def test_transposes_of_the_model_itself_are_taken_for_what_they_are() -> None:
    import keras
    from keras import layers

    x = image = keras.Input((8, 8, 3), name="x")
    x = layers.Permute((3, 1, 2), name="to_first")(x)
    x = layers.Conv2D(4, 3, data_format=FIRST, name="conv")(x)
    graph = helpers.graph_of(keras.Model(image, layers.Permute((2, 3, 1), name="to_last")(x)))
    assert [op.kind for op in channels_last(graph)] == ["InputLayer", "Conv2D"]


def test_normalisation_of_the_input_moves_to_where_it_can_be_folded() -> None:
    import keras
    from keras import layers

    x = image = keras.Input((3, 8, 8), name="x")
    x = layers.Rescaling(0.5, name="scale")(
        layers.Normalization(axis=1, mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0], name="norm")(x)
    )
    graph = helpers.graph_of(
        keras.Model(image, layers.Conv2D(4, 3, data_format=FIRST, name="conv")(x))
    )
    assert [op.kind for op in channels_last(graph)][:4] == [
        "InputLayer",
        "Permute",
        "Normalization",
        "Rescaling",
    ]


def test_a_graph_with_channels_last_is_left_alone() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    assert channels_last(graph) is graph
    moved = channels_last(helpers.graph_of(network(2, ["conv"], "map", FIRST)))
    assert channels_last(moved) is moved


def test_what_cannot_be_moved_is_named() -> None:
    import keras
    from keras import layers

    clip = keras.Input((4, 3, 8, 8), name="x")
    inner = layers.Conv2D(2, 3, data_format=FIRST)
    graph = channels_last(
        helpers.graph_of(keras.Model(clip, layers.TimeDistributed(inner, name="frames")(clip)))
    )
    assert stuck(graph) == ("frames",)


@pytest.mark.parametrize("sequences", [True, False])
def test_convolutional_lstm(sequences: bool) -> None:
    import keras
    from keras import layers

    def model(form: str) -> Any:
        frames = keras.Input((3, 2, 6, 5) if form == FIRST else (3, 6, 5, 2), name="x")
        return keras.Model(
            frames,
            layers.ConvLSTM2D(4, 3, data_format=form, return_sequences=sequences, name="lstm")(
                frames
            ),
        )

    first, last = helpers.random_weights(model(FIRST)), model(LAST)
    last.set_weights(first.get_weights())
    moved = channels_last(helpers.graph_of(first))
    moved.check()
    (x,) = helpers.random_inputs(moved)
    (expected,) = keras_io.predict(last, (np.moveaxis(x, 2, -1),))
    (found,) = keras_io.predict(moved, (x,))
    assert helpers.difference((np.moveaxis(expected, -1, 2 if sequences else 1),), (found,)) < 1e-5


# -- dilated transposed convolutions ---------------------------------------------------------------


def transposed(
    kernel: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    x: np.ndarray[Any, Any],
    dilation: tuple[int, ...],
) -> np.ndarray[Any, Any]:
    """A transposed convolution by its definition: every input value adds a kernel to the output.

    Stride 1, padding 'valid'.
    """
    reach = [step * (length - 1) + 1 for step, length in zip(dilation, kernel.shape, strict=False)]
    lengths = [n + each - 1 for n, each in zip(x.shape[1:-1], reach, strict=True)]
    y = np.zeros((len(x), *lengths, kernel.shape[-2]))
    for tap in np.ndindex(kernel.shape[:-2]):
        at = tuple(
            slice(t * step, t * step + n)
            for t, step, n in zip(tap, dilation, x.shape[1:-1], strict=True)
        )
        y[(slice(None), *at)] += x @ kernel[tap].T
    return y + bias


@given(
    rank=st.sampled_from([1, 2, 3]),
    kernel=st.integers(1, 3),
    data=st.data(),
    padding=st.sampled_from(["same", "valid"]),
    form=st.sampled_from([FIRST, LAST]),
)
def test_dilated_transposed_convolutions(
    rank: int, kernel: int, data: Any, padding: str, form: str
) -> None:
    import keras
    from keras import layers

    dilation = tuple(data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
    shape = (2, *SIZE[rank]) if form == FIRST else (*SIZE[rank], 2)
    conv = getattr(layers, f"Conv{rank}DTranspose")(
        3, kernel, dilation_rate=dilation, padding=padding, data_format=form, name="conv"
    )
    graph = helpers.graph_of(
        helpers.random_weights(keras.Sequential([keras.Input(shape, name="x"), conv]))
    )
    lowered = lower_transposed(move_channels(graph))
    lowered.check()
    if max(dilation) > 1:
        assert not any(op.kind.endswith("Transpose") for op in lowered)
    assert lowered.params == graph.params
    assert lowered.tensor(lowered.outputs[0]) == graph.tensor(graph.outputs[0])
    (x,) = helpers.random_inputs(graph)
    weights = graph.op("conv").weights
    expected = transposed(
        weights["kernel"], weights["bias"], np.moveaxis(x, 1, -1) if form == FIRST else x, dilation
    )
    if padding == "same":
        # The output is cut to the length of the input, with the smaller half cut off in front.
        cut = [(step * (kernel - 1)) // 2 for step in dilation]
        expected = expected[
            (slice(None), *(slice(c, c + n) for c, n in zip(cut, SIZE[rank], strict=True)))
        ]
    (found,) = keras_io.predict(lowered, (x,))
    assert (
        helpers.difference((np.moveaxis(expected, -1, 1) if form == FIRST else expected,), (found,))
        < 1e-5
    )


def test_a_shared_dilated_transposed_convolution_stays_shared() -> None:
    import keras
    from keras import layers

    conv = layers.Conv2DTranspose(3, 2, dilation_rate=3, padding="same", name="conv")
    x = keras.Input((6, 6, 3), name="x")
    graph = helpers.graph_of(helpers.random_weights(keras.Model(x, conv(conv(x)))))
    lowered = lower_transposed(graph)
    lowered.check()
    assert [op.shared for op in lowered if op.kind == "Conv2D"] == ["conv", "conv"]
    assert lowered.params == graph.params
    keras_io.predict(lowered, helpers.random_inputs(lowered))


def test_strided_transposed_convolutions_stay() -> None:
    graph = Graph()
    graph.add(Op("x", "InputLayer", {"batch_shape": (None, 6, 6, 3)}))
    kernel = np.zeros((3, 3, 4, 3), np.float32)
    graph.outputs = (
        graph.add(
            Op(
                "conv",
                "Conv2DTranspose",
                {"filters": 4, "kernel_size": 3, "strides": 2, "use_bias": False},
                {"kernel": kernel},
            ),
            (Ref("x"),),
        ),
    )
    assert str(lower_transposed(graph)) == str(graph)
